"""Attacks against canaries: which of them they break, and where at least a flag says that not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from tabulate import tabulate
from torch import nn

from attacks.threat import Norm
from benchmark.canaries.masks import CANARIES
from benchmark.columns import eps_text
from benchmark.data.sets import load_dataset
from benchmark.direct.evaluate import evaluate
from benchmark.errors import UserError, did_you_mean
from defenses import Vanilla, initialise, train

EPS: dict[Norm, float] = {"l2": 0.5, "linf": 0.1, "l1": 2.0}

# How much more robust than its twin a canary may seem: by a sample or two, or by more where its
# function is another one.
TOLERANCE, OTHERWISE = 0.04, 0.06

# The flags that say that a figure is not to be believed, or holds for one draw alone.
WARNINGS = frozenset(
    {
        "zero-gradient", "no-ascent", "large-eps", "gradient-free", "non-deterministic",
        "contradiction", "nan", "probabilities", "coarse-logits", "attack-error",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What an attack found of a canary.

    canary, attack  their names.
    level           robust accuracy of the unmasked twin under `strong`.
    robust          that of the canary under the attack.
    warnings        the flags that say that it is not to be believed.
    error           why the attack failed; empty where it did not.
    """

    canary: str
    attack: str
    level: float
    robust: float
    warnings: tuple[str, ...]
    error: str = ""

    @property
    def is_broken(self) -> bool:
        """Whether the attack broke the canary to the level of its twin."""
        slack = OTHERWISE if CANARIES[self.canary].changes else TOLERANCE
        return self.robust <= self.level + slack and not (self.canary == LIAR and self.warnings)

    @property
    def is_fooled(self) -> bool:
        """Whether neither the attack nor a flag sees through the canary."""
        return not self.is_broken and not self.warnings

    @property
    def text(self) -> str:
        """Robust accuracy in %, and whether that is flagged or wrong."""
        if self.error:
            return "error"
        figure = f"{100 * self.robust:.0f}"
        if self.is_broken:
            return figure
        return f"{figure} ({', '.join(self.warnings)})" if self.warnings else f"{figure} FOOLED"


# Its robustness is that of its twin, and what it certifies is not.
LIAR = "lying-certificate"


@cache
def twins() -> tuple[nn.Sequential, ...]:
    """Three plain networks, trained on digits from different seeds."""
    digits = load_dataset("digits")
    networks = []
    for seed in range(3):
        model = initialise(Vanilla(epochs=10), digits.shape, digits.classes, seed)
        train(Vanilla(epochs=10), model, digits.train.x[:], digits.train.y, threat=None, seed=seed)
        assert isinstance(model, nn.Sequential)
        networks.append(model.eval())
    return tuple(networks)


def qualify(
    attacks: Sequence[str], norm: Norm = "l2", samples: int = 60, names: Sequence[str] = ()
) -> Iterator[Outcome]:
    """Attack each canary by each attack, and yield what came of it.

    samples  how many of digits' test images.
    names    of the canaries; default: all.

    Raises UserError for a canary that there is not, and as `evaluate` does.
    """
    for name in names:
        if name not in CANARIES:
            hint = did_you_mean(name, CANARIES, f"use one of {', '.join(CANARIES)}")
            raise UserError(f"no canary {name!r}: {hint}")
    test, eps = load_dataset("digits").first("test", samples), EPS[norm]
    x, y = test.x, test.y
    level = evaluate(twins()[0], x, y, norm=norm, eps=eps, suite="strong").best_attack
    for name in names or CANARIES:
        for attack in attacks:
            model = CANARIES[name].build(twins()).eval()
            report = evaluate(model, x, y, norm=norm, eps=eps, attacks=[attack])
            warnings = tuple(sorted(WARNINGS & report.flags.keys()))
            reason = "; ".join(dict.fromkeys(report.errors.values()))
            yield Outcome(name, attack, level, report.best_attack, warnings, reason)


def tabulated(outcomes: Sequence[Outcome]) -> str:
    """A table of canaries against attacks, as Markdown."""
    attacks = list(dict.fromkeys(outcome.attack for outcome in outcomes))
    rows: dict[str, list[str]] = {}
    for outcome in outcomes:
        row = rows.setdefault(outcome.canary, [outcome.canary, CANARIES[outcome.canary].about])
        row.append(outcome.text)
    fooled = [sum(of.is_fooled for of in outcomes if of.attack == attack) for attack in attacks]
    last = ["**fooled by**", f"of {len(rows)}", *map(str, fooled)]
    lines = [*rows.values(), last]
    return tabulate(lines, ["canary", "what it does", *attacks], "github", disable_numparse=True)


def explained(outcomes: Sequence[Outcome], norm: Norm, samples: int) -> str:
    """What the figures of a table are, and why attacks failed, a line each."""
    lines = [
        f"Robust accuracy in % over {samples} digits test images, {norm} eps "
        f"{eps_text(EPS[norm])}; that of the unmasked twin under strong: "
        f"{100 * outcomes[0].level:.0f}. A canary counts as broken where at most "
        f"{100 * TOLERANCE:.0f} points more are left, or "
        f"{100 * OTHERWISE:.0f} where its mask makes it another function."
    ]
    failed: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        if outcome.error:
            failed.setdefault((outcome.attack, outcome.error), []).append(outcome.canary)
    lines += [f"{attack} failed on {', '.join(on)}: {why}" for (attack, why), on in failed.items()]
    return "\n".join(lines)
