"""A model under evaluation: copied, frozen, checked, and judged."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attacks.messages import described
from benchmark.errors import UserError
from defenses.certificates import HasCertificate

# The class that is predicted where logits are NaN.
UNDEFINED = -1


@dataclass
class Subject:
    """A frozen copy of a model in eval mode, its float64 twin, and what was noticed.

    Neither is ever handed to an attack, so that no attack can change how it is judged. Parameters
    take no gradients, which a plain backward() in an attack would pay for.
    """

    model: nn.Module
    twin: nn.Module | None
    device: torch.device
    dtype: torch.dtype
    flags: set[str] = field(default_factory=set)

    def victim(self) -> nn.Module:
        """A copy for an attack, which may do with it what it likes."""
        return copy.deepcopy(self.model)

    def judge(self, points: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted classes (n,), UNDEFINED where logits are NaN, and where they are wrong (n,), at
        points (n, *shape).

        Forwards afresh, in float32 and in float64: a misclassification that one of the two does
        not see is rounding and does not count. NaN in either is wrong.
        """
        predicted = self._classify(self.model, points.to(self.dtype))
        wrong = predicted != y
        doubtful = wrong & (predicted != UNDEFINED)
        if self.twin is not None and bool(doubtful.any()):
            again = self._classify(self.twin, points[doubtful].double()) != y[doubtful]
            wrong = wrong.masked_scatter(doubtful, again)
        return predicted, wrong

    def certify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted classes (n,) at images x (n, *shape), and the L2 radii (n,), float64, within
        which the model's certificate says that they hold. Both in float64 where the model can.

        Raises ValueError for radii that are none, TypeError where there is no certificate.
        """
        model, dtype = (self.model, self.dtype) if self.twin is None else (self.twin, torch.float64)
        if not isinstance(model, HasCertificate):
            raise TypeError("the model has no certified_radius")
        x = x.to(dtype)
        with torch.no_grad():
            radius = model.certified_radius(x)
        if not isinstance(radius, Tensor) or radius.shape != (len(x),):
            found = tuple(radius.shape) if isinstance(radius, Tensor) else type(radius).__name__
            raise ValueError(f"certified_radius must give ({len(x)},) for as many images: {found}")
        bad = ~(radius >= 0)  # NaN is not at least 0 either
        if bool(bad.any()):
            raise ValueError(f"a certified radius must be at least 0, not {float(radius[bad][0])}")
        return self._classify(model, x), radius.double()

    def _classify(self, model: nn.Module, points: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(points)
        return torch.where(logits.isnan().any(1), UNDEFINED, logits.argmax(1))


def examine(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Subject:
    """The model as a Subject; it is copied and stays as it is.

    Raises UserError where it cannot be copied.
    """
    frozen = freeze(model, device, dtype)
    twin = None if dtype is torch.float64 else copy.deepcopy(frozen).double()
    return Subject(frozen, twin, device, dtype, {"train-mode"} if model.training else set())


def freeze(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy in eval mode whose parameters take no gradients.

    Raises UserError where the model cannot be copied.
    """
    try:
        with torch.no_grad():  # without it, the copy of a ScriptModule is no leaf
            frozen = copy.deepcopy(model).to(device, dtype).eval()
    except Exception as error:
        raise UserError(
            f"the model cannot be copied to {device} as {dtype}: {described(error)}"
        ) from error
    for parameter in frozen.parameters():  # one by one, as a ScriptModule wants it
        parameter.requires_grad_(False)
    return frozen


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 on CUDA: its mantissa of 10 bits would stop attacks at points that are not broken."""
    cudnn = torch.backends.cudnn
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)


def check_model(subject: Subject, x: Tensor, y: Tensor, classes: int | None) -> int:
    """Look at all labels y, and at the logits of some clean images x (n, *shape), and note flags.
    Returns how many logits there are.

    Raises UserError where the model does not run, does not give logits (n, classes), or gives NaN.
    """
    try:
        with torch.no_grad():
            logits, again = subject.model(x), subject.model(x)
    except Exception as error:
        raise UserError(
            f"the model does not run on images of shape {tuple(x.shape)}: {described(error)}"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"the model must give logits (n, classes) for {len(x)} images, not {shape}")
    columns = logits.shape[1]
    if classes is not None and columns != classes:
        raise UserError(f"the model gives {columns} logits and the data has {classes} classes")
    if int(y.max()) >= columns or columns < 2:
        raise UserError(f"labels go up to {int(y.max())} but the model gives {columns} logits")
    if not bool(logits.isfinite().all()):
        raise UserError("the model gives NaN or infinite logits on clean images")
    if not torch.equal(logits, again):
        subject.flags.add("non-deterministic")
    sums = logits.sum(1)
    if bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        subject.flags.add("probabilities")
    if subject.twin is not None:
        try:
            with torch.no_grad():
                subject.twin(x.double())
        except Exception:
            subject.twin = None
            subject.flags.add("float32-only")
    return int(columns)
