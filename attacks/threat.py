"""The geometry of a threat model: a norm ball around each image, intersected with the input box."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from attacks import noise

Norm = Literal["l2", "linf", "l1"]
NORMS: tuple[Norm, ...] = get_args(Norm)

# The order of each norm, and of its dual.
_ORDERS: dict[Norm, tuple[float, float]] = {
    "l2": (2, 2),
    "linf": (math.inf, 1),
    "l1": (1, math.inf),
}

# Larger eps would overflow in float32, where they are multiplied.
_LARGEST = 1e30

# Squares of numbers that are not much larger underflow in float32.
_SQUARES_UNDERFLOW = 1e-16

# Rounds of `ThreatModel.project` that win back what clipping to the box took from the L2 budget.
_REFILLS = 2

# Rounds in which the threshold of the L1 projection is found: enough but for budgets far below what
# is projected, where the rest is scaled.
_THRESHOLDS = 10


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """View values of shape (n,) so that they broadcast over `like` of shape (n, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class ThreatModel:
    """All points within `eps` of an image, in the given norm, whose pixels stay in the box.

    `eps` and the bounds `lower` <= `upper` are in the units of the image. Bounds may be tensors
    that broadcast to it. Raises ValueError, in one line, for an unknown norm, eps that is not above
    0 and at most 1e30, or an empty or infinite box.

    >>> threat = ThreatModel("l2", 0.5)
    >>> x, points = torch.tensor([[0.25, 0.5]]), torch.tensor([[1.25, 0.5]])
    >>> threat.distance(points, x)
    tensor([1.], dtype=torch.float64)
    >>> threat.project(points, x)
    tensor([[0.7500, 0.5000]])
    >>> ThreatModel("l0", 0.5)
    Traceback (most recent call last):
    ValueError: unknown norm 'l0': use one of l2, linf, l1
    """

    norm: Norm
    eps: float
    lower: float | Tensor = 0.0
    upper: float | Tensor = 1.0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"unknown norm {self.norm!r}: use one of {', '.join(NORMS)}")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be above 0 and finite, not {self.eps}")
        if self.eps > _LARGEST:
            raise ValueError(f"eps must be at most {_LARGEST:g}, not {self.eps}")
        lower, upper = self._bounds()
        low, high = float(lower.min()), float(upper.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"the box must be finite, not [{low}, {high}]")
        if bool((lower > upper).any()) or not low < high:
            raise ValueError(f"the box [{low}, {high}] is empty")

    def _bounds(self) -> tuple[Tensor, Tensor]:
        """The bounds as tensors of one shape, on the device of those that are tensors."""
        sides = [torch.as_tensor(side, dtype=torch.float64) for side in (self.lower, self.upper)]
        device = max(sides, key=Tensor.dim).device
        lower, upper = torch.broadcast_tensors(*(side.to(device) for side in sides))
        return lower, upper

    def length(self, delta: Tensor) -> Tensor:
        """The norm of each perturbation: (n, ...) to (n,)."""
        order, _ = _ORDERS[self.norm]
        length: Tensor = torch.linalg.vector_norm(delta.flatten(1), order, dim=1)
        return length

    def dual_length(self, gradient: Tensor) -> Tensor:
        """What a unit step gains at most, by the gradient: its dual norm, (n, ...) to (n,)."""
        _, order = _ORDERS[self.norm]
        flat = self._free(gradient).flatten(1)
        length: Tensor = torch.linalg.vector_norm(flat, order, dim=1)
        if order != 2 or gradient.dtype == torch.float64:
            return length
        # The squares of a tiny gradient underflow in float32, and those of a huge one overflow.
        exact = torch.linalg.vector_norm(flat, order, dim=1, dtype=torch.float64)
        lost = (length < _SQUARES_UNDERFLOW) | length.isinf()
        return torch.where(lost, exact.to(length.dtype), length)

    def _free(self, gradient: Tensor) -> Tensor:
        """A gradient that is 0 at the pixels that can have one value alone."""
        if isinstance(self.lower, Tensor) and isinstance(self.upper, Tensor):
            return torch.where((self.lower < self.upper).to(gradient.device), gradient, 0.0)
        return gradient

    def distance(self, points: Tensor, x: Tensor) -> Tensor:
        """The distance of each point from its image, in float64: (n, ...) twice to (n,)."""
        return self.length(points.double() - x.double())

    def clamp(self, points: Tensor) -> Tensor:
        """The nearest points in the box."""
        lower, upper = self.lower, self.upper
        if isinstance(lower, Tensor) or isinstance(upper, Tensor):
            low, high = (side.to(points) for side in self._bounds())
            return points.clamp(low, high)
        return points.clamp(lower, upper)

    def around(self, x: Tensor, frozen: Tensor | None = None) -> "ThreatModel":
        """The threat around images x (n, *shape), with bounds of their dtype and on their device.

        frozen  (*shape), bool: the pixels that must keep their values; bounds are then those of
                each image. None: there are none.
        """
        if frozen is None and not isinstance(self.lower + self.upper, Tensor):
            return self
        lower, upper = (side.to(x) for side in self._bounds())
        if frozen is not None:
            frozen = frozen.to(x.device)
            lower, upper = torch.where(frozen, x, lower), torch.where(frozen, x, upper)
        return replace(self, lower=lower, upper=upper)

    def is_beside(self, x: Tensor) -> bool:
        """Whether the bounds are numbers, or tensors of the dtype of images x and on their device,
        which need not be moved at each step."""
        sides = [side for side in (self.lower, self.upper) if isinstance(side, Tensor)]
        fitting = [side for side in sides if (side.dtype, side.device) == (x.dtype, x.device)]
        return not sides or len(fitting) == 2

    def select(self, keep: Tensor, dims: int) -> "ThreatModel":
        """The threat around some of the images, of so many dimensions: `keep` is bool (n,) or
        positions. It is this one unless bounds are those of each image."""
        if not isinstance(self.lower, Tensor) or self.lower.dim() < dims:
            return self
        assert isinstance(self.upper, Tensor)  # as `around` makes it
        # Not checked again, which nothing that is selected needs, and no samples would not pass.
        selected = copy.copy(self)
        object.__setattr__(selected, "lower", self.lower[keep])
        object.__setattr__(selected, "upper", self.upper[keep])
        return selected

    @property
    def width(self) -> float:
        """The largest difference of two values that a pixel may have."""
        lower, upper = self._bounds()
        return float((upper - lower).max())

    @property
    def hull(self) -> tuple[float, float]:
        """The least and the largest value that any pixel may have."""
        lower, upper = self._bounds()
        return float(lower.min()), float(upper.max())

    def ascent(self, gradient: Tensor) -> Tensor:
        """The unit step (in this norm) that climbs a gradient fastest; zero where it is zero."""
        gradient = self._free(gradient)
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l1":
            flat = gradient.flatten(1)
            place = flat.abs().argmax(1, keepdim=True)
            step = torch.zeros_like(flat).scatter(1, place, flat.gather(1, place).sign())
            return step.view_as(gradient)
        return self._unit(gradient)

    def _unit(self, direction: Tensor) -> Tensor:
        """Directions (n, ...) of length 1; zero where they are zero."""
        # Dividing by the largest entry first keeps the squares of tiny ones above underflow.
        tiny = torch.finfo(direction.dtype).tiny
        largest = direction.flatten(1).abs().amax(1).clamp_min(tiny)
        scaled = direction / per_sample(largest, direction)
        return scaled / per_sample(self.length(scaled).clamp_min(tiny), direction)

    def advance(self, points: Tensor, gradient: Tensor, size: float | Tensor, x: Tensor) -> Tensor:
        """The points (n, *shape) after the step of length `size`, one or (n, 1, ...), that climbs a
        gradient fastest, projected around x. Under L1, the step fastest within the box: one pixel
        after the other, the steepest first, goes to its bound, until the length is spent, which is
        eps at most."""
        if self.norm != "l1":
            return self.project(points + size * self.ascent(gradient), x)
        steepness, order = self._free(gradient).flatten(1).abs().sort(1, descending=True)
        room = torch.where(gradient > 0, self.upper - points, self.lower - points).flatten(1)
        room = torch.where(steepness > 0, room.gather(1, order), 0.0)
        length = size if isinstance(size, Tensor) else points.new_full((1,), size)
        length = length.clamp_max(self.eps).view(-1, 1)
        spent = room.abs().cumsum(1) - room.abs()
        step = room.sign() * room.abs().minimum((length - spent).clamp_min(0))
        return self.project(points + torch.zeros_like(step).scatter(1, order, step).view_as(x), x)

    def edge(self, x: Tensor, direction: Tensor) -> Tensor:
        """The points in a direction, of images x (n, *shape) each, that spend all of the budget
        where the box lets them."""
        # Twice as far as the ball: the projection gives to other pixels what the box takes.
        far = 2 * self.eps * self._unit(self._free(direction))
        return self.project(x + far, x) if self.norm == "linf" else self._scaled(x, far)

    def project(self, points: Tensor, x: Tensor) -> Tensor:
        """Points of the ball and the box near the given ones, up to float rounding.

        Linf: the Euclidean projection. L2: that projection is clip(x + t * (points - x)) with the
        largest t <= 1 that stays in the ball; t is approached from below, so the result is always
        inside. Scaling to the ball and then clipping alone would waste the budget of every pixel
        that the box stops. L1: the Euclidean projection of the nearest points in the box, which
        takes the same from the perturbation of each pixel that has as much. `x` must lie in the
        box.
        """
        if self.norm == "linf":
            points = torch.minimum(torch.maximum(points, x - self.eps), x + self.eps)
            return self.clamp(points)
        if self.norm == "l1":
            return self._thresholded(self.clamp(points), x)
        return self._scaled(x, points - x)

    def _scaled(self, x: Tensor, delta: Tensor) -> Tensor:
        """clip(x + t * delta) with the largest t <= 1 that stays in the ball."""
        reach = self.length(delta).clamp_min(torch.finfo(x.dtype).tiny)
        t = (self.eps / reach).clamp_max(1.0)
        inside = self._along(x, delta, t)
        for _ in range(_REFILLS):
            used = self.length(inside.sub_(x)).clamp_min(torch.finfo(x.dtype).tiny)
            t = (t * (self.eps / used)).clamp_max(1.0)
            inside = self._along(x, delta, t)
        return inside

    def _thresholded(self, points: Tensor, x: Tensor) -> Tensor:
        """The Euclidean projection of points in the box onto the L1 ball (Duchi et al. 2008).

        What is taken from all pixels is found without sorting (Michelot 1986): it is raised until
        what is left of those that have more fits the ball.
        """
        delta = (points - x).flatten(1)
        sizes = delta.abs()
        taken = sizes.new_zeros(len(sizes), 1)
        for _ in range(_THRESHOLDS):
            left = (sizes - taken).clamp_min_(0)
            excess = left.sum(1, keepdim=True) - self.eps
            count = (left > 0).sum(1, keepdim=True).clamp_min(1)
            taken = (taken + excess / count).clamp_min_(0)
        left = (sizes - taken).clamp_min_(0)
        scale = self.eps / left.sum(1, keepdim=True).clamp_min(self.eps)
        inside = x + (delta.sign() * left * scale).view_as(x)
        return torch.where(per_sample((taken > 0).squeeze(1), x), self.clamp(inside), points)

    def _along(self, x: Tensor, delta: Tensor, t: Tensor) -> Tensor:
        """clip(x + t * delta), in one new tensor."""
        points = torch.addcmul(x, delta, per_sample(t, x))
        if isinstance(self.lower, Tensor) or isinstance(self.upper, Tensor):
            return self.clamp(points)
        return points.clamp_(self.lower, self.upper)

    def enforce(self, points: Tensor, x: Tensor) -> Tensor:
        """Points that are in the ball and the box without any tolerance.

        `project` is right up to float rounding; here the distance in float64 between the returned
        float32 or float64 numbers and `x` is at most eps. Points already inside come back as they
        are.
        """
        points = self.clamp(points)
        if self.norm == "linf":
            return self._enforce_linf(points, x)
        reach = self.distance(points, x)
        # Rounding to the image's own precision moves a pixel by at most half a unit in the last
        # place of the largest value that the box allows.
        unit, lower, upper = torch.finfo(x.dtype).eps, self.lower, self.upper
        if self.norm == "l1" or isinstance(lower, Tensor) or isinstance(upper, Tensor):
            # Only of the pixels that move: others may be many, or far larger than eps. Numbers near
            # 0 have an absolute unit. The distance itself is a rounded sum.
            sizes = points.abs().maximum(x.abs()).clamp_min(torch.finfo(x.dtype).tiny)
            moved = self.length(torch.where(points == x, 0, sizes).double())
            summed = 1 - x.shape[1:].numel() * torch.finfo(torch.float64).eps
            radius = (self.eps * summed - unit * moved).clamp_min(0)
        else:
            rounding = unit * max(abs(lower), abs(upper)) * math.sqrt(x.shape[1:].numel())
            radius = torch.full_like(reach, max(self.eps - rounding, 0.0))
        scale = torch.where(reach > self.eps, radius / reach.clamp_min(1e-300), 1.0)
        delta = (points.double() - x.double()) * per_sample(scale, x)
        shrunk = self.clamp((x.double() + delta).to(x.dtype))
        return torch.where(per_sample(reach > self.eps, x), shrunk, points)

    def _enforce_linf(self, points: Tensor, x: Tensor) -> Tensor:
        exact = x.double()
        low, high = (exact - self.eps).to(x.dtype), (exact + self.eps).to(x.dtype)
        up, down = torch.full_like(x, math.inf), torch.full_like(x, -math.inf)
        low = torch.where(exact - low.double() > self.eps, torch.nextafter(low, up), low)
        high = torch.where(high.double() - exact > self.eps, torch.nextafter(high, down), high)
        return torch.minimum(torch.maximum(points, low), high)

    def random_start(self, x: Tensor, seed: int, index: Tensor, stream: int) -> Tensor:
        """Points uniform in the ball around each image, clipped to the box.

        `index` (n,) holds each sample's number in its data set; noise depends on it, on `seed` and
        on `stream` alone.
        """
        shape = tuple(x.shape[1:])
        if self.norm == "linf":
            offset = noise.uniform(seed, index, stream, shape).to(x.dtype) * 2 - 1
        elif self.norm == "l1":
            # Exponential sizes over their sum with one more (Barthe et al. 2005).
            draws = noise.uniform(seed, index, stream, (2 * x.shape[1:].numel() + 1,)).double()
            signs, sizes = (
                draws[:, x.shape[1:].numel() + 1 :],
                -draws[:, : x.shape[1:].numel() + 1].log(),
            )
            parts = sizes[:, 1:] / sizes.sum(1, keepdim=True)
            offset = torch.where(signs < 0.5, -parts, parts).to(x.dtype).view_as(x)
        else:
            # In float64: the float32 sum of squares depends on the batch that it is computed in.
            direction = noise.normal(seed, index, stream, shape).double()
            radius = noise.uniform(seed, index, stream, ()).double() ** (1 / x.shape[1:].numel())
            offset = (direction * per_sample(radius / self.length(direction), x)).to(x.dtype)
        return self.clamp(x + self.eps * offset)
