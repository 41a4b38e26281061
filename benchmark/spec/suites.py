"""The suites, which are named sets of attacks."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Suite:
    """A set of attacks, each written as in a spec, and one line about them."""

    about: str
    attacks: tuple[str | dict[str, Any], ...]

    def __str__(self) -> str:
        attacks = ", ".join(map(_shown, self.attacks))
        return f"{self.about}: {attacks}" if attacks else self.about


def _shown(attack: str | dict[str, Any]) -> str:
    """An attack of a suite as text, with its options but without its label."""
    if isinstance(attack, str):
        return attack
    options = {key: value for key, value in attack.items() if key not in ("name", "label")}
    return "/".join([attack["name"], *(f"{key}={value}" for key, value in options.items())])


_ROBIN_BASES = ("pgd/steps=10", "pgd/steps=20", "cw")
_ON_ARMS = ("best-arm", "top-2", "softmax", "highest-arm", "average-gradient", "softmax-top-2")
_STAGES = ("first", "second", "first-then-second")

# Where a user names neither attacks nor a suite.
DEFAULT_SUITE = "strong"

SUITES = {
    "none": Suite("natural accuracy alone", ()),
    "quick": Suite(
        "the first stages of strong alone, in seconds",
        ({"name": "strong", "quick": True, "label": "quick"},),
    ),
    "standard": Suite(
        "PGD on two objectives, and CW", ("pgd", "pgd/objective=margin/restarts=5", "cw")
    ),
    "strong": Suite(
        "ascents on the smoothed network, restarts by promise, queries where gradients fail",
        ("strong",),
    ),
    "autoattack": Suite(
        "the standard cascade of Croce and Hein (2020), with its published settings",
        (
            {"name": "apgd", "steps": 100, "label": "APGD-CE"},
            {
                "name": "targeted:apgd",
                "objective": "dlr",
                "classes": 9,
                "steps": 100,
                "label": "APGD-T",
            },
            {
                "name": "torchattacks:FAB",
                "multi_targeted": True,
                "steps": 100,
                "n_restarts": 1,
                "label": "FAB-T",
            },
            {"name": "square", "steps": 5000, "label": "Square"},
        ),
    ),
    "fractal-paper": Suite(
        "tables 1 and 2 of the fractal classifiers' paper",
        (
            {"name": "pgd", "steps": 100, "label": "PGD"},
            {"name": "boundary", "steps": 50000, "label": "BA"},
            {"name": "cw", "steps": 10000, "label": "CW"},
            {"name": "seeded:cw", "steps": 10000, "label": "SCW"},
        ),
    ),
    "robin-paper": Suite(
        "tables 1, 3 and 4 and figure 8 of the RoBin paper: each base at its strongest, in each "
        "way on arms, on stages, and brought over from the row 'multiclass'",
        (
            *(f"robin:{base}" for base in _ROBIN_BASES),
            *(f"{head}:{base}" for base in _ROBIN_BASES for head in _ON_ARMS),
            *(f"hierarchical:pgd/steps=10/stage={stage}" for stage in _STAGES),
            "transfer:pgd/steps=20/source=multiclass",
            "transfer:pgd/steps=20/targeted/source=multiclass",
        ),
    ),
    "l2nnn-paper": Suite(
        "tables 1 and 2 of the L2NNN paper, up to a million iterations",
        (
            {"name": "cw", "steps": "100,1000,10000,100000,1000000", "label": "CW"},
            {"name": "cw", "steps": 1000, "restarts": 10, "label": "CW 1000x10"},
        ),
    ),
}
