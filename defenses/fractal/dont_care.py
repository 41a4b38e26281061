"""Don't-care conditions: the subtasks that suffice for a fractal classifier to be right, whatever
the others say (Qian 2021, "Robustness via fractal divide and fractal aggregation", section 3.4 and
appendix B)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from defenses.fractal.division import parts, splitting_levels


def dont_care(
    levels: Sequence[int], side: int, outputs: Tensor, slope: Tensor, offset: float = 0.0
) -> dict[str, Tensor]:
    """Which conditions hold, (n,) each, for inputs of one side of a frame; by name, in the order of
    their levels. Names count levels from the first that has subtasks, as the source does.

    levels   of the frame, as in `defenses.fractal.belief.Frame`.
    side     of the inputs: 0 for the first group, 1 for the second.
    outputs  G (n, k) of the frame's subtasks, above 0 for the first group; slope, their s (k,).
    offset   by which all outputs are moved against the side before. Where a condition holds then,
             it holds wherever outputs differ by no more.

    "exact" is theorem 1, for the side that the first level splits, at a uniform b: one subtask i of
    that level is right and no other is very wrong, which means x_j >= 1 - x_i. (The source drops
    this second part where x_i is about 1; "one of level 1" is without it.) All other conditions are
    approximate: some subtask of a level that splits this side is right, and so are all subtasks of
    the earlier levels that split the other side. Where the last level splits the other side, there
    is one more condition: all subtasks of the levels that split the other side are right.
    """
    margins = slope * ((1 - 2 * side) * outputs - offset)
    right, slices = margins > 0, parts(levels)
    start = int(levels[0] == 0)
    conditions: dict[str, Tensor] = {}
    if start == side:
        # x_j >= 1 - x_i is s_j G_j >= -s_i G_i.
        surest = margins[:, slices[start]].amax(1)
        conditions["one of level 1, exact"] = (surest > 0) & (margins.amin(1) >= -surest)
    for level in splitting_levels(levels, side):
        names, holds = [], torch.ones(len(outputs), dtype=torch.bool, device=outputs.device)
        if level < len(levels):
            names.append(f"one of level {level + 1 - start}")
            holds &= right[:, slices[level]].any(1)
        for before in range(start, level):
            if before % 2 != side:
                names.append(f"all of level {before + 1 - start}")
                holds &= right[:, slices[before]].all(1)
        conditions[", ".join(names)] = holds
    return conditions
