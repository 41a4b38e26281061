"""Attacks that run another attack: toward each class, on arms or stages, from another model."""

from attacks.wrappers.arms import (
    AverageGradient,
    BestArm,
    HasArms,
    HighestArm,
    SoftmaxAttack,
    SoftmaxTop2,
    Top2,
)
from attacks.wrappers.robin import RoBinEvaluation
from attacks.wrappers.smoothed import BPDA, Smoothed
from attacks.wrappers.stages import HasStages, Hierarchical
from attacks.wrappers.targeted import Targeted
from attacks.wrappers.transfer import HasSurrogate, Seeded, Transfer
from attacks.wrappers.wrapper import Wrapper

__all__ = [
    "BPDA",
    "AverageGradient",
    "BestArm",
    "HasArms",
    "HasStages",
    "HasSurrogate",
    "Hierarchical",
    "HighestArm",
    "RoBinEvaluation",
    "Seeded",
    "Smoothed",
    "SoftmaxAttack",
    "SoftmaxTop2",
    "Targeted",
    "Top2",
    "Transfer",
    "Wrapper",
]
