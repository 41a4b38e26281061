"""Adversarial training with PGD."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attacks import PGD, Problem, ThreatModel
from attacks.threat import Norm
from defenses.recipe import Batch, Recipe


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(Recipe):
    """Madry et al. (2018), with the warm-up of RoBin (section 5, "Training Procedure").

    norm, eps  of the threat to train against; default: those of the run's threat.
    steps      of PGD, from a random start; step_size as there.
    warm_up    in epoch t of T, only the part 1 - (1 + cos(pi * t / T)) / 2 of each batch is
               adversarial; without it, all of it.

    Raises ValueError for hyperparameters out of range and, by `trains_against`, where neither the
    recipe nor the run says what to train against.

    Differs from the source: examples are crafted on the model in eval mode.

    Unstated there: whether t counts from 0 or 1. Here from 1, so that the last epoch, and a single
    one too, is wholly adversarial.
    """

    norm: Norm | None = None
    eps: float | None = None
    steps: int = 10
    step_size: float | None = None
    warm_up: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        # Built only to refuse bad values; what is left to the run has a stand-in.
        PGD(steps=self.steps, step_size=self.step_size)
        ThreatModel(
            "linf" if self.norm is None else self.norm, 1.0 if self.eps is None else self.eps
        )

    def trains_against(self, threat: ThreatModel | None) -> ThreatModel:
        norm = self.norm or (threat.norm if threat else None)
        # An eps says nothing in another norm.
        eps = self.eps or (threat.eps if threat and threat.norm == norm else None)
        if norm is None or eps is None:
            raise ValueError("adversarial training: give norm and eps: the run's threat does not")
        return replace(threat, norm=norm, eps=eps) if threat else ThreatModel(norm, eps)

    def proportion(self, progress: float) -> float:
        """The part of each batch that is adversarial, at t / T = `progress`."""
        return 1 - (1 + math.cos(math.pi * progress)) / 2 if self.warm_up else 1.0

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Adversarial points (n, *shape) for all of the batch, found on the model in eval mode."""
        threat = self.trains_against(batch.threat)
        problem = Problem(model, batch.x, batch.y, threat, batch.seed, batch.index)
        with evaluating(model):
            return PGD(steps=self.steps, step_size=self.step_size).maximise(problem, batch.step)

    def mix(self, model: nn.Module, batch: Batch) -> Tensor:
        """The batch's images (n, *shape), the first of them replaced by adversarial points."""
        count = round(self.proportion(batch.progress) * len(batch.x))
        if not count:
            return batch.x
        return torch.cat([self.craft(model, batch.first(count)), batch.x[count:]])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(self.mix(model, batch)), batch.y)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and each of its modules back in its own mode after.

    Examples are crafted so because an attacker meets the model in eval mode, dropout would blur the
    gradients, and half-made examples would move the running statistics of batch normalisation.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
