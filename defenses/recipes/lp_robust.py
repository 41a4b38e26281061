"""Training on proven bounds: the LP-robust model of Kolter and Wong, and CROWN-IBP."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from attacks import ThreatModel
from attacks.threat import Norm
from defenses.graphs.tracing import Program
from defenses.networks.architectures import Shape
from defenses.recipes.adversarial_examples import AdversarialExamples
from defenses.recipes.batches import Batch, Epoch
from defenses.recipes.projections import estimated_units
from defenses.recipes.recipe import Recipe
from defenses.verification.balls import Ball
from defenses.verification.bounds import bound_units, interval_bounds, lower_bounds, margins

Bounds = Literal["dual", "crown-ibp"]

_USUAL_START = 0.01

# What each network computes, read once.
_PROGRAMS: WeakKeyDictionary[nn.Module, Program] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class LPRobust(Recipe):
    """A network trained on a bound of its loss over all perturbations, from the dual of a linear
    program (Kolter and Wong 2017, "Provable defenses against adversarial examples via the convex
    outer adversarial polytope", as Ding et al. (2019), appendix B.2, use it).

    The loss is the cross-entropy of the least by which the label leads each other class.

    norm, eps    of the threat to train against, linf or l2; default: those of the run's threat.
    start, ramp  eps grows from `start` (0.01, or eps where that is smaller) to its value in the
                 first part `ramp` of all steps. So it needs epochs: with few, the ramp is steep and
                 training may end at chance.
    bounds       "dual": of that linear program; "crown-ibp": a mixture of CROWN's bounds and of
                 intervals, from the former alone to the latter alone in the ramp (Zhang et al.
                 2020, "Towards Stable and Efficient Training of Verifiably Robust Neural
                 Networks", section 3.2), which is much faster.
    projections  with "dual", hidden units are bounded by estimates from so many random projections
                 (Wong et al. 2018, "Scaling provable adversarial defenses", section 3.2), which are
                 faster on wide networks and hold up to chance; 0: exactly.

    Raises ValueError for hyperparameters out of range, for networks with batch norm, whose
    statistics bounds do not learn, and, by `trains_against`, where neither the recipe nor the run
    says what to train against, and where `start` is above that eps.

    Differs from the source: eps grows at each step, not at each epoch; perturbed images stay in the
    box; hidden units are bounded again only where intervals leave them unstable.

    >>> recipe = LPRobust(norm="linf", eps=0.3, epochs=100)
    >>> recipe.radius(0.25, 0.3)
    0.155
    """

    arch: str = "cnn2"
    epochs: int = 100
    batch: int = 50
    norm: Norm | None = None
    eps: float | None = None
    start: float = _USUAL_START
    ramp: float = 0.5
    bounds: Bounds = "dual"
    projections: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in (None, "linf", "l2"):
            raise ValueError(f"bounds are for linf and l2, not {self.norm}")
        if self.bounds not in get_args(Bounds):
            raise ValueError(f"unknown bounds {self.bounds!r}: use dual or crown-ibp")
        if not (self.start >= 0 and 0 <= self.ramp <= 1 and self.projections >= 0):
            raise ValueError("start and projections must be at least 0, and ramp in [0, 1]")
        if self.projections and self.bounds != "dual":
            raise ValueError("projections are for the bounds dual")
        ThreatModel(self.norm or "linf", 1.0 if self.eps is None else self.eps)

    @property
    def _examples(self) -> AdversarialExamples:
        return AdversarialExamples(norm=self.norm, eps=self.eps)

    def build(self, shape: Shape, classes: int) -> nn.Module:
        model = super().build(shape, classes)
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules()):
            raise ValueError(
                f"{self.arch} has batch norm, whose statistics bounds do not learn: use cnn2, "
                "lenet5 or mlp"
            )
        return model

    def trains_against(self, threat: ThreatModel | None) -> ThreatModel:
        against = self._examples.trains_against(threat)
        if self.start > against.eps and self.start != _USUAL_START:
            raise ValueError(
                f"start {self.start:g} is above eps {against.eps:g}, to which it grows"
            )
        return against

    def radius(self, progress: float, eps: float) -> float:
        """The eps of a step, where a part `progress` of all steps has been taken."""
        done = min(1.0, progress / self.ramp) if self.ramp else 1.0
        return min(self.start, eps) * (1 - done) + eps * done

    def batches(self, model: nn.Module, x: Tensor, y: Tensor, epoch: Epoch) -> Iterator[Batch]:
        for step, batch in enumerate(super().batches(model, x, y, epoch), 1):
            done = epoch.number + step / len(epoch.split)
            yield replace(batch, progress=done / epoch.epochs)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        threat = self.trains_against(batch.threat)
        threat = replace(threat, eps=self.radius(batch.progress, threat.eps))
        leads = self._leads(model, batch, threat)
        # The label's own lead over itself is 0.
        logits = torch.cat([torch.zeros_like(leads[:, :1]), -leads], 1)
        return nn.functional.cross_entropy(logits, torch.zeros_like(batch.y))

    def _leads(self, model: nn.Module, batch: Batch, threat: ThreatModel) -> Tensor:
        """Bounds (n, classes - 1) of how far labels lead over the ball."""
        if model not in _PROGRAMS:
            _PROGRAMS[model] = Program(model, tuple(batch.x.shape[1:]))
        graph = _PROGRAMS[model].graph(model)
        ball = Ball.around(batch.x[:, None], threat)
        last = len(graph.nodes)
        rows = margins(batch.y, graph.shape_of(last)[1], batch.x.dtype)
        if self.bounds == "dual":
            if self.projections:
                units = estimated_units(graph, ball, self.projections)
            else:
                units = bound_units(graph, ball, choice="parallel", proven=False)
            return lower_bounds(units, last, rows)
        units = bound_units(graph, ball, refined=False, proven=False)
        share = 1 - min(1.0, batch.progress / self.ramp) if self.ramp else 0.0
        leads = (1 - share) * interval_bounds(units, rows)
        return leads + share * lower_bounds(units, last, rows) if share else leads
