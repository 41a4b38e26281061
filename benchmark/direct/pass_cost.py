"""What a forward and a backward pass of a model take, in seconds per image."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmark.judge.subject import Subject

# How long one measurement may take, in seconds, roughly.
_SECONDS = 2.0


@dataclass(frozen=True)
class Cost:
    """What a pass takes, per image.

    block     how many images were forwarded together.
    forward   seconds of a forward pass.
    backward  seconds of a backward pass; None where the model gives no gradients.
    """

    block: int
    forward: float
    backward: float | None


def cost_of(subject: Subject, x: Tensor) -> Cost:
    """What a pass of a subject takes, with as many images of a block at once as can be timed
    soon."""
    return cost_of_model(subject.victim(), x.to(subject.device, subject.dtype))


def cost_of_model(model: nn.Module, x: Tensor, seconds: float = _SECONDS) -> Cost:
    """What a pass of a model takes, with as many of some images, which lie on its device, as can be
    timed in so many seconds, roughly."""
    single = _timed(x.device, lambda: _forward(model, x[:1]))
    block = fitting(seconds, 4 * single, len(x))
    points = x[:block].clone()
    forward = _timed(x.device, lambda: _forward(model, points)) / block
    try:
        both = _timed(x.device, lambda: _backward(model, points)) / block
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return Cost(block, forward, None)
    return Cost(block, forward, max(both - forward, 0.0))


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    """The seconds that some work takes, after it was done once."""
    work()
    times = []
    for _ in range(2):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)


def _forward(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(x.clone())
    return logits


def _backward(model: nn.Module, x: Tensor) -> Tensor:
    """The gradient of the sum of all logits. Raises whatever it raises where there is none."""
    with torch.enable_grad():
        points = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(points.clone()).sum(), points)
    return gradient


def fitting(seconds: float, each: float, most: int) -> int:
    """How many images can be worked on in a time, if each takes so long: one at least."""
    return max(1, min(most, int(seconds / max(each, 1e-9))))
