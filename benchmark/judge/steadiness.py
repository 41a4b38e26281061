"""Whether a model gives an image the same logits again, and in other company."""

import random
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attacks.objectives import decided
from benchmark.judge.replica import reseed

Kind = Literal["random", "batch-dependent"]

# Images that a model is tried on, at most, and the calls in which randomness must show.
IMAGES, _REPEATS, _MORE = 24, 2, 24

# Logits that differ by less than this part of the largest, by so many units of the coarsest
# precision that may be in them, or by so many times what a small change of the images does to them,
# differ by rounding.
_LEAST, _UNITS, _TIMES = 1e-4, 4.0, 10.0
_NUDGE, _MOST = 2.0**-16, 0.01

# Logits of a twin in float64 that differ by more than this part of the largest are no rounding.
_TWIN = 1e-3

# A logit that varies from image to image by less than this part of itself is a constant.
_VARYING = 1e-3

# The share of images whose classes may be lost in rounding.
_LOST = 0.05

# Points of attacks may be where rounding does more than at the images that it was measured on.
_LOOSER = 10.0


class UnsteadyError(Exception):
    """A model turned out, while it was judged, to be random or to depend on the batch."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(kind)
        self.kind = kind


def call(model: nn.Module, x: Tensor) -> Tensor:
    """The logits (n, classes) at images x (n, *shape), which stay as they are."""
    with torch.no_grad():
        logits: Tensor = model(x.clone(memory_format=torch.contiguous_format))
    return logits.clone()  # the model may write its next logits into the same tensor


def is_random(model: nn.Module, x: Tensor) -> bool:
    """Whether a model gives the same images different logits in different calls.

    The images are tried as they are, in a few numbers, and as noise. Where the model draws from a
    global generator of random numbers, it is tried more often, because it may use what it draws
    only now and then.
    """
    tried = [x, x[:1], x[: len(x) // 2 + 1], torch.rand_like(x)]
    before = _generators()
    if any(_varies(model, images, _REPEATS) for images in tried):
        return True
    return _generators() != before and any(_varies(model, images, _MORE) for images in tried)


def _attempt(model: nn.Module, x: Tensor) -> Tensor | None:
    """The logits at images; None where the model does not run on so many."""
    try:
        return call(model, x)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None


def _varies(model: nn.Module, x: Tensor, repeats: int) -> bool:
    calls = (_attempt(model, x) for _ in range(repeats))
    logits = [of_call for of_call in calls if of_call is not None]
    return any(not same(logits[0], of_call) for of_call in logits[1:])


def same(first: Tensor, second: Tensor) -> bool:
    """Whether logits are equal, NaN included."""
    return bool(((first == second) | (first.isnan() & second.isnan())).all())


def rounding(model: nn.Module, x: Tensor) -> float:
    """How far logits may differ by rounding, as a part of the largest of an image."""
    logits = call(model, x)
    # Either way, since pixels may lie on the very edge of a step.
    nudged = (_attempt(model, x * (1 + nudge)) for nudge in (_NUDGE, -_NUDGE))
    telling = telling_of(logits)
    moved = min(
        (_apart(logits, other, telling) for other in nudged if other is not None), default=0.0
    )
    return max(_LEAST, _UNITS * unit_of(model, x), min(_MOST, _TIMES * moved))


def unit_of(model: nn.Module, x: Tensor) -> float:
    """The unit of the coarsest precision in which a model computes on some images."""
    seen = {tensor.dtype for tensor in (*model.parameters(), *model.buffers(), x)}
    with _Watching(seen):
        call(model, x)
    return max(torch.finfo(kind).eps for kind in seen if kind.is_floating_point)


class _Watching(TorchDispatchMode):
    """Notes the dtypes of all that torch computes."""

    def __init__(self, seen: set[torch.dtype]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        tensors = outputs if isinstance(outputs, tuple | list) else (outputs,)
        self._seen |= {tensor.dtype for tensor in tensors if isinstance(tensor, Tensor)}
        return outputs


def depends_on_batch(model: nn.Module, x: Tensor, slack: float) -> bool:
    """Whether the logits of an image change with the images that are forwarded beside it.

    The images are tried in other order, alone, in smaller batches and among noise.
    """
    x = x[:IMAGES]
    together, others = call(model, x), torch.rand_like(x)
    telling = telling_of(together)
    place = torch.arange(len(x), device=x.device)
    first, last, some = place[:1], place[-1:], place[len(x) // 2 :]
    # Batches, and which images are where in them.
    trials = [
        (x.flip(0), place, place.flip(0)),
        *((x[one], place[:1], one) for one in place[:4].split(1)),
        (x[some], place[: len(some)], some),
        (torch.cat([others[1:], x[last]]), last, last),
        (torch.cat([x[first], others, x[last]]), torch.cat([first, last + 2]), place[[0, -1]]),
    ]
    for batch, within, which in trials:
        logits = _attempt(model, batch)
        if logits is not None and _apart(logits[within], together[which], telling) > slack:
            return True
    return False


def answers_otherwise(model: nn.Module, x: Tensor, slack: float) -> bool:
    """Whether the logits at images are others where gradients are asked for."""
    known = call(model, x)
    try:
        with torch.enable_grad():
            logits = model(x.clone(memory_format=torch.contiguous_format).requires_grad_())
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return False  # attacks will say why
    return _apart(known, logits.detach(), telling_of(known)) > slack


def hears_others(model: nn.Module, x: Tensor, seed: int) -> bool:
    """Whether the logits of an image under a randomised model change with the images beside it,
    while what the model draws is the same."""

    def first(images: Tensor) -> Tensor | None:
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        reseed(model, seed)
        return _attempt(model, images)

    known = first(x)
    among_others = first(torch.cat([x[:1], torch.rand_like(x[1:])]))
    again = first(x)
    if known is None or again is None or among_others is None:
        return False
    # Equal to the last bit, or else the seed does not decide what it draws.
    telling = telling_of(known)
    return same(known[:1], again[:1]) and _apart(known[:1], among_others[:1], telling) > _LEAST


def in_twin(model: nn.Module, twin_of: Callable[[], nn.Module], x: Tensor) -> Tensor | None:
    """The logits of a model's twin in float64 at images; None where that is another function than
    the model, as far as the images tell."""
    if unit_of(model, x) > torch.finfo(torch.float32).eps:
        return None
    twin = twin_of()
    known, logits = call(model, x), call(twin, x.double())
    if known.shape != logits.shape or _apart(known, logits, telling_of(known)) > _TWIN:
        return None
    return logits


def swallows(logits: Tensor) -> bool:
    """Whether logits in float64 are so much larger than their differences that attacks cannot tell
    the classes of some images apart."""
    (best, second), places = logits.topk(2, dim=1).values.T, logits.topk(2, dim=1).indices
    told = best - second > _UNITS * torch.finfo(torch.float64).eps * best.abs().maximum(
        second.abs()
    )
    lost = told & ~decided(logits, places[:, 1])
    return float(lost.double().mean()) > _LOST


def differ(
    first: Tensor,
    second: Tensor,
    slack: float,
    telling: Tensor | None = None,
    usual: float = 0.0,
) -> bool:
    """Whether logits of the same points differ by more than rounding can explain. `telling` and
    `usual` are those of the model's logits at clean images: where all points lie at a boundary,
    all their logits may be near 0."""
    return _apart(first, second, telling, usual) > _LOOSER * slack


def usual_size(logits: Tensor, telling: Tensor) -> float:
    """How large the largest of the telling logits (n, classes) is at half of the images."""
    sizes = (logits.double().nan_to_num(0, 0, 0).abs() * telling).amax(1)
    return float(sizes.median()) if len(sizes) else 0.0


def telling_of(logits: Tensor) -> Tensor:
    """The classes, bool (classes,), whose logits (n, classes) tell how large the numbers are that a
    model computes with: not one that is the same for all images, as one that is masked by -1e9 is.
    All where there is no other, as for one image."""
    finite = logits.double().nan_to_num(0, 0, 0)
    apart = (finite - finite.mean(0)).abs().amax(0)
    told = apart > _VARYING * finite.abs().amax(0)
    return told if bool(told.any()) else torch.ones_like(told)


def _apart(
    first: Tensor, second: Tensor, telling: Tensor | None = None, usual: float = 0.0
) -> float:
    """The largest difference of finite logits (n, classes), as a part of the largest of its image
    among those that are `telling` (classes,), by default all; or of half of the images, or `usual`,
    where that is larger, because at a boundary all logits may be near 0. It is infinite where only
    one of two logits is finite, or their numbers differ."""
    if first.shape != second.shape:
        return float("inf")
    finite = first.isfinite() & second.isfinite()
    alike = (first == second) | (first.isnan() & second.isnan())
    if not bool((finite | alike).all()):
        return float("inf")
    first, second = (torch.where(finite, side.double(), 0.0) for side in (first, second))
    size = first.abs().maximum(second.abs())
    counted = size if telling is None else size * telling
    largest = counted.amax(1, keepdim=True)
    largest = largest.maximum(largest.median()).clamp_min(usual) if len(largest) else largest
    apart = (first - second).abs() / largest.maximum(size).clamp_min(1e-300)
    return float(apart.amax()) if apart.numel() else 0.0


def _generators() -> tuple[Any, ...]:
    """The states of the global generators of random numbers."""
    of_numpy = np.random.get_state()
    states: list[Any] = [torch.get_rng_state().numpy().tobytes(), random.getstate()]
    states += [of_numpy[1].tobytes(), of_numpy[2]]  # type: ignore[index]
    if torch.cuda.is_initialized():
        states += [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    return tuple(states)
