"""Adversarial training: with PGD, TRADES and MART."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attacks import PGD, Problem, ThreatModel
from attacks.objectives import Objective
from attacks.threat import Norm
from defenses.recipes import losses
from defenses.recipes.recipe import Batch, OptimizerName, Recipe, Schedule

Method = Literal["pgd-at", "trades", "mart"]


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(Recipe):
    """Adversarial training with PGD (Madry et al. 2018), with the warm-up and the schedule of RoBin
    (section 5, "Training Procedure").

    norm, eps  of the threat to train against; default: those of the run's threat.
    steps      of PGD, from a random start; step_size as there.
    warm_up    in epoch t of T, only the part 1 - (1 + cos(pi * t / T)) / 2 of each batch is
               adversarial; without it, all of it.
    method     "pgd-at": cross-entropy at the adversarial images; "trades" and "mart": the losses of
               those names in `defenses.recipes.losses`, with lambda, the weight of their second
               terms.

    Raises ValueError for hyperparameters out of range and, by `trains_against`, where neither the
    recipe nor the run says what to train against.

    Differs from the source: examples are crafted on the model in eval mode.

    Unstated there: SGD's momentum, here 0.9; whether TRADES and MART have the warm-up, here they
    do; whether t counts from 0 or 1. Here from 1, so that the last epoch, and a single one too, is
    wholly adversarial.
    """

    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    schedule: Schedule = "step"
    norm: Norm | None = None
    eps: float | None = None
    steps: int = 10
    step_size: float | None = None
    warm_up: bool = True
    method: Method = "pgd-at"
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise ValueError(f"unknown method {self.method!r}: use one of {known}")
        if not self.weight >= 0:
            raise ValueError(f"weight must be at least 0, not {self.weight}")
        if self.method == "pgd-at" and self.weight != 1:
            raise ValueError("weight is of trades and mart: name one of them")
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
            raise ValueError(
                "adversarial training: give norm and eps, as options or as --norm and --eps"
            )
        return replace(threat, norm=norm, eps=eps) if threat else ThreatModel(norm, eps)

    def proportion(self, progress: float) -> float:
        """The part of each batch that is adversarial, at t / T = `progress`."""
        return 1 - (1 + math.cos(math.pi * progress)) / 2 if self.warm_up else 1.0

    def craft(self, model: nn.Module, batch: Batch) -> Tensor:
        """Adversarial points (n, *shape) for all of the batch, found on the model in eval mode."""
        threat = self.trains_against(batch.threat)
        problem = Problem(model, batch.x, batch.y, threat, batch.seed, batch.index)
        with evaluating(model):
            objective = _away_from(model, batch.x) if self.method == "trades" else None
            attack = PGD(steps=self.steps, step_size=self.step_size)
            return attack.maximise(problem, batch.step, objective)

    def count(self, batch: Batch) -> int:
        """How many of the batch's samples, its first, are adversarial."""
        each = batch.networks
        return each * round(self.proportion(batch.progress) * len(batch.x) / each)

    def mix(self, model: nn.Module, batch: Batch) -> Tensor:
        """The batch's images (n, *shape), the first of them replaced by adversarial points."""
        count = self.count(batch)
        if not count:
            return batch.x
        return torch.cat([self.craft(model, batch.first(count)), batch.x[count:]])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        mixed = self.mix(model, batch)
        if self.method == "pgd-at":
            return nn.functional.cross_entropy(model(mixed), batch.y)
        # The whole batch: batch normalisation can do little with the first few images alone.
        clean, adversarial = model(batch.x), model(mixed)[: self.count(batch)]
        loss = losses.trades if self.method == "trades" else losses.mart
        return loss(clean, adversarial, batch.y, self.weight)


def _away_from(model: nn.Module, x: Tensor) -> Objective:
    """The divergence from what the model says at x (n, *shape), up to a constant: TRADES raises
    it."""
    with torch.no_grad():
        clean = model(x).softmax(1)
    return lambda logits, _: -(clean * logits.log_softmax(1)).sum(1)


@dataclass(frozen=True, kw_only=True)
class TRADES(AdversarialTraining):
    """TRADES (Zhang et al. 2019), which trades natural accuracy for robustness, by RoBin's
    schedule (section 5).

    weight  lambda of RoBin, 1 by its default; Zhang et al. use 6 (their 1 / lambda).

    Differs from the source: PGD starts uniformly in the ball, as Madry et al. (2018) do.
    """

    method: Method = field(default="trades", init=False)


@dataclass(frozen=True, kw_only=True)
class MART(AdversarialTraining):
    """Misclassification-aware adversarial training (Wang et al. 2020), by RoBin's schedule (section
    5).

    weight  lambda of RoBin, 1 by its default; Wang et al. use 5.
    """

    method: Method = field(default="mart", init=False)


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
