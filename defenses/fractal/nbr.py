"""Neural belief reasoners, and how their subtasks are trained: with poor man's adversarial training
(Qian 2021, "Robustness via fractal divide and fractal aggregation", sections 2 and 3)."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from attacks import ThreatModel
from defenses.fractal.belief import Frame, Rule
from defenses.fractal.division import HARD, IN, OUT
from defenses.fractal.ensemble import BeliefEnsemble
from defenses.fractal.memory import Memory
from defenses.fractal.tuning import train_each
from defenses.networks.architectures import Shape
from defenses.nonexpansive.scalings import SCALINGS
from defenses.nonexpansive.stacks import STACKS, build_stack
from defenses.recipes.batches import Batch
from defenses.recipes.recipe import Recipe

# The part of the epochs after which training sets stay as they are.
_SETTLED = 0.6


@dataclass(frozen=True, kw_only=True)
class NBR(Recipe):
    """Neural belief reasoner: one subtask for each binary frame of discernment.

    frames       such as "1+7+9-3+5+8,4-9": labels 1, 7, 9 against 3, 5, 8, and 4 against 9;
                 default: all pairs of labels (for ten labels that is the source's NBR-45).
    rule         how evidence is combined over frames: "sum" (Dempster's rule) or "minimum"
                 (equation (10)).
    offset       adversarial offset: by how much an output is moved against the label before the
                 loss; default: the eps of an L2 run.
    hard_offset  the offset of difficult samples, which are those whose margin is below it after
                 three fifths of the epochs; default: offset.
    sharpness    t of the loss softplus(-t m) / t of a shifted output m.
    balanced     weigh either group of a subtask by the fraction of the other group's data that the
                 subtask is trained on, so that dividing one group's data does not tip the balance.
    slope        s, and reliability, b, of all subtasks.
    arch         "mlp", "deep" or "conv", see `build_stack`; "default" is "mlp".
    scaling      of the weights, a name in `defenses.nonexpansive.scalings.SCALINGS`.
    reserve      the fraction of the training data, evenly spread, that is kept from the subtasks.
                 In the end each subtask's s and b are trained on it, see `train_each`. 0: all
                 subtasks have the s and b that are given. It needs an offset.
    memorise     for each frame, how many of the most difficult samples of its training sets are
                 taken out of them when they settle. Each becomes a memorization subtask in a frame
                 of its own: see `defenses.fractal.memory`. A sample is the more difficult, the less
                 sure the surest of the subtasks is that are trained on it.

    Raises ValueError for hyperparameters out of range and, by `trains_against`, where there is
    neither an offset nor an L2 threat.

    Differs from the source: the default scaling makes orthonormal rows, which keep more of the
    distances than the source's W / sqrt(b(W)) ("bound") does.
    """

    epochs: int = 20
    batch: int = 256
    learning_rate: float = 1e-2
    schedule: str = "cosine"
    scaling: str = "cayley"
    frames: str | None = None
    rule: Rule = "sum"
    offset: float | None = None
    hard_offset: float | None = None
    sharpness: float = 3.0
    balanced: bool = False
    slope: float = 5.0
    reliability: float = 0.9
    reserve: float = 0.0
    memorise: int = 0

    ensemble: ClassVar[type[BeliefEnsemble]] = BeliefEnsemble
    needs_float32: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arch not in ("default", *STACKS) or self.scaling not in SCALINGS:
            archs, scalings = ", ".join(["default", *STACKS]), ", ".join(SCALINGS)
            raise ValueError(f"arch is one of {archs}, scaling one of {scalings}")
        if self.rule not in get_args(Rule):
            raise ValueError(f"unknown rule {self.rule!r}: use one of {', '.join(get_args(Rule))}")
        if not (self.sharpness > 0 and self.slope > 0 and 0 < self.reliability <= 1):
            raise ValueError("sharpness and slope must be above 0, reliability in (0, 1]")
        for offset in (self.offset, self.hard_offset):
            if offset is not None and not offset >= 0:
                raise ValueError(f"offset and hard_offset must be at least 0, not {offset}")
        if not (0 <= self.reserve < 1 and self.memorise >= 0):
            raise ValueError("reserve must be in [0, 1), memorise at least 0")
        if self.reserve and self.offset is None:
            raise ValueError("reserve needs an offset: give offset")
        if self.memorise and self.settled >= self.epochs:
            raise ValueError("memorise needs training sets that settle: give 2 epochs or more")

    def trains_against(self, threat: ThreatModel | None) -> ThreatModel | None:
        if self.offset is not None:
            return None
        if threat is None or threat.norm != "l2":
            raise ValueError("give an offset: there is no L2 eps to take it from")
        return threat

    @property
    def settled(self) -> int:
        """The epoch from which training sets stay as they are."""
        return round(_SETTLED * self.epochs)

    def offsets(self, threat: ThreatModel | None, roles: Tensor) -> Tensor:
        """The adversarial offset of each role."""
        offset = self.offset if threat is None else threat.eps
        assert offset is not None
        hard = offset if self.hard_offset is None else self.hard_offset
        return torch.tensor([0.0, offset, hard], device=roles.device)[roles.long()]

    def structure(self, classes: int) -> list[Frame]:
        """The frames, with their levels."""
        if self.frames is None:
            return [Frame((a,), (b,)) for a in range(classes) for b in range(a + 1, classes)]
        frames = parse_frames(self.frames, classes)
        for label in range(classes):
            if not any(label in (*frame.first, *frame.second) for frame in frames):
                raise ValueError(
                    f"label {label} is in no frame, so nothing speaks against it: add one with it"
                )
        return frames

    def build(self, shape: Shape, classes: int) -> nn.Module:
        frames = self.structure(classes)
        count = sum(sum(frame.levels) for frame in frames)
        arch = "mlp" if self.arch == "default" else self.arch
        memories = [replace(frame, levels=(1,)) for frame in frames for _ in range(self.memorise)]
        return self.ensemble(
            [*frames, *memories],
            classes,
            build_stack(arch, shape, count, widen=self.widen, scaling=self.scaling),
            slope=self.slope,
            reliability=self.reliability,
            rule=self.rule,
            memory=Memory(len(memories), shape) if memories else None,
        )

    def reserved(self, y: Tensor) -> Tensor:
        """Which of the training samples, labels y (n,), are kept from the subtasks: bool (n,)."""
        before = torch.arange(len(y) + 1, dtype=torch.float64, device=y.device) * self.reserve
        return before.floor().diff() > 0

    def begin_epoch(self, model: nn.Module, x: Tensor, y: Tensor, epoch: int) -> None:
        ensemble = cast(BeliefEnsemble, model)
        roles = self.roles(ensemble, x, y, epoch)
        if self.memorise and epoch == self.settled:
            roles = ensemble.division.roles.clone() if roles is None else roles
            self.remember(ensemble, roles, x, y)
        if roles is not None:
            ensemble.divide(roles, y, self.reserved(y))

    def roles(self, ensemble: BeliefEnsemble, x: Tensor, y: Tensor, epoch: int) -> Tensor | None:
        """The roles (k, n) that the training samples, images x (n, *shape) and labels y (n,), have
        from this epoch on; None where they stay as they were."""
        if epoch == 0:
            in_frame = ensemble.signs(y)[: ensemble.trained] != 0
            return (in_frame & ~self.reserved(y)) * torch.tensor(
                IN, dtype=torch.uint8, device=y.device
            )
        if epoch != self.settled or self.hard_offset is None:
            return None
        roles = ensemble.division.roles
        margins = _margins(ensemble, x, y)
        return roles.masked_fill((margins < self.hard_offset) & (roles != OUT), HARD)

    def finish(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        ensemble = cast(BeliefEnsemble, model)
        if self.reserve and self.offset is not None:
            reserved = self.reserved(y)
            train_each(ensemble, ensemble.outputs_of(x[reserved]), y[reserved], self.offset)
        ensemble.division.forget()

    def remember(self, ensemble: BeliefEnsemble, roles: Tensor, x: Tensor, y: Tensor) -> None:
        """Fill the ensemble's memory, and take what it holds out of the roles (k, n)."""
        assert ensemble.memory is not None
        margins = _margins(ensemble, x, y).masked_fill(roles == OUT, -math.inf)
        # Those of the memories come last.
        frames = len(ensemble.frames) - len(ensemble.memory.signs)
        for number, rows in enumerate(ensemble.rows[:frames]):
            signs = ensemble.signs(y)[rows.start].masked_fill(self.reserved(y), 0)
            groups = {sign: x[signs == sign] for sign in (1, -1)}
            if not all(map(len, groups.values())):
                continue
            # The most difficult samples of the frame that any of its subtasks is trained on.
            sureness = margins[rows].amax(0)
            order = sureness.argsort(stable=True)
            difficult = order[sureness[order] > -math.inf][: self.memorise]
            for place, sample in enumerate(difficult.tolist(), number * self.memorise):
                sign = int(signs[sample])
                ensemble.memory.keep(place, x[sample], groups[-sign], sign)
                # A memory has seen one sample of its own group, and all of the other.
                seen = {sign: 1 / len(groups[sign]), -sign: 1.0}
                fractions = ensemble.fractions.new_tensor([seen[1], seen[-1]])
                ensemble.fractions[ensemble.trained + place] = fractions
            roles[rows.start : rows.stop, difficult] = OUT

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        ensemble = cast(BeliefEnsemble, model)
        # Each subtask runs on its own members of the batch alone.
        roles, chosen = ensemble.division.of(batch.index)
        signs = ensemble.signs(batch.y)[: ensemble.trained].gather(1, chosen)
        margins = signs * ensemble.subtasks(batch.x[chosen]).squeeze(2)
        # Poor man's adversarial training: the margin is lowered by as much as an attack could.
        offsets = self.offsets(batch.threat, roles)
        losses = softplus(self.sharpness * (offsets - margins)) / self.sharpness
        weights = (roles != OUT).to(losses)
        if self.balanced:
            first, second = ensemble.fractions[: ensemble.trained, :, None].unbind(1)
            other = torch.where(signs > 0, second, first)
            both = (first + second).clamp_min(torch.finfo(other.dtype).tiny)
            weights = weights * 2 * other / both
        return (losses * weights).sum() / len(batch.y)


def _margins(ensemble: BeliefEnsemble, x: Tensor, y: Tensor) -> Tensor:
    """The margins (k, n) by which trained subtasks speak for the labels y (n,) at images x
    (n, *shape)."""
    trained = slice(ensemble.trained)
    return ensemble.signs(y)[trained] * ensemble.outputs_of(x, trained).T


def parse_frames(text: str, classes: int) -> list[Frame]:
    """The frames that a text in the form of `NBR.frames` says. Raises ValueError where it is not in
    that form, or where a label is not one of the classes."""
    frames = []
    for part in text.split(","):
        try:
            first, second = (tuple(int(i) for i in group.split("+")) for group in part.split("-"))
        except ValueError as error:
            raise ValueError(f"a frame is written as 4-9 or 1+7+9-3+5+8, not {part!r}") from error
        if not all(0 <= label < classes for label in (*first, *second)):
            raise ValueError(
                f"frame {part}: labels are the numbers from 0 to {classes - 1}, in the data's order"
            )
        frames.append(Frame(first, second))
    return frames
