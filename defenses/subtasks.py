"""Neural belief reasoners, and how their subtasks are trained: with poor man's adversarial training
(Qian 2021, "Robustness via fractal divide and fractal aggregation", sections 2 and 3)."""

from dataclasses import dataclass
from typing import cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from attacks import ThreatModel
from defenses.architectures import Shape
from defenses.belief import Frame, Rule
from defenses.division import HARD, IN, OUT
from defenses.ensembles import BeliefEnsemble
from defenses.nonexpansive import SCALINGS
from defenses.recipe import Batch, Recipe, Schedule
from defenses.stacked_networks import build_stack

# The part of the epochs after which training sets stay as they are.
_SETTLED = 0.6


@dataclass(frozen=True, kw_only=True)
class NBR(Recipe):
    """Neural belief reasoner: one subtask for each binary frame of discernment.

    frames       such as "1+7+9-3+5+8,4-9": labels 1, 7, 9 against 3, 5, 8, and 4 against 9;
                 default: all pairs of labels (NBR-45 where there are ten).
    rule         how evidence is combined over frames: "sum" (Dempster's rule) or "minimum"
                 (equation (10)).
    offset       adversarial offset: by how much an output is moved against the label before the
                 loss; default: the eps of an L2 run.
    hard_offset  the same for difficult samples, whose margin is below it after three fifths of the
                 epochs; default: offset.
    sharpness    t of the loss softplus(-t m) / t of a shifted output m.
    slope        s of all subtasks; reliability, b of all.
    arch         "mlp" or "conv", see `build_stack`; "default" is "mlp". scaling: of the weights.

    Raises ValueError for hyperparameters out of range and, by `trains_against`, where there is
    neither an offset nor an L2 threat.

    Differs from the source: the default scaling makes orthonormal rows, which keep more of the
    distances than the source's W / sqrt(b(W)) ("bound") does.
    """

    epochs: int = 20
    batch: int = 256
    learning_rate: float = 2e-3
    schedule: Schedule = "cosine"
    scaling: str = "cayley"
    frames: str | None = None
    rule: Rule = "sum"
    offset: float | None = None
    hard_offset: float | None = None
    sharpness: float = 3.0
    slope: float = 5.0
    reliability: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arch not in ("default", "mlp", "conv") or self.scaling not in SCALINGS:
            raise ValueError(f"arch is mlp or conv, scaling one of {', '.join(SCALINGS)}")
        if self.rule not in get_args(Rule):
            raise ValueError(f"unknown rule {self.rule!r}: use one of {', '.join(get_args(Rule))}")
        if not (self.sharpness > 0 and self.slope > 0 and 0 < self.reliability <= 1):
            raise ValueError("sharpness and slope must be above 0, reliability in (0, 1]")

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

    def offsets(self, threat: ThreatModel | None) -> Tensor:
        """The adversarial offsets (3,) by role."""
        offset = self.offset if threat is None else threat.eps
        assert offset is not None
        hard = offset if self.hard_offset is None else self.hard_offset
        return torch.tensor([0.0, offset, hard])

    def structure(self, classes: int) -> list[Frame]:
        """The frames, with their levels."""
        if self.frames is None:
            return [Frame((a,), (b,)) for a in range(classes) for b in range(a + 1, classes)]
        return parse_frames(self.frames, classes)

    def build(self, shape: Shape, classes: int) -> nn.Module:
        frames = self.structure(classes)
        count = sum(sum(frame.levels) for frame in frames)
        arch = "mlp" if self.arch == "default" else self.arch
        return BeliefEnsemble(
            frames,
            classes,
            build_stack(arch, shape, count, widen=self.widen, scaling=self.scaling),
            slope=self.slope,
            reliability=self.reliability,
            rule=self.rule,
        )

    def begin_epoch(self, model: nn.Module, x: Tensor, y: Tensor, epoch: int) -> None:
        ensemble = cast(BeliefEnsemble, model)
        roles = self.roles(ensemble, x, y, epoch)
        if roles is not None:
            ensemble.divide(roles, y)

    def roles(self, ensemble: BeliefEnsemble, x: Tensor, y: Tensor, epoch: int) -> Tensor | None:
        """New roles (k, n) of the training samples, images x (n, *shape) and labels y (n,), from
        this epoch on; None where they stay as they were."""
        if epoch == 0:
            return (ensemble.signs(y) != 0) * torch.tensor(IN, dtype=torch.uint8, device=y.device)
        if epoch != self.settled or self.hard_offset is None:
            return None
        roles = ensemble.division.roles
        margins = ensemble.signs(y) * ensemble.outputs_of(x).T
        return roles.masked_fill((margins < self.hard_offset) & (roles != OUT), HARD)

    def finish(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        cast(BeliefEnsemble, model).division.forget()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        ensemble = cast(BeliefEnsemble, model)
        roles, chosen = ensemble.division.of(batch.index)
        offsets = self.offsets(batch.threat)[roles.long()]
        signs = ensemble.signs(batch.y).gather(1, chosen)
        margins = signs * ensemble.subtasks(batch.x[chosen]).squeeze(2)
        losses = softplus(self.sharpness * (offsets - margins)) / self.sharpness
        return (losses * (roles != OUT)).sum() / len(batch.y)


def parse_frames(text: str, classes: int) -> list[Frame]:
    """Frames in the form of `NBR.frames`. Raises ValueError where it is none, or a label is none of
    the classes."""
    frames = []
    for part in text.split(","):
        try:
            first, second = (tuple(int(i) for i in group.split("+")) for group in part.split("-"))
        except ValueError as error:
            raise ValueError(f"a frame is written as 4-9 or 1+7+9-3+5+8, not {part!r}") from error
        if not all(0 <= label < classes for label in (*first, *second)):
            raise ValueError(f"frame {part}: labels are from 0 to {classes - 1}")
        frames.append(Frame(first, second))
    return frames
