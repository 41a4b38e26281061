"""Fractal classifiers: training sets formed by fractal divide (Qian 2021, "Robustness via fractal
divide and fractal aggregation", section 3).

`Fractal` is an `NBR` (nbr.py) that divides the training data of some frames among several subtasks
(division.py) and changes the division while it trains. The network is a `BeliefEnsemble`
(ensemble.py), which combines what the subtasks say by belief functions (belief.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from defenses.fractal.belief import Frame, Rule
from defenses.fractal.division import OUT, by_clusters, depth_of, depths, nested, one_level
from defenses.fractal.ensemble import BeliefEnsemble
from defenses.fractal.nbr import NBR, parse_frames

# The part of the epochs in which the division by pixels stays, and that in which each level is a
# structure by itself.
_FIRST, _ALONE = 0.1, 0.3

# How many structures of three levels there are.
VARIANTS = 8


@dataclass(frozen=True, kw_only=True)
class Fractal(NBR):
    """A fractal classifier: an NBR in which fractal structures of several subtasks take the place
    of single ones.

    levels     how many subtasks each level of a structure has, as in "4+4+4".
    replaced   the frames that become fractal structures, in the form of `frames`, as in "4-9,7-9";
               default: all.
    variant    0 to 7: which of the eight structures of three levels (figure 2): plus 1 if they
               begin with the second group; plus 2 and plus 4 if the two parts of the data of the
               first and of the second group are exchanged.
    every      epochs from one re-partition to the next.

    Raises as `NBR`.

    Differs from the source: subtasks go on with the weights from when each level was a structure by
    itself, the third level's too. Unstated there: how a partition begins (here by k-means on
    pixels) and until when it changes (here until the last two fifths of the epochs).
    """

    rule: Rule = "minimum"
    levels: str = "4+4+4"
    replaced: str | None = None
    variant: int = 0
    every: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.variant < VARIANTS or self.every < 1:
            raise ValueError("variant is from 0 to 7, every at least 1")
        if self.epochs < 3:
            raise ValueError("a fractal structure forms in 3 epochs or more: give epochs=3 or more")
        self.sizes()

    def sizes(self) -> tuple[int, ...]:
        """The subtasks of each level, beginning with one that splits the first group."""
        try:
            sizes = tuple(int(size) for size in self.levels.split("+"))
        except ValueError as error:
            raise ValueError(f"levels are numbers as in 4+4+4, not {self.levels!r}") from error
        if min(sizes) < 1:
            raise ValueError(f"each level needs at least one subtask, not {self.levels!r}")
        return (0, *sizes) if self.variant & 1 else sizes

    def structure(self, classes: int) -> list[Frame]:
        frames = super().structure(classes)
        if self.replaced is None:
            return [replace(frame, levels=self.sizes()) for frame in frames]
        chosen = parse_frames(self.replaced, classes)
        for frame in chosen:
            if frame not in frames:
                raise ValueError(f"replaced {frame.first}-{frame.second} is none of the frames")
        return [
            replace(frame, levels=self.sizes()) if frame in chosen else frame for frame in frames
        ]

    def variant_of(self, ensemble: BeliefEnsemble, rows: slice) -> int:
        """The variant of the structure of some of an ensemble's subtasks."""
        return self.variant

    def roles(self, ensemble: BeliefEnsemble, x: Tensor, y: Tensor, epoch: int) -> Tensor | None:
        roles = super().roles(ensemble, x, y, epoch)
        again = self._first <= epoch < self.settled and (epoch - self._alone) % self.every == 0
        if not (epoch == 0 or epoch == self._alone or again):
            return roles
        roles = ensemble.division.roles.clone() if roles is None else roles
        for frame, rows in zip(ensemble.frames, ensemble.rows, strict=True):
            if sum(frame.levels) > 1:
                # The frame's own data, without what is kept from all subtasks.
                signs = ensemble.signs(y)[rows.start].masked_fill(self.reserved(y), 0)
                data = signs.nonzero().squeeze(1)
                sides, before = (signs[data] < 0).long(), roles[rows][:, data]
                members = self._divide(ensemble, frame.levels, rows, x[data], sides, before, epoch)
                roles[rows.start : rows.stop, data] = members.to(roles)
        return roles

    @property
    def _first(self) -> int:
        """The epoch until when the division by pixels stays."""
        return round(_FIRST * self.epochs)

    @property
    def _alone(self) -> int:
        """The epoch until when each level is a structure by itself."""
        return round(_ALONE * self.epochs)

    def _divide(
        self,
        ensemble: BeliefEnsemble,
        levels: Sequence[int],
        rows: slice,
        x: Tensor,
        sides: Tensor,
        roles: Tensor,
        epoch: int,
    ) -> Tensor:
        """The members (k, n) of a structure's subtasks `rows` from this epoch on, given its data:
        images x (n, *shape), their sides (n,), and the roles (k, n) that they had."""
        pixels = x.flatten(1)
        # At first each level is a structure by itself, and splits its data by their pixels.
        if epoch == 0:
            return one_level(levels, sides, by_clusters(levels, sides, pixels))
        # Then it splits them by what its subtasks say of them.
        if epoch < self._alone:
            return one_level(levels, sides, ensemble.outputs_of(x, rows))
        # Then the levels become one structure. It begins by pixels, because the outputs would give
        # all of a part to the subtask that stands for it.
        if epoch == self._alone:
            variant = self.variant_of(ensemble, rows)
            swapped = (bool(variant & 2), bool(variant & 4))
            depth = depths(levels, sides, ensemble.outputs_of(x, rows), swapped)
            return nested(levels, sides, depth, by_clusters(levels, sides, pixels, depth))
        # From then on each sample stays in its level, and goes to the subtask that is surest of it.
        depth = depth_of(levels, sides, roles != OUT)
        return nested(levels, sides, depth, ensemble.outputs_of(x, rows))
