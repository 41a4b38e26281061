"""Pixels as angles, which may be any number and never leave the box (Carlini and Wagner 2017,
section V B, with the sine in place of the hyperbolic tangent)."""

import math

from torch import Tensor

from attacks.threat import ThreatModel, per_sample


def half_width(threat: ThreatModel) -> float | Tensor:
    """Half of the box's width: how far a pixel moves at most as its angle changes by 1."""
    return (threat.upper - threat.lower) / 2


def to_angle(x: Tensor, threat: ThreatModel, wall: Tensor) -> Tensor:
    """The angles whose sine gives images x (n, *shape), at least `wall` (n,) from the ends of the
    box, where the sine is flat."""
    unit = (x - threat.lower) / half_width(threat) - 1
    unit = unit.nan_to_num(0)  # of pixels that can have one value alone
    edge = per_sample(math.pi / 2 - wall, x)
    return unit.clamp(-1, 1).asin().maximum(-edge).minimum(edge)


def from_angle(angle: Tensor, threat: ThreatModel) -> Tensor:
    """The images (n, *shape) that angles stand for, in the box."""
    return threat.clamp((angle.sin() + 1) * half_width(threat) + threat.lower)
