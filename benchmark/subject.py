"""A model under evaluation: frozen, checked, and judged."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmark.errors import UserError

# What each flag under a table means, and what to do about it.
FLAGS = {
    "train-mode": "was handed over in training mode; it was evaluated in eval mode",
    "probabilities": "returns probabilities, not logits: gradients may vanish; remove the softmax",
    "non-deterministic": "gives other logits for the same input; verdicts hold for one draw only",
    "float32-only": "does not run in float64, so verdicts were checked in float32 alone",
    "attack-error": "an attack failed, so best-attack is over the others: an upper bound",
    "outside-ball": "an attack returned points outside the ball or box; they were projected first",
    "nan": "gives NaN logits at some points; these count as misclassified",
}

# The class that is predicted where logits are NaN.
UNDEFINED = -1


@dataclass
class Subject:
    """A model in eval mode with frozen parameters, its float64 twin, and what was noticed.

    Gradients with respect to the parameters would double an attack's backward pass.
    """

    model: nn.Module
    twin: nn.Module | None
    device: torch.device
    dtype: torch.dtype
    flags: set[str] = field(default_factory=set)
    buffers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def settle(self) -> None:
        """Undo what an attack, or a library that it calls, may have done: training mode, and batch
        statistics that moved in it."""
        self.model.eval()
        for buffer, value in self.buffers:
            buffer.copy_(value)

    def judge(self, points: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted classes (n,), UNDEFINED where logits are NaN, and where they are wrong (n,), at
        points (n, *shape).

        Forwards afresh, in float32 and in float64: a misclassification that one of the two does
        not see is rounding and does not count.
        """
        self.settle()
        predicted = self._classify(self.model, points.to(self.dtype))
        wrong = predicted != y
        if self.twin is not None:
            wrong &= (self._classify(self.twin, points.double()) != y) | (predicted == UNDEFINED)
        return predicted, wrong

    def _classify(self, model: nn.Module, points: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(points)
        return torch.where(logits.isnan().any(1), UNDEFINED, logits.argmax(1))


@contextmanager
def under_evaluation(
    model: nn.Module, device: torch.device, dtype: torch.dtype
) -> Iterator[Subject]:
    """The model as a Subject; its mode, device, dtype and gradients are as before afterwards."""
    flags = {"train-mode"} if model.training else set()
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    state = next(
        (t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), None
    )
    home = (state.device, state.dtype) if state is not None else None
    # The tensors themselves: weights cast to a lower precision do not come back by casting.
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    originals = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
    ]
    buffers: list[tuple[Tensor, Tensor]] = []
    try:
        model.to(device, dtype).eval()
        for parameter, _ in wanted:  # one by one, as a ScriptModule wants it
            parameter.requires_grad_(False)
        buffers += [(buffer, buffer.clone()) for buffer in model.buffers()]
        twin = None
        if dtype is not torch.float64:
            try:
                twin = copy.deepcopy(model).double()
            except Exception:
                flags.add("float32-only")
        yield Subject(model, twin, device, dtype, flags, buffers)
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        for module, training in modes:
            module.training = training
        for parameter, requires in wanted:
            parameter.requires_grad_(requires)
        if home is not None:
            model.to(*home)
        for parameter, data in weights:
            parameter.data = data
        for module, name, buffer in originals:
            setattr(module, name, buffer)


def check_model(subject: Subject, x: Tensor, y: Tensor, classes: int | None) -> None:
    """Look at all labels y, and at the logits of some clean images x (n, *shape), and note flags.

    Raises UserError where the model does not run, does not give logits (n, classes), or gives NaN.
    """
    try:
        with torch.no_grad():
            logits, again = subject.model(x), subject.model(x)
    except Exception as error:
        raise UserError(
            f"the model does not run on images of shape {tuple(x.shape)}: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
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
