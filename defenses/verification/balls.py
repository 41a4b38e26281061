"""The images that a threat allows around some images, and the least of linear functions of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks import ThreatModel

# How often the multiplier of an L2 ball is halved in on. Any multiplier gives a bound.
_HALVINGS = 40


@dataclass(frozen=True, eq=False)
class Ball:
    """The points within eps of images x (n, *shape), in a norm, and between `low` and `high`.

    low, high  (n, *shape), which hold for every entry alone.
    """

    x: Tensor
    eps: float
    norm: str
    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, x: Tensor, threat: ThreatModel) -> "Ball":
        """The ball of a threat, L-infinity or L2, in its box. Raises ValueError for another."""
        if threat.norm not in ("linf", "l2"):
            raise ValueError(f"bounds are for linf and l2, not {threat.norm}")
        eps = threat.eps
        sides = [torch.as_tensor(side).to(x) for side in (threat.lower, threat.upper)]
        # Nodes have a dimension of one image after that of images, where there are bounds of each.
        lower, upper = (side[:, None] if side.dim() == x.dim() - 1 else side for side in sides)
        low, high = (x - eps).maximum(lower), (x + eps).minimum(upper)
        return cls(x, eps, threat.norm, low, high)

    def __getitem__(self, rows: Tensor | slice) -> "Ball":
        """The balls around some of the images."""
        return Ball(self.x[rows], self.eps, self.norm, self.low[rows], self.high[rows])

    def least(self, weights: Tensor) -> Tensor:
        """A lower bound (n, s) of the sums of weights (n, s, *shape) times a point of the ball.

        Under L-infinity it is attained. Under L2 it is the dual's value, for any multiplier m > 0:
        the least of w d + m (d^2 - eps^2) over the box, which bisection makes the largest there is.
        """
        w, x = weights.flatten(2), self.x.flatten(1)[:, None]
        low, high = self.low.flatten(1)[:, None], self.high.flatten(1)[:, None]
        corner = torch.where(w > 0, low, high)
        box: Tensor = (w * corner).sum(2)
        slack = self._rounding(w.detach(), torch.maximum(low.abs(), high.abs()))
        if self.norm == "linf":
            return box - slack
        ball = (w * x).sum(2) - self.eps * _length(w).squeeze(2)
        m = self._multiplier(w.detach(), low - x, high - x)
        d = (-w.detach() / (2 * m)).clamp(low - x, high - x)
        # The least over the box of w d + m d^2, whose d does not depend on w to first order.
        both = (w * (x + d)).sum(2) + m.squeeze(2) * (d.square().sum(2) - self.eps**2)
        most: Tensor = torch.maximum(torch.maximum(box, ball), both)
        return most - 4 * slack

    def _rounding(self, w: Tensor, size: Tensor) -> Tensor:
        """What rounding may amount to in sums (n, s) of w times numbers of some size, in the
        precision of proofs; nothing is added in others.

        The dual's value has parts beside such sums, which are at most eps |w|: the multiplier is at
        most |w| / (2 eps).
        """
        if w.dtype != torch.float64:
            return w.new_zeros(w.shape[:2])
        terms = (w.shape[2] + 8) * torch.finfo(w.dtype).eps
        return terms * ((w.abs() * size).sum(2) + self.eps * _length(w).squeeze(2))

    def corner(self, weights: Tensor) -> Tensor:
        """The point (n, *shape) of the ball where the sum of weights (n, *shape) times it is least;
        under L2 nearly so."""
        if self.norm == "linf":
            return torch.where(weights > 0, self.low, self.high)
        w, x = weights.flatten(1)[:, None], self.x.flatten(1)[:, None]
        low, high = self.low.flatten(1)[:, None] - x, self.high.flatten(1)[:, None] - x
        d = (-w / (2 * self._multiplier(w, low, high))).clamp(low, high)
        point: Tensor = (x + d).view_as(weights)
        return point

    def _multiplier(self, w: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The multiplier (n, s, 1) at which the least of w d + m d^2 over a box is about eps
        long."""
        norm = _length(w)
        tiny = torch.finfo(w.dtype).tiny
        # Without the box it would be the largest; with it, it is smaller.
        most = (norm / (2 * self.eps)).clamp_min(tiny)
        least = most * torch.finfo(w.dtype).eps
        for _ in range(_HALVINGS):
            m = (least * most).sqrt()
            d = (-w / (2 * m)).clamp(low, high)
            short = torch.linalg.vector_norm(d, dim=2, keepdim=True) < self.eps
            most, least = torch.where(short, m, most), torch.where(short, least, m)
        multiplier: Tensor = most.clamp_min(tiny)
        return multiplier


def _length(w: Tensor) -> Tensor:
    """The L2 norm (n, s, 1) of the last dimension, also where squares would be too small."""
    scale = w.detach().abs().amax(2, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    length: Tensor = scale * torch.linalg.vector_norm(w / scale, dim=2, keepdim=True)
    return length
