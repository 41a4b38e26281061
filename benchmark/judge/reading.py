"""How a model is called: the precision of its images, how many at once, and where its logits are.

A model that takes float32 images, many at once, and returns a tensor of logits is called as it is.
Any other is wrapped, so that whoever calls it need not know.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attacks.messages import described
from benchmark.errors import UserError
from defenses.foreign.adapting import logits
from defenses.foreign.adapting.in_parts import exported_size

# Other precisions of images that a model may take, where it takes neither float32 nor its own.
_OTHERS = (torch.float64, torch.bfloat16, torch.float16)

# How many images the gradient is tried on.
_FEW = 2


class Reading(logits.Reading):
    """What a user says of a model's outputs, whose mistakes are the user's."""

    def __call__(self, returned: Any, n: int) -> Tensor:
        try:
            return super().__call__(returned, n)
        except ValueError as error:
            raise UserError(str(error)) from error


_AS_IT_IS = Reading()


@dataclass(frozen=True)
class Calling:
    """How a model is called.

    takes     the dtype of the images that it is given.
    gives     the dtype in which its logits are returned.
    size      how many images it is given at once, exactly; None: as many as there are.
    isolated  whether it is differentiated by a backward pass of its own, with gradients on in each
              forward, as some models need.
    scale     (*shape), float64, what the images that it is given are multiplied by first, which are
              float64 then; None: nothing.
    casts     whether its logits are of another dtype than `gives`.
    reading   what a user says of its outputs.
    """

    takes: torch.dtype
    gives: torch.dtype
    size: int | None = None
    isolated: bool = False
    casts: bool = False
    scale: Tensor | None = None
    reading: Reading = _AS_IT_IS


def find_calling(
    model: nn.Module,
    x: Tensor,
    dtype: torch.dtype | None,
    reading: Reading,
    scale: Tensor | None = None,
) -> Calling:
    """How a frozen model has to be called, by trying it on images x (n, *shape).

    dtype    of the images if the model was cast to it; None if it is in its own precision.
    reading  what a user says of its outputs.
    scale    (*shape), what x is multiplied by before the model is given it; None: nothing.

    Raises UserError, in one line, where the model does not run on the images, or does not return
    what the reading expects.
    """
    own = {tensor.dtype for tensor in (*model.parameters(), *model.buffers())}
    real = [kind for kind in own if kind.is_floating_point]
    if dtype is not None:
        tried = [dtype]
    elif real == [torch.float64]:
        tried = [torch.float64]
    else:
        tried = list(dict.fromkeys([torch.float32, *sorted(real, key=str), *_OTHERS]))
    failure: Exception | None = None
    for size in dict.fromkeys((exported_size(model), None, 1)):
        for takes in tried:
            wide = scale is not None or takes is torch.float64
            gives = torch.float64 if wide else torch.float32
            for isolated in (False, True):
                calling = Calling(takes, gives, size, isolated, scale=scale, reading=reading)
                try:
                    with torch.no_grad():
                        logits = Called(model, calling).logits(x.to(gives, copy=True))
                except (UserError, torch.OutOfMemoryError):
                    raise
                except Exception as error:
                    failure = failure or error
                    continue
                calling = replace(calling, casts=logits.dtype != gives)
                if size is None and not _runs(model, calling, x[:1]):
                    calling = replace(calling, size=len(x))
                if not isolated and not _differentiates(model, calling, x):
                    alternative = replace(calling, isolated=True)
                    if _differentiates(model, alternative, x):
                        return alternative
                return calling
    assert failure is not None
    raise UserError(
        f"the model does not run on images of shape {tuple(x.shape)}: {described(failure)}"
    ) from failure


def _runs(model: nn.Module, calling: Calling, x: Tensor) -> bool:
    """Whether a model that is called so runs on some images."""
    try:
        with torch.no_grad():
            Called(model, calling)(x.to(calling.gives, copy=True))
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False
    return True


def _differentiates(model: nn.Module, calling: Calling, x: Tensor) -> bool:
    """Whether `torch.autograd.grad` works through a model that is called so."""
    points = x[:_FEW].to(calling.gives, copy=True).requires_grad_()
    try:
        with torch.enable_grad():
            logits = Called(model, calling)(points.clone())
            if not logits.requires_grad:
                return True  # there is nothing to differentiate, in any way
            torch.autograd.grad(logits.sum(), points, retain_graph=True, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False
    return True


def as_called(model: nn.Module, calling: Calling) -> nn.Module:
    """The model as it is to be called with images of the dtype `gives`.

    That is the model itself where nothing about it is special.
    """
    if calling.scale is None and calling == Calling(calling.gives, calling.gives):
        return model
    return Called(model, calling)


class Called(nn.Module):
    """A model that is called as a `Calling` says."""

    def __init__(self, model: nn.Module, calling: Calling) -> None:
        super().__init__()
        self.model, self.calling = model, calling
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x).to(self.calling.gives)

    def logits(self, x: Tensor) -> Tensor:
        """The logits (n, classes) of the dtype in which the model returns them."""
        if self.calling.scale is not None:
            x = x.double() * self.calling.scale.to(x.device)
        x = x.to(self.calling.takes)
        parts = [x] if self.calling.size is None else x.split(self.calling.size)
        logits = [self._part(part) for part in parts]
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _part(self, x: Tensor) -> Tensor:
        missing = 0 if self.calling.size is None else self.calling.size - len(x)
        if missing:
            x = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
        if self.calling.isolated:
            logits: Tensor = _Isolated.apply(x, self._read)  # type: ignore[no-untyped-call]
        else:
            logits = self._read(x)
        return logits[: len(logits) - missing]

    def _read(self, x: Tensor) -> Tensor:
        return self.calling.reading(self.model(x), len(x))


class _Isolated(torch.autograd.Function):
    """A call with a graph of its own, which a plain backward pass goes through.

    Reentrant checkpoints refuse `torch.autograd.grad`, and models that use gradients themselves
    refuse `torch.no_grad`.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            logits = call(leaf.clone())  # no operation may work on a leaf in place
        ctx.leaf, ctx.logits = leaf, logits
        if not logits.requires_grad:
            ctx.mark_non_differentiable(logits)
        return logits.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        ctx.leaf.grad = None
        # In another thread, since torch takes a pass inside of `torch.autograd.grad` for a part of
        # that.
        with ThreadPoolExecutor(1) as thread:
            backward = partial(torch.autograd.backward, ctx.logits, gradient, retain_graph=True)
            thread.submit(backward).result()
        return ctx.leaf.grad, None
