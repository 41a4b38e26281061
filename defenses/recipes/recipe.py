"""Recipes: the network of a defense, its loss, and how the loss is minimised."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from attacks import ThreatModel
from defenses.networks.architectures import Shape, build_architecture
from defenses.recipes.batches import Batch, Epoch
from defenses.recipes.schedules import SCHEDULES

OptimizerName = Literal["adam", "sgd"]
ComputeName = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """How a defense is built and trained: its hyperparameters, and what is done with them.

    arch           a name in ARCHITECTURES or "default"; widen multiplies its widths.
    epochs         passes over the training set; 0 for a defense that needs no training.
    batch          the most samples in a batch; the sizes in an epoch differ by at most one.
    optimizer      "adam" or "sgd", which have learning_rate and weight_decay; momentum is for sgd.
    schedule       of the learning rate, per step: a name in `defenses.recipes.schedules.SCHEDULES`,
                   which are "constant", "step", "two-steps", "cosine" and "one-cycle".
    crop           pad training images by so many zeros on each side, and cut images of the same
                   size out of them at random places.
    half           round the weights to half precision after training, and store them so. They take
                   half the space, and all measurements are of the weights that are stored.
    compute        what the network computes in while it is trained, "float32" or "bfloat16": the
                   latter is faster on processors that have it. Weights, losses and steps are in
                   float32 in either case, and so is all that is measured.
    version        raised when what the recipe makes of the same options, data and seed changes, or
                   what its networks compute.

    Raises ValueError for hyperparameters out of range.

    >>> model = Vanilla(arch="mlp", widen=0.1).build((1, 8, 8), classes=10)
    >>> tuple(model(torch.rand(2, 1, 8, 8)).shape)
    (2, 10)
    >>> Vanilla(epochs=-1)
    Traceback (most recent call last):
    ValueError: epochs and crop must be at least 0, and batch at least 1
    """

    version: ClassVar[int] = 1

    arch: str = "default"
    widen: float = 1.0
    epochs: int = 20
    batch: int = 128
    optimizer: OptimizerName = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    crop: int = 0
    half: bool = False
    compute: ComputeName = "float32"

    # Options that were added later are in neither keys nor cards where nobody gives them.
    later: ClassVar[tuple[str, ...]] = ("compute",)

    # Whether its networks promise what holds in float32 alone.
    needs_float32: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch < 1 or self.crop < 0:
            raise ValueError("epochs and crop must be at least 0, and batch at least 1")
        if not (self.learning_rate > 0 and self.momentum >= 0 and self.weight_decay >= 0):
            raise ValueError("learning_rate must be above 0, momentum and weight_decay at least 0")
        if self.optimizer not in get_args(OptimizerName):
            raise ValueError(f"unknown optimizer {self.optimizer!r}: use adam or sgd")
        if self.schedule not in SCHEDULES:
            choices = ", ".join(SCHEDULES)
            raise ValueError(f"unknown schedule {self.schedule!r}: use one of {choices}")
        if self.compute not in get_args(ComputeName):
            raise ValueError(f"unknown compute {self.compute!r}: use float32 or bfloat16")
        if self.compute != "float32" and self.needs_float32:
            raise ValueError("nonexpansive networks are computed in float32: leave compute out")

    @property
    def hint(self) -> str:
        """What to know of its options before it is trained; empty where there is nothing."""
        return ""

    @property
    def is_fitted(self) -> bool:
        """Whether the training set is needed: for epochs, or for what comes after them."""
        return self.epochs > 0 or type(self).finish is not Recipe.finish

    def settings(self) -> dict[str, Any]:
        """The options that determine what is made, but for the names of files and other models:
        what these contain is known otherwise, and they may be moved or renamed."""
        return {name: getattr(self, name) for name in self._given()}

    def hyperparameters(self) -> dict[str, Any]:
        """The options as a card has them, names of files and other models too."""
        given = self._given()
        return {name: value for name, value in asdict(self).items() if name in given}

    def _given(self) -> list[str]:
        """The names of all options, but for later ones at their defaults."""
        return [
            field.name
            for field in fields(self)
            if field.name not in self.later or getattr(self, field.name) != field.default
        ]

    def check_weights(self) -> None:  # noqa: B027 (a hook: most recipes need none)
        """Raises ValueError where what is to be attacked would be a network with random weights."""

    def rebuilding(self) -> Self:
        """The recipe that builds the network of a trained model, whose own weights are loaded
        afterwards."""
        return self

    def code(self) -> tuple[str, ...]:
        """The names of modules, besides those of the recipe's class and of the network's, whose
        source determines what the network computes."""
        return ()

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """A fresh network for images of `shape` (channels, height, width), with weights drawn from
        torch's global randomness: see `defenses.initialise`."""
        return build_architecture(self.arch, shape, classes, widen=self.widen)

    def computing(self, model: nn.Module) -> nn.Module:
        """The part of a model that computes as `compute` says; the rest is always in float32."""
        return model

    def trains_against(self, threat: ThreatModel | None) -> ThreatModel | None:
        """The threat that training depends on, given that of the run; None where it depends on
        none.

        Raises ValueError where the recipe needs a threat and has none.
        """
        return threat

    @property
    def hold_out(self) -> int:
        """How many of the training images, the last, are withheld to stop training by."""
        return 0

    def augment(self, x: Tensor) -> Tensor:
        """Training images (n, *shape) changed at random, by torch's global randomness."""
        return random_crop(x, self.crop) if self.crop else x

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar to descend on. `model` is in train mode."""

    def begin_epoch(  # noqa: B027 (a hook: most recipes need none)
        self, model: nn.Module, x: Tensor, y: Tensor, epoch: int
    ) -> None:
        """Called before each epoch, which counts from 0, in eval mode and without gradients, with
        the whole training set: images x (n, *shape) and labels y (n,), on the model's device. What
        it keeps must be in parameters or buffers, so that a resumed training finds it."""

    def batches(self, model: nn.Module, x: Tensor, y: Tensor, epoch: Epoch) -> Iterator[Batch]:
        """The batches of an epoch, one for each part of `epoch.split`, in that order. Called after
        `begin_epoch`, with the same training set. Default: the samples of each part, augmented.

        A recipe that draws samples at random does so when this is called; samples are augmented
        when their batch is taken. The loop has its own randomness for either."""
        return (
            epoch.batch(step, self.augment(x[index]), y[index], index)
            for step, index in enumerate(epoch.split)
        )

    def finish(  # noqa: B027 (likewise)
        self, model: nn.Module, x: Tensor, y: Tensor
    ) -> None:
        """Called once after the last epoch, and where there are no epochs, as `begin_epoch` is."""

    def rate(self, done: float) -> float:
        """The learning rate when a part `done`, in [0, 1), of all steps has been taken."""
        return self.learning_rate * SCHEDULES[self.schedule](done)


def random_crop(x: Tensor, padding: int) -> Tensor:
    """Move images (n, channels, height, width), each at random by at most `padding` pixels along
    either side. Zeros come in."""
    n, _, *sides = x.shape
    padded = nn.functional.pad(x, [padding] * 4)
    starts = torch.randint(2 * padding + 1, (2, n, 1), device=x.device)
    down, across = (
        start + torch.arange(side, device=x.device)
        for start, side in zip(starts, sides, strict=True)
    )
    each = torch.arange(n, device=x.device)[:, None, None]
    return padded[each, :, down[:, :, None], across[:, None]].permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True, kw_only=True)
class Plain(Recipe):
    """Cross-entropy on clean images."""

    def trains_against(self, threat: ThreatModel | None) -> ThreatModel | None:
        return None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch.x), batch.y)


@dataclass(frozen=True, kw_only=True)
class Vanilla(Plain):
    """Cross-entropy on clean images: the undefended model.

    dropout   the probability, in training, with which each input of the last fully connected layer
              is zeroed (Srivastava et al. 2014); the others are scaled up.
    hold_out  for early stopping: so many training images, the last, are withheld. Training stops
              after the first epoch in which the mean loss on them is not below that of the epoch
              before, whose weights are kept. 0: all images are trained on, to the end.

    Both are as Qian and Wegman (2019), "L2-nonexpansive neural networks", section 3.3 and appendix
    C, have them for ordinary networks. Raises ValueError for hyperparameters out of range.

    Differs from the source: the withheld images are the last, not random ones.

    Unstated there: where dropout is, and of which epoch the weights are kept.
    """

    dropout: float = 0.0
    hold_out: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        if self.hold_out < 0:
            raise ValueError(f"hold_out must be at least 0, not {self.hold_out}")

    def build(self, shape: Shape, classes: int) -> nn.Module:
        model = super().build(shape, classes)
        if self.dropout:
            _drop_before_last(model, self.dropout)
        return model


def _drop_before_last(model: nn.Module, probability: float) -> None:
    """Put dropout before the last fully connected layer, in the order of the network's modules.
    Raises ValueError where there is none."""
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ValueError("dropout needs a fully connected layer, and this network has none")
    last = model.get_submodule(layers[-1])
    model.set_submodule(layers[-1], nn.Sequential(nn.Dropout(probability), last))
