"""Beliefs, evidence and their aggregation against the paper's equations, theorem and lemma."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

from defenses.fractal.belief import (
    Frame,
    evidence,
    fractal,
    over_frames,
    split_first,
    split_second,
)
from defenses.fractal.division import parts
from defenses.fractal.dont_care import dont_care


def doubles(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rows(*values: float) -> Tensor:
    """Evidence of subtasks, as (subtasks, 2)."""
    return doubles(*values).view(-1, 2)


def printed(g: float, s: float, b: float, f: tuple[float, float]) -> tuple[float, ...]:
    """(w_I, w_II) by equations (1) to (5) as printed, to 60 digits."""
    with localcontext() as context:
        context.prec = 60
        half, one = Decimal("0.5"), Decimal(1)
        x = one / (one + (-Decimal(s) * Decimal(g)).exp())
        beliefs = []
        for below, part in ((half - x, Decimal(f[0])), (x - half, Decimal(f[1]))):
            scaled = Decimal(b) * part * max(below, Decimal(0))
            beliefs.append(2 * scaled / (1 - half * Decimal(b) + scaled))
        return tuple(float(max(1 - belief, Decimal("1e-6")).ln()) for belief in beliefs)


CASES = [
    (g, s, b, (f, 1.0 - f / 2))
    for g in (-40.0, -3.0, -0.7, -1e-3, -1e-9, 0.0, 1e-9, 0.02, 0.6, 2.5, 60.0)
    for s in (1.0, 5.0, 37.5)
    for b in (0.0, 0.1, 0.75, 0.999, 1.0)
    for f in (0.0, 0.25, 1.0)
]


def measured(dtype: torch.dtype, given: torch.dtype = torch.float64) -> Tensor:
    """Evidence (cases, 2) in one precision, of the cases rounded to another."""
    columns = (torch.tensor(column, dtype=given) for column in zip(*CASES, strict=True))
    g, s, b, f = (column.to(dtype) for column in columns)
    return evidence(g[None], s, b, f)[0]


def test_evidence_is_the_printed_equations() -> None:
    expected = doubles(*(printed(*case) for case in CASES))
    torch.testing.assert_close(measured(torch.float64), expected, rtol=1e-12, atol=1e-15)


def test_float32_is_stable_where_x_saturates() -> None:
    """Where 1 - belief, as printed, has no digits."""
    found, expected = measured(torch.float32), measured(torch.float64, torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=3e-7)
    assert (found <= 0).all()


def test_gradients_are_finite_where_x_saturates() -> None:
    outputs = torch.tensor([[-1e4, -30.0, 0.0, 30.0, 1e4]], requires_grad=True)
    slope = torch.full((5,), 50.0, requires_grad=True)
    reliability = torch.full((5,), 1.0, requires_grad=True)
    evidence(outputs, slope, reliability, torch.ones(5, 2)).sum().backward()
    for leaf in (outputs, slope, reliability):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_one_side_has_no_evidence_and_more_output_never_speaks_more_against_the_first() -> None:
    outputs = torch.linspace(-4, 4, 801, dtype=torch.float64)[:, None]
    weights = evidence(outputs, doubles(3.0), doubles(0.8), doubles([0.3, 0.9]))[:, 0]
    assert (weights <= 0).all()
    assert (weights.amax(1) == 0).all()
    assert (weights[1:, 0] >= weights[:-1, 0]).all()
    assert (weights[1:, 1] <= weights[:-1, 1]).all()


def test_the_atomic_operations_by_hand() -> None:
    one, other = doubles(-1.0, -0.5), doubles(-0.25, -2.0)
    torch.testing.assert_close(split_first(one, other), doubles(-1.25, -2.0))
    torch.testing.assert_close(split_second(one, other), doubles(-1.0, -2.5))


def test_the_nested_form_of_three_levels_by_hand() -> None:
    """(8) and (9), with two subtasks a level; then the other structure of figure 2."""
    first = rows(-0.1, 0, 0, -0.3)
    second = rows(-0.2, -0.4, -0.9, 0)
    third = rows(-0.5, -0.6, -0.7, -0.8)
    # w_I = -0.1 + min(-0.9, -1.2); w_II = min(-0.3, -0.4 + min(-0.6, -0.8)).
    torch.testing.assert_close(fractal([first, second, third]), doubles(-1.3, -1.2))
    # Beginning with the second group: w_I = min(-0.1, -1.1 - 0.7), w_II = -0.3 + min(-0.4, -1.4).
    empty = torch.zeros(0, 2, dtype=torch.float64)
    found = fractal([empty, first, second, third])
    torch.testing.assert_close(found, doubles(-1.8, -1.7))
    swapped = fractal([level.flip(-1) for level in (first, second, third)]).flip(-1)
    torch.testing.assert_close(found, swapped)


@pytest.mark.parametrize("begins", [0, 1])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_nesting_is_the_atomic_operations_one_subtask_at_a_time(begins: int, depth: int) -> None:
    generator = torch.Generator().manual_seed(10 * depth + begins)
    sizes = torch.randint(1, 5, (depth,), generator=generator).tolist()
    levels = [-torch.rand(7, size, 2, dtype=torch.float64, generator=generator) for size in sizes]
    combined = levels[-1][:, 0]
    for number in reversed(range(depth)):
        merge = (split_first, split_second)[(number + begins) % 2]
        for subtask in range(int(number == depth - 1), sizes[number]):
            combined = merge(levels[number][:, subtask], combined)
    empty = [torch.zeros(7, 0, 2, dtype=torch.float64)] * begins
    torch.testing.assert_close(fractal([*empty, *levels]), combined)


def test_frames_are_combined_by_equation_10_and_by_dempsters_rule() -> None:
    """Frames {0} {1} and {0, 2} {1} over three labels."""
    groups = torch.tensor([[[1, 0, 0], [0, 1, 0]], [[1, 0, 1], [0, 1, 0]]], dtype=torch.bool)
    weights = doubles([[-0.5, -0.1], [-0.2, -0.4]])
    torch.testing.assert_close(over_frames(weights, groups), doubles([-0.5, -0.4, -0.2]))
    torch.testing.assert_close(over_frames(weights, groups, "sum"), doubles([-0.7, -0.5, -0.2]))


def test_dempsters_rule_on_beliefs_is_a_sum_of_weights() -> None:
    """Two simple support functions against one label, 0.6 and 0.5: together 1 - 0.4 * 0.5."""
    weights = doubles([[math.log(0.4), 0], [math.log(0.5), 0]])
    both = over_frames(weights, torch.ones(2, 2, 1), "sum")
    assert 1 - math.exp(both.item()) == pytest.approx(0.8)


def test_lemma_1_by_random_search() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in range(1, 9):
        alpha = torch.rand(20000, n, dtype=torch.float64, generator=generator) ** 3
        total = torch.rand(20000, 1, dtype=torch.float64, generator=generator)
        alpha = alpha / alpha.sum(1, keepdim=True) * total
        left, right = ((1 - alpha) / (1 + alpha)).prod(1), (1 - total[:, 0]) / (1 + total[:, 0])
        assert (left >= right - 1e-15).all()


def structures() -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for depth in range(1, 6):
        for begins in ((), (0,)):
            sizes = torch.randint(1, 6, (depth,), generator=generator).tolist()
            found.append((*begins, *sizes))
    return found


def random_fractions(levels: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Of the data of either group that a fractal structure gives each subtask (k, 2)."""
    start = int(levels[0] == 0)
    left = torch.ones(2, dtype=torch.float64)
    fractions = torch.zeros(sum(levels), 2, dtype=torch.float64)
    for number, part in enumerate(parts(levels)):
        if number < start:
            continue
        side = number % 2
        shares = torch.rand(levels[number], dtype=torch.float64, generator=generator) + 0.01
        taken = 1.0 if number == len(levels) - 1 else 0.5
        fractions[part, side] = left[side] * taken * shares / shares.sum()
        fractions[part, 1 - side] = left[1 - side]
        left[side] *= 1 - taken
    return fractions


@pytest.mark.parametrize("levels", structures())
def test_theorem_1_by_random_search(levels: tuple[int, ...]) -> None:
    """Where its condition holds, the least evidence is against the side that the first level
    splits: for x anywhere, at the edge of the condition, and saturated."""
    generator = torch.Generator().manual_seed(sum(levels))
    start, count, met = int(levels[0] == 0), sum(levels), 0
    first = parts(levels)[start]
    for b in (0.05, 0.5, 0.9, 1.0):
        fractions = random_fractions(levels, generator)
        assert (fractions[first, 1 - start] == 1).all()
        x = torch.rand(4000, count, dtype=torch.float64, generator=generator)
        edge = torch.rand(4000, 1, dtype=torch.float64, generator=generator) * 0.5 + 0.5
        edge[::4] = 1 - edge[::4] ** 12 * 1e-3
        # Half of the inputs at the edge: all others as wrong as they may be.
        x[2000:] = torch.where(x[2000:] < 0.8, 1 - edge[2000:], x[2000:])
        x[2000:, first.start] = edge[2000:, 0]
        outputs = torch.logit(x) * (1 - 2 * start)
        slope = torch.ones(count, dtype=torch.float64)
        holds = dont_care(levels, start, outputs, slope)["one of level 1, exact"]
        weights = evidence(outputs, slope, slope * b, fractions)
        found = fractal([weights[:, part] for part in parts(levels)])
        assert (found[holds, start] > found[holds, 1 - start]).all()
        met += int(holds.sum())
    assert met > 4000


@pytest.mark.parametrize(
    ("first", "second", "levels"),
    [((), (1,), (1,)), ((0,), (1, 0), (1,)), ((0,), (1,), (0,)), ((0,), (1,), (2, 0, 1))],
)
def test_frames_that_are_none_are_refused(
    first: tuple[int, ...], second: tuple[int, ...], levels: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"a frame needs two groups|needs at least one subtask"):
        Frame(first, second, levels)
