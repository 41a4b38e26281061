"""The adversarial examples that a recipe trains on."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from attacks import PGD, Problem, ThreatModel
from attacks.objectives import Objective, cross_entropy
from attacks.threat import Norm
from defenses.networks.modes import evaluating
from defenses.recipes.batches import Batch
from defenses.recipes.recipe import Recipe

# What adversarial examples climb: an objective, given the model in eval mode and the clean images.
Climb = Callable[[nn.Module, Tensor], Objective]


def label_loss(model: nn.Module, x: Tensor) -> Objective:
    """The cross-entropy of the label, whatever the model says of the clean images."""
    return cross_entropy


@dataclass(frozen=True, kw_only=True)
class AdversarialExamples:
    """Crafts adversarial examples by PGD (Madry et al. 2018), with the warm-up of RoBin (section 5,
    "Training Procedure").

    norm, eps  of the threat to train against; None: those of the run's threat.
    steps      of PGD, from a random start; step_size as there.
    warm_up    in epoch t of T, only the part 1 - (1 + cos(pi * t / T)) / 2 of each batch is
               adversarial; without it, all of it.
    climbs     what PGD climbs.

    Raises ValueError for hyperparameters out of range and, by `trains_against`, where neither the
    recipe nor the run says what to train against.

    Differs from the source: examples are crafted on the model in eval mode, because an attacker
    meets it so, dropout would blur the gradients, and half-made examples would move the running
    statistics of batch normalisation.

    Unstated there: whether t counts from 0 or 1. Here from 1, so that the last epoch, and a single
    one too, is wholly adversarial.
    """

    norm: Norm | None = None
    eps: float | None = None
    steps: int = 10
    step_size: float | None = None
    warm_up: bool = True
    climbs: Climb = label_loss

    def __post_init__(self) -> None:
        # Built only to refuse bad values; what is left to the run has a stand-in.
        PGD(steps=self.steps, step_size=self.step_size)
        ThreatModel(
            "linf" if self.norm is None else self.norm, 1.0 if self.eps is None else self.eps
        )

    def trains_against(self, threat: ThreatModel | None) -> ThreatModel:
        """The threat of the examples, given that of the run."""
        norm = self.norm or (threat.norm if threat else None)
        # An eps says nothing in another norm.
        eps = self.eps or (threat.eps if threat and threat.norm == norm else None)
        if norm is None or eps is None:
            raise ValueError(
                "adversarial training: give norm and eps, as options or as --norm and --eps"
            )
        return replace(threat, norm=norm, eps=eps) if threat else ThreatModel(norm, eps)

    def proportion(self, progress: float) -> float:
        """The part of each batch that is adversarial, at t / T = `progress`."""
        return 1 - (1 + math.cos(math.pi * progress)) / 2 if self.warm_up else 1.0

    def count(self, batch: Batch) -> int:
        """How many of the batch's samples are adversarial; they are its first."""
        networks = batch.networks
        return networks * round(self.proportion(batch.progress) * len(batch.x) / networks)

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Adversarial points (n, *shape) for all of the batch."""
        threat = self.trains_against(batch.threat)
        problem = Problem(model, batch.x, batch.y, threat, batch.seed, batch.index)
        with evaluating(model):
            attack = PGD(steps=self.steps, step_size=self.step_size)
            return attack.maximise(problem, batch.step, self.climbs(model, batch.x))

    def mix(self, model: nn.Module, batch: Batch) -> Tensor:
        """The batch's images (n, *shape), the first of them replaced by adversarial points."""
        count = self.count(batch)
        if not count:
            return batch.x
        return torch.cat([self.craft(model, batch.first(count)), batch.x[count:]])


@dataclass(frozen=True, kw_only=True)
class TrainsOnExamples(Recipe):
    """A recipe that trains on adversarial examples. Its options say which, as those of
    `AdversarialExamples` do; a recipe derived from it says what they climb and when it uses them.

    Raises ValueError for hyperparameters out of range.
    """

    norm: Norm | None = None
    eps: float | None = None
    steps: int = 10
    step_size: float | None = None
    warm_up: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.examples  # noqa: B018 (built here so that its bad values are refused now)

    @property
    def climbs(self) -> Climb:
        """What the examples climb."""
        return label_loss

    @cached_property
    def examples(self) -> AdversarialExamples:
        """The adversarial examples that it trains on."""
        return AdversarialExamples(
            norm=self.norm,
            eps=self.eps,
            steps=self.steps,
            step_size=self.step_size,
            warm_up=self.warm_up,
            climbs=self.climbs,
        )
