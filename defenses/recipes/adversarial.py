"""Adversarial training by any of the methods in `defenses.recipes.methods`."""

from dataclasses import dataclass, field, make_dataclass

from torch import Tensor, nn

from attacks import ThreatModel
from defenses.recipes.adversarial_examples import Climb, TrainsOnExamples
from defenses.recipes.batches import Batch
from defenses.recipes.methods import METHODS
from defenses.recipes.recipe import OptimizerName

# With how many epochs at most the part that the warm-up takes of them may surprise.
_FEW = 5


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(TrainsOnExamples):
    """Adversarial training with PGD (Madry et al. 2018), with the warm-up and the schedule of RoBin
    (section 5, "Training Procedure").

    norm, eps  of the threat to train against; default: those of the run's threat.
    steps      of PGD, from a random start; step_size as there.
    warm_up    in epoch t of T, only the part 1 - (1 + cos(pi * t / T)) / 2 of each batch is
               adversarial; without it, all of it.
    method     a name in `defenses.recipes.methods.METHODS`: "pgd-at", cross-entropy at the
               adversarial images, or one of the others, such as "trades" and "mart", whose losses
               have a second term, with lambda as its weight.

    Raises ValueError for hyperparameters out of range and, by `trains_against`, where neither the
    recipe nor the run says what to train against.

    Differs from the source: see `defenses.recipes.adversarial_examples.AdversarialExamples`.

    Unstated there: SGD's momentum, here 0.9; whether TRADES and MART have the warm-up, here they
    do.

    >>> recipe = AdversarialTraining(steps=7, method="trades", weight=6)
    >>> recipe.trains_against(ThreatModel("l2", 0.5))
    ThreatModel(norm='l2', eps=0.5, lower=0.0, upper=1.0)
    >>> AdversarialTraining(method="trade")
    Traceback (most recent call last):
    ValueError: unknown method 'trade': use one of pgd-at, trades, mart
    """

    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    schedule: str = "step"
    method: str = "pgd-at"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}: use one of {', '.join(METHODS)}")
        super().__post_init__()
        if not self.weight >= 0:
            raise ValueError(f"weight must be at least 0, not {self.weight}")
        if self.weight != 1 and not METHODS[self.method].takes_weight:
            weighted = [name for name, method in METHODS.items() if method.takes_weight]
            raise ValueError(f"weight is of {' and '.join(weighted)}: name one of them")

    @property
    def climbs(self) -> Climb:
        return METHODS[self.method].climbs

    @property
    def hint(self) -> str:
        if not self.warm_up or not 1 < self.epochs <= _FEW:
            return ""
        epochs = range(1, self.epochs + 1)
        share = sum(self.examples.proportion(t / self.epochs) for t in epochs) / self.epochs
        return f"the warm-up makes {share:.0%} of {self.epochs} epochs adversarial, warm_up=no all"

    def trains_against(self, threat: ThreatModel | None) -> ThreatModel:
        return self.examples.trains_against(threat)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        method, count = METHODS[self.method], self.examples.count(batch)
        mixed = self.examples.mix(model, batch)
        # All clean images: batch normalisation can do little with the first few alone.
        clean = model(batch.x) if method.clean_pass else None
        logits = model(mixed)
        return method.loss(logits if clean is None else clean, logits[:count], batch.y, self.weight)


def trained_by(name: str) -> type[AdversarialTraining]:
    """The recipe that is registered under a method's name: adversarial training by it alone."""
    return make_dataclass(
        name.upper(),
        [("method", str, field(default=name, init=False))],
        bases=(AdversarialTraining,),
        namespace={"__module__": __name__, "__doc__": METHODS[name].about},
        frozen=True,
        kw_only=True,
    )


# By the name of the method; the first is the default, and has the option to be any other.
TRAINED_BY: dict[str, type[AdversarialTraining]] = {
    name: AdversarialTraining if name == AdversarialTraining.method else trained_by(name)
    for name in METHODS
}
TRADES, MART = TRAINED_BY["trades"], TRAINED_BY["mart"]
