"""A model that is evaluated: it is copied, frozen, checked, and asked for its classes."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attacks.messages import described
from benchmark.errors import UserError
from defenses.certificates import HasCertificate

# The class that is recorded where logits are NaN.
UNDEFINED = -1


@dataclass
class Subject:
    """A frozen copy of a model, which judges points.

    model  the copy, in eval mode. Its parameters take no gradients, which would cost an attack that
           calls backward() time.
    twin   the same in float64; None if `model` is in float64 itself, or does not run in it.
    flags  what was noticed about the model.

    Neither `model` nor `twin` is ever handed to an attack, so that no attack can change how it is
    judged; attacks get a copy, the `victim`.
    """

    model: nn.Module
    twin: nn.Module | None
    device: torch.device
    dtype: torch.dtype
    flags: set[str] = field(default_factory=set)

    def victim(self) -> nn.Module:
        """A copy of the model for an attack, which may change it."""
        return copy.deepcopy(self.model)

    def judge(self, points: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Classify points (n, *shape) with labels y (n,), and say which are misclassified.

        The model is run in its own precision and in float64. A misclassification that only one of
        the two sees is due to rounding, and does not count. Logits that are NaN count as wrong.
        Returns the classes (n,), UNDEFINED where logits are NaN, and which are wrong (n,).
        """
        predicted = self._classify(self.model, points.to(self.dtype))
        wrong = predicted != y
        doubtful = wrong & (predicted != UNDEFINED)
        if self.twin is not None and bool(doubtful.any()):
            wrong_in_twin = self._classify(self.twin, points[doubtful].double()) != y[doubtful]
            wrong = wrong.masked_scatter(doubtful, wrong_in_twin)
        return predicted, wrong

    def certify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ask the model for its classes at images x (n, *shape), and for certified radii.

        The model is run in float64 where it can be. Returns the classes (n,), and the L2 radii
        (n,), float64, within which the model certifies that the class does not change. Raises
        TypeError where the model has no certificate, and ValueError where what it returns are not
        radii.
        """
        model, dtype = (self.model, self.dtype) if self.twin is None else (self.twin, torch.float64)
        if not isinstance(model, HasCertificate):
            raise TypeError("the model has no certified_radius")
        x = x.to(dtype)
        with torch.no_grad():
            radius = model.certified_radius(x)
        if not isinstance(radius, Tensor) or radius.shape != (len(x),):
            returned = tuple(radius.shape) if isinstance(radius, Tensor) else type(radius).__name__
            raise ValueError(
                f"certified_radius must give ({len(x)},) for as many images: {returned}"
            )
        bad = ~(radius >= 0)  # NaN is not at least 0 either
        if bool(bad.any()):
            raise ValueError(f"a certified radius must be at least 0, not {float(radius[bad][0])}")
        return self._classify(model, x), radius.double()

    def _classify(self, model: nn.Module, points: Tensor) -> Tensor:
        """The classes (n,) of points (n, *shape), UNDEFINED where logits are NaN."""
        with torch.no_grad():
            logits: Tensor = model(points)
        return torch.where(logits.isnan().any(1), UNDEFINED, logits.argmax(1))


def examine(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Subject:
    """Copy a model into a Subject. The model stays as it is.

    Raises UserError where the model cannot be copied.
    """
    frozen = freeze(model, device, dtype)
    twin = None if dtype is torch.float64 else copy.deepcopy(frozen).double()
    return Subject(frozen, twin, device, dtype, {"train-mode"} if model.training else set())


def freeze(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Copy a model to a device and a dtype, in eval mode, with parameters that take no gradients.

    Raises UserError where the model cannot be copied.
    """
    try:
        with torch.no_grad():  # else the parameters of a copied ScriptModule would not be leaves
            frozen = copy.deepcopy(model).to(device, dtype).eval()
    except Exception as error:
        raise UserError(
            f"the model cannot be copied to {device} as {dtype}: {described(error)}"
        ) from error
    for parameter in frozen.parameters():  # a ScriptModule itself refuses requires_grad_
        parameter.requires_grad_(False)
    return frozen


@contextmanager
def full_precision() -> Iterator[None]:
    """Turn TF32 off on CUDA while the context lasts.

    Its mantissa of 10 bits would stop attacks at points that are not broken.
    """
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
    """Check that a model gives logits that fit the labels, and return how many.

    x        (n, *shape), some of the clean images.
    y        all labels.
    classes  how many logits there must be; any number if None.

    Flags of the subject are set for what is odd but can be evaluated. Raises UserError where the
    model does not run, does not give logits (n, classes), or gives NaN.
    """
    # Run it twice on the same images.
    try:
        with torch.no_grad():
            logits, repeated = subject.model(x), subject.model(x)
    except Exception as error:
        raise UserError(
            f"the model does not run on images of shape {tuple(x.shape)}: {described(error)}"
        ) from error
    # Refuse what is not one logit for each class.
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
    # Flag what is odd.
    if not torch.equal(logits, repeated):
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
