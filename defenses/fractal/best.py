"""The best of the eight fractal structures of three levels (Qian 2021, "Robustness via fractal
divide and fractal aggregation", section 3.2)."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from defenses.fractal.belief import Frame
from defenses.fractal.ensemble import BeliefEnsemble
from defenses.fractal.fractal_recipe import VARIANTS, Fractal
from defenses.nonexpansive.stacks import Stack


class BestEnsemble(BeliefEnsemble):
    """Eight ensembles, one after the other, with equally many subtasks each. Only the one that is
    `chosen` answers: the networks of the others do not run, and their outputs are 0. While `chosen`
    is None, all of them answer."""

    chosen: int | None = None

    def choose(self, outputs: Tensor, y: Tensor, offset: float) -> None:
        """Choose the ensemble that predicts the most samples, outputs (n, k) and labels y (n,),
        and keeps them for certain under the offset; the first of equally good ones."""
        whole = self.fractions.clone()
        eighths = (self.trained // VARIANTS, (len(whole) - self.trained) // VARIANTS)
        # Which ensemble each subtask belongs to: those that are trained, then the memories.
        numbers = torch.arange(VARIANTS, device=whole.device)
        owner = torch.cat([numbers.repeat_interleave(size) for size in eighths])

        def take(variant: int) -> float:
            """The share that one ensemble keeps, while the others are silent."""
            # A subtask that was trained on nothing says nothing.
            self.fractions.copy_(whole * (owner == variant).to(whole)[:, None])
            return self.share_kept(outputs, y, offset)

        shares = [take(variant) for variant in range(VARIANTS)]
        self.chosen = shares.index(max(shares))
        take(self.chosen)

    def outputs(self, x: Tensor) -> Tensor:
        if self.chosen is None:
            return super().outputs(x)
        size = self.trained // VARIANTS
        start = self.chosen * size
        rows = slice(start, start + size)
        chosen = cast(Stack, self.subtasks).some(x[None], rows).squeeze(2).T
        outputs = nn.functional.pad(chosen, (start, self.trained - start - size))
        return outputs if self.memory is None else torch.cat([outputs, self.memory(x)], dim=1)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(-1 if self.chosen is None else self.chosen)

    def set_extra_state(self, state: Tensor) -> None:
        self.chosen = int(state) if state >= 0 else None


@dataclass(frozen=True, kw_only=True)
class BestFractal(Fractal):
    """Fractal in all eight variants, of which the best is kept: the one that predicts the most
    training images and keeps them for certain under the offset.

    All variants are trained together and saved, so `variant` stays at 0. Where structures take the
    place of only some subtasks, each variant has its own of the others too, which costs eight times
    as much for those.

    Raises ValueError as `Fractal`, and where there is no offset.

    Unstated in the source: how the best is found. Where there are several structures, all have the
    same variant.
    """

    ensemble: ClassVar[type[BeliefEnsemble]] = BestEnsemble

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.offset is None:
            raise ValueError("the best is chosen by its offset: give offset")
        if self.variant:
            raise ValueError("all variants are trained: leave variant at 0")

    def structure(self, classes: int) -> list[Frame]:
        return [
            frame
            for variant in range(VARIANTS)
            for frame in Fractal(
                frames=self.frames, replaced=self.replaced, levels=self.levels, variant=variant
            ).structure(classes)
        ]

    def variant_of(self, ensemble: BeliefEnsemble, rows: slice) -> int:
        return int(rows.start * VARIANTS // ensemble.trained)

    def finish(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        assert self.offset is not None
        ensemble = cast(BestEnsemble, model)
        ensemble.choose(ensemble.outputs_of(x), y, self.offset)
        super().finish(model, x, y)
