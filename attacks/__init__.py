"""How a perturbation is found: attacks, each from a `Problem` to adversarial points."""

from attacks.problem import (
    Attack,
    CanMaximise,
    CanMinimise,
    Facts,
    HasVariants,
    NotApplicableError,
    Problem,
)
from attacks.searches import APGD, PGD, Boundary, CarliniWagner, Square, Strong
from attacks.threat import ThreatModel
from attacks.wrappers import (
    HasArms,
    HasStages,
    HasSurrogate,
    Seeded,
    Targeted,
    Transfer,
    Wrapper,
)

__all__ = [
    "APGD",
    "PGD",
    "Attack",
    "Boundary",
    "CanMaximise",
    "CanMinimise",
    "CarliniWagner",
    "Facts",
    "HasArms",
    "HasStages",
    "HasSurrogate",
    "HasVariants",
    "NotApplicableError",
    "Problem",
    "Seeded",
    "Square",
    "Strong",
    "Targeted",
    "ThreatModel",
    "Transfer",
    "Wrapper",
]
