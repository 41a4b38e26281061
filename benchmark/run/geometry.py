"""The threat as users of `evaluate` state it: an eps and bounds for all features, or for each."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attacks import ThreatModel
from attacks.messages import described
from attacks.threat import Norm
from benchmark.columns import eps_text
from benchmark.errors import UserError
from benchmark.images import BLOCK, Images
from benchmark.judge.evaluator import Samples
from benchmark.spec.run_spec import make_threat

# How far outside the bounds samples may lie, as a part of the largest width, by rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Geometry:
    """A threat, and the units that samples are measured in.

    threat  in these units.
    frozen  (*shape), bool: the features that must not change; None: there are none.
    scale   (*shape), float64: one unit of each feature, in its own units; None: 1. Where eps
            differs by feature, it is eps over the largest eps, which then holds for all features.
    """

    threat: ThreatModel
    scale: Tensor | None = None
    frozen: Tensor | None = None

    @property
    def note(self) -> str | None:
        """What a report says of it."""
        if self.scale is None:
            if self.frozen is None:
                return None
            return f"{int(self.frozen.sum())} of {self.frozen.numel()} features must not change"
        most = self.threat.eps
        least = 0 if self.frozen is not None else float(self.scale.min()) * most
        return (
            f"eps differs by feature, from {eps_text(least)} to {eps_text(most)}; distances are in "
            f"units in which it is {eps_text(most)} for each"
        )

    def measured(self, samples: Samples) -> Samples:
        """The samples in these units. Raises UserError where some are out of the bounds."""
        x = samples.x
        if isinstance(x, Images):
            for block in x.split(BLOCK):
                self._measured(block)
            dtype = x.dtype if self.scale is None else torch.float64
            return replace(samples, x=x.changed(self._measured, dtype))
        return replace(samples, x=self._measured(x))

    def _measured(self, x: Tensor) -> Tensor:
        bounded = self._bounded(x)
        if self.scale is None:
            return bounded
        # In float64, from which multiplying gives back the very float32 numbers.
        return bounded.double() / self.scale.to(x.device)

    def _bounded(self, x: Tensor) -> Tensor:
        """Samples x (n, *shape) within the bounds, which rounding may have taken them out of."""
        scale = 1.0 if self.scale is None else self.scale.to(x.device)
        lower, upper = self.threat.lower * scale, self.threat.upper * scale
        box = replace(self.threat, lower=lower, upper=upper)
        inside = box.clamp(x)
        # Bounds that were computed, as those of normalised images are, may round otherwise than x.
        slack = 0.0 if box.hull == (0, 1) else _ROUNDING * box.width
        if bool(((x - inside).abs() <= slack).all()):
            return inside
        low, high = box.hull
        raise UserError(
            f"images must lie in [{low:g}, {high:g}], not [{float(x.min()):g}, "
            f"{float(x.max()):g}]: scale them, and put any normalisation inside the model, or pass "
            "bounds=(lower, upper)"
        )


def read_geometry(norm: Norm, eps: Any, bounds: Any, shape: tuple[int, ...]) -> Geometry:
    """A geometry for samples of some shape.

    eps     a number, a fraction as text, or one number per feature: what broadcasts to the shape.
    bounds  (lower, upper), each a number or what broadcasts to the shape; None: 0 and 1.

    Raises UserError, in one line, where they do not fit the shape or are no threat.
    """
    lower, upper = _pair(bounds, shape)
    scale = frozen = None
    if not isinstance(eps, str) and np.ndim(eps) > 0:
        by_feature = _broadcast(eps, shape, "eps")
        if not bool((by_feature >= 0).all()) or not bool((by_feature > 0).any()):
            raise UserError("eps must be at least 0 for each feature, and above 0 for some")
        eps = float(by_feature.max())
        frozen = by_feature == 0 if bool((by_feature == 0).any()) else None
        units = torch.where(by_feature == 0, 1.0, by_feature / eps)
        lower, upper = lower / units, upper / units
        scale = None if bool((units == 1).all()) else units
    threat = make_threat(norm, eps)
    if scale is None and bounds is None and frozen is None:
        return Geometry(threat)
    try:
        threat = replace(threat, lower=_plain(lower), upper=_plain(upper))
        return Geometry(threat, scale, frozen)
    except ValueError as error:
        raise UserError(str(error)) from error


def _pair(bounds: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    if bounds is None:
        bounds = (0.0, 1.0)
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise UserError("bounds must be (lower, upper), each a number or one for each feature")
    lower, upper = (_broadcast(side, shape, "bounds") for side in bounds)
    return lower, upper


def _broadcast(values: Any, shape: tuple[int, ...], name: str) -> Tensor:
    """Values as float64 (*shape). Raises UserError where they do not broadcast to it."""
    try:
        tensor = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
        return tensor.broadcast_to(shape).clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name} must broadcast to the shape of a sample, {shape}: {described(error)}"
        ) from error


def _plain(values: Tensor) -> float | Tensor:
    """One number where all values are the same."""
    first = float(values.flatten()[0])
    return first if bool((values == first).all()) else values
