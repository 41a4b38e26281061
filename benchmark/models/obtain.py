"""From a defense to a model, which is loaded if it was trained before, and else trained."""

import asyncio
import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

import defenses
from attacks import ThreatModel
from benchmark.data.dataset import Dataset, Split
from benchmark.errors import UserError
from benchmark.executors import IN_PROCESS, Executor, Held, Later, as_completed
from benchmark.executors.executor import Tell
from benchmark.executors.progress import underway
from benchmark.executors.resources import whole_gpu
from benchmark.folder_lock import alone_in
from benchmark.judge.records import write_json
from benchmark.keys import training_key
from benchmark.models.trained import Trained, load_into, load_saved, naming
from benchmark.spec.roster import Member
from defenses.training.epoch_log import write_log
from defenses.training.saved import CARD

# The folders that are trained into, each by one training at a time.
_homes: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

# How many images to run at once when the natural accuracy for the card is measured.
_BATCH = 512


async def obtained(
    member: Member,
    dataset: Dataset,
    threat: ThreatModel | None,
    seed: int,
    folder: Path,
    device: torch.device,
    progress: bool,
    parts: Mapping[str, Trained],
    executor: Executor,
) -> Trained:
    """Obtain the model of a defense of a run: load it, or train it if `folder` does not have it.

    threat    the threat to train against; None if the user gave none.
    folder    holds a folder for each trained model, which is named after the model's key.
    progress  whether to show a progress bar.
    parts     the models that this one is made of, by the recipe's field.

    Raises UserError for input that does not fit, SavedModelError for a folder that does not hold
    the model that it should, and TrainingError where the training fails.
    """
    if member.folder is not None:
        return load_saved(member.folder)
    training = Training(member, dataset, threat, seed, device, parts, executor.threads)
    home = training.home(folder)
    # Two rows may be one training.
    async with _homes.setdefault(home, asyncio.Lock()):
        return await training.into(home, progress, executor)


def train(
    member: Member,
    dataset: Dataset,
    threat: ThreatModel | None,
    seed: int,
    home: Path,
    device: torch.device,
    progress: bool,
    parts: Mapping[str, Trained],
) -> Trained:
    """Train a defense into the folder `home`, or load it if the folder holds it already.

    A training that was interrupted goes on from its last checkpoint in the folder. The other
    arguments are those of `obtained`. Raises UserError where the folder holds another model or
    another process works in it, and what `obtained` raises.
    """
    if member.folder is not None:
        raise UserError(f"{member.label} is trained already: name a defense")
    training = Training(member, dataset, threat, seed, device, parts, IN_PROCESS.threads)
    with alone_in(home, make=True):
        return IN_PROCESS.run(training.into(home, progress, IN_PROCESS))


class Training:
    """One training: the model before it, and the key that names the trained model.

    Raises UserError where the recipe cannot build the model.
    """

    def __init__(
        self,
        member: Member,
        dataset: Dataset,
        threat: ThreatModel | None,
        seed: int,
        device: torch.device,
        parts: Mapping[str, Trained],
        threads: int,
    ) -> None:
        assert member.recipe is not None
        self.component, self.recipe = member.component, member.recipe
        self.dataset, self.seed, self.device = dataset, seed, device
        self.parts = parts
        with naming(self.component):
            self.recipe.check_weights()
            self.threat = self.recipe.trains_against(threat)
            # The parts are copied, because training must not change them: they may be other rows
            # of the run.
            copies = {name: copy.deepcopy(part.model) for name, part in parts.items()}
            self.model = defenses.initialise(
                self.recipe, dataset.shape, dataset.classes, seed, copies
            )
        self.key = training_key(
            self.recipe, self.model, dataset, self.threat, seed, device, threads,
            {name: part.identity for name, part in parts.items()},
        )  # fmt: skip

    def home(self, folder: Path) -> Path:
        """The model's folder in a folder of models, named after the defense and the key."""
        return folder / f"{self.component.name}-{self.key[:8]}"

    async def into(self, home: Path, progress: bool, executor: Executor) -> Trained:
        """Load the trained model from `home`, or train it into that folder."""
        if kept := self.kept(home):
            return kept
        home.mkdir(parents=True, exist_ok=True)
        checkpoint = defenses.Checkpoint(home / "checkpoint.pt", self.key)
        fitted = await self._fit(checkpoint, home / "log.csv", progress, executor)
        self.model.load_state_dict(fitted.state)
        self._save(home, fitted, await self._accuracy(executor))
        checkpoint.path.unlink(missing_ok=True)
        return load_saved(home)

    def kept(self, home: Path) -> Trained | None:
        """The model in `home`; None where there is none, where it is damaged, which is warned of,
        and where it is only built, not trained. Raises UserError where it is another model."""
        if not (home / CARD).exists():
            return None
        try:
            return self._kept(home)
        except defenses.SavedModelError as error:
            damage = str(error).rpartition(": ")[0]
            warnings.warn(f"{damage}: it is trained again", stacklevel=2)
            return None

    def _kept(self, home: Path) -> Trained | None:
        """As `kept`, of a folder that holds a model. Raises SavedModelError where it is damaged."""
        card = defenses.read_card(home)
        if card.get("key") != self.key:
            raise UserError(f"{home} holds another model: name another folder, or delete it")
        # A model that is not trained but only built is always built again, which costs nothing.
        if not (self.recipe.is_fitted or isinstance(self.recipe, defenses.Derived)):
            return None
        # The code and the parts of the model may have moved since it was trained.
        origin = self._origin()
        origin["component"]["given_label"] = card["component"].get("given_label")
        if any(card.get(name) != value for name, value in origin.items()):
            write_json(home / CARD, card | origin)
        return load_into(home, self.model, self.recipe)

    async def _fit(
        self, checkpoint: defenses.Checkpoint, log: Path, progress: bool, executor: Executor
    ) -> "_Fitted":
        """Train the model, and keep its checkpoints and its log meanwhile."""
        images = None
        if self.recipe.is_fitted:
            train = self.dataset.train
            # Other hosts cannot read the files of this one.
            in_memory = isinstance(train.x, Tensor) or executor.width == 1
            images = executor.hold(train if in_memory else replace(train, x=train.x[:]))
        with (
            naming(self.component),
            _bar(self.component.label, self.recipe, progress, executor.at_work) as show,
        ):

            def hear(said: Any) -> None:
                if isinstance(said, bytes):
                    checkpoint.store(said)
                elif isinstance(said, list):
                    write_log(log, said)
                else:
                    show(said)

            return await executor.do(
                _fitted, self.recipe, self.model, images, self.threat, self.seed, self.device,
                Later(checkpoint.stored), checkpoint.key, tell=hear, share=whole_gpu(self.device),
            )  # fmt: skip

    async def _accuracy(self, executor: Executor) -> float:
        """The natural accuracy on the test split."""
        model, test, share = executor.hold(self.model), self.dataset.test, whole_gpu(self.device)
        blocks = zip(test.x.split(_BATCH), test.y.split(_BATCH), strict=True)
        works = (executor.do(_hits, model, self.device, x, y, share=share) for x, y in blocks)
        return sum([hits async for hits in as_completed(executor, works)]) / len(test.y)

    def _save(self, home: Path, fitted: "_Fitted", accuracy: float) -> None:
        """Write the weights and the card into a folder."""
        card = defenses.describe(
            self.component.label,
            self.recipe,
            data={"name": self.dataset.name, "labels": list(self.dataset.labels)},
            shape=self.dataset.shape,
            classes=self.dataset.classes,
            threat=self.threat,
            seed=self.seed,
            natural_accuracy=accuracy,
            seconds=round(fitted.seconds, 1),
            hardware=fitted.hardware,
        )
        defenses.save(home, self.model, card | self._origin(), self.recipe.half)

    def _origin(self) -> dict[str, Any]:
        """What it takes to build the model again, for its card."""
        origin = {"component": self.component.model_dump(mode="json"), "key": self.key}
        if self.parts:
            origin["parts"] = {
                name: defenses.read_card(part.folder)
                for name, part in self.parts.items()
                if part.folder is not None
            }
        return origin


@contextmanager
def _bar(
    label: str, recipe: defenses.Recipe, progress: bool, at_work: Callable[[], str]
) -> Iterator[Callable[[defenses.Progress], None]]:
    """Show how far a training is while the context lasts.

    It yields the function that is told so.
    """
    with underway(
        f"training {label}", recipe.epochs, progress, at_work, "epoch",
        "{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]",
    ) as work:  # fmt: skip

        def show(state: defenses.Progress) -> None:
            known = not math.isnan(state.accuracy)
            accuracy = f", accuracy {state.accuracy:.1%}" if known else ""
            work.update(
                state.epoch - 1 + state.step / state.steps, f"loss {state.loss:.3f}{accuracy}"
            )

        yield show


@dataclass(frozen=True)
class _Fitted:
    """A model that was trained: its weights, and the seconds that it took on some hardware."""

    state: dict[str, Tensor]
    seconds: float
    hardware: str


@dataclass(frozen=True)
class _Told(defenses.Checkpoint):
    """A checkpoint that is told to whoever asked for the training, and keeps the file."""

    sent: Held[bytes | None]
    tell: Tell

    def store(self, content: bytes) -> None:
        self.tell(content)

    def stored(self) -> bytes | None:
        return self.sent.get()


def _fitted(
    recipe: defenses.Recipe,
    model: nn.Module,
    images: Held[Split] | None,
    threat: ThreatModel | None,
    seed: int,
    device: torch.device,
    checkpoint: Held[bytes | None],
    key: str,
    tell: Tell,
) -> _Fitted:
    """Train a model on images; None for one that is only built.

    checkpoint  to go on from, where there is one.
    tell        is called with the content of checkpoints, the rows of the log, and the progress.
    """
    seconds = 0.0
    if images is not None:
        split = images.get()
        seconds = defenses.train(
            recipe, model, split.x[:], split.y, threat=threat, seed=seed, device=device,
            checkpoint=_Told(Path("checkpoint.pt"), key, checkpoint, tell), log=tell, report=tell,
        )  # fmt: skip
    if recipe.half:
        defenses.round_to_half(model)
    return _Fitted(dict(model.cpu().state_dict()), seconds, defenses.hardware_of(device))


@torch.no_grad()
def _hits(model: Held[nn.Module], device: torch.device, x: Tensor, y: Tensor, tell: Tell) -> int:
    """How many images x (n, *shape) a model classifies as labels y (n,) say."""
    del tell
    on_device = copy.deepcopy(model.get()).to(device).eval()
    return int((on_device(x.to(device)).argmax(1).cpu() == y).sum())
