"""The Square attack: random search by square-shaped changes that sees scores alone."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from attacks import noise
from attacks.objectives import decided, margin
from attacks.problem import Facts, Problem
from attacks.threat import NORMS, per_sample
from attacks.working import Reached, Working, due, in_restarts, standing

# Parts of the steps after which the squares' area is halved (section 4, for 10,000 steps).
_HALVED_AT = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)

# Rows and columns of tiles that the attacks by mass begin with, and the least side of windows.
_TILES = 5
_LEAST_SIDE = 3


@dataclass(frozen=True)
class Square:
    """Andriushchenko et al. (2020), algorithms 1 to 3: random search on the margin.

    steps     queries of each restart.
    p         part of the pixels that the first squares cover.
    restarts  runs with different noise; each works on what the ones before left. The first begins
              at `problem.start` if there is one.

    A sample that is broken stops there. Returns points (n, *shape) in the ball and the box. Raises
    ValueError for hyperparameters out of range.

    Differs from the source:
    - Inputs need not be images: signals (n, channels, d) and flat inputs (n, d) count as images of
      one row, and the slices of volumes (n, channels, depth, height, width) lie one below another.
    - Squares that do not fit into the image become rectangles of the same area.
    - L-infinity: a square that would change nothing is drawn with its signs turned.
    - L1 is as L2, with lengths in the place of their squares (after Croce and Hein 2021).
    - L2 and L1: what the box cuts off is given to the other pixels at once, so that every query
      spends the whole budget.

    >>> from attacks.threat import ThreatModel
    >>> model = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)
    >>> x, y = torch.tensor([[0.6, 0.5], [0.9, 0.5]]), torch.tensor([0, 0])
    >>> points = Square(steps=50)(Problem(model, x, y, ThreatModel("linf", 0.2)))
    >>> model(points).argmax(1)  # the first is 0.1 from the boundary, the second 0.4
    tensor([1, 0])
    """

    steps: int = 5000
    p: float = 0.8
    restarts: int = 1

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ValueError("square: steps and restarts must be at least 1")
        if not 0 < self.p <= 1:
            raise ValueError(f"square: p must be above 0 and at most 1, not {self.p}")

    @property
    def facts(self) -> Facts:
        """A fixed-budget attack under every norm."""
        passes = 1 + self.restarts * self.steps
        return Facts("fixed-budget", NORMS, passes=passes)

    @torch.no_grad()
    def __call__(self, problem: Problem) -> Tensor:
        answer = problem.x.clone()
        rows, _ = standing(problem)
        if len(rows):
            answer[rows] = in_restarts(problem.select(rows), self.restarts, self._restart)
        return answer

    def _restart(self, problem: Problem, restart: int) -> tuple[Tensor, Tensor]:
        """The best points (n, *shape) and where they are misclassified (n,)."""
        first = restart * self.steps
        best = self._start(problem, restart)
        logits = problem.logits(best)
        state = _State(best, decided(logits, problem.y), margin(logits, problem.y))
        batch = Working(problem, state)
        change = _change_linf if problem.threat.norm == "linf" else _change_mass
        for step in range(1, self.steps):
            if due(step) and not batch.retire(state.hit):
                break
            trial = change(batch.problem, state.points, self._share(step), first + step)
            logits = batch.problem.logits(trial)
            broke = decided(logits, batch.problem.y)
            value = margin(logits, batch.problem.y)
            better = ((value > state.value) | broke) & ~state.hit
            state.points = torch.where(per_sample(better, trial), trial, state.points)
            state.value = torch.where(better, value, state.value)
            state.hit |= broke
        final = batch.finish()
        return final.points, final.hit

    def _start(self, problem: Problem, restart: int) -> Tensor:
        if problem.start is not None and restart == 0:
            return problem.threat.project(problem.start, problem.x)
        begin = _stripes if problem.threat.norm == "linf" else _tiles
        return begin(problem, restart * self.steps)

    def _share(self, step: int) -> float:
        """The part of the pixels that a square covers at this step."""
        return self.p / 2.0 ** sum(step > at * self.steps for at in _HALVED_AT)


@dataclass
class _State(Reached):
    """The best point of each sample, and the margin there (n,)."""

    value: Tensor


def _grid(x: Tensor) -> Tensor:
    """Inputs as images (n, channels, height, width)."""
    if x.dim() == 2:
        return x[:, None, None, :]
    return x[:, :, None, :] if x.dim() == 3 else x.flatten(2, -2)


def _sides(height: int, width: int, share: float, least: int = 1) -> tuple[int, int]:
    """Rows and columns of a window that covers this part of the image: a square where it fits."""
    side = max(least, round(math.sqrt(share * height * width)))
    rows, columns = max(side, round(share * height)), max(side, round(share * width))
    return min(height, rows), min(width, columns)


def _signs(draws: Tensor) -> Tensor:
    return 1 - 2 * (draws < 0.5).to(draws.dtype)


def _draws(problem: Problem, stream: int, *shape: int) -> Tensor:
    draws = noise.uniform(problem.seed, problem.index, stream, shape)
    return draws.to(problem.x.dtype)


def _offsets(draws: Tensor, length: int, side: int) -> Tensor:
    """Each pixel's place in a window that begins at random, along one axis: (n, length)."""
    begin = (draws * (length - side + 1)).long()
    return torch.arange(length, device=draws.device) - begin[:, None]


def _inside(offsets: Tensor, side: int) -> Tensor:
    return (offsets >= 0) & (offsets < side)


def _stripes(problem: Problem, stream: int) -> Tensor:
    """Vertical stripes of plus and minus eps, per channel."""
    x = _grid(problem.x)
    signs = _signs(_draws(problem, stream, x.shape[1], 1, x.shape[3]))
    return problem.threat.clamp((x + problem.threat.eps * signs).view_as(problem.x))


def _change_linf(problem: Problem, best: Tensor, share: float, stream: int) -> Tensor:
    """A square of plus or minus eps, per channel (algorithm 2)."""
    x, old, threat = _grid(problem.x), _grid(best), problem.threat
    channels, height, width = x.shape[1:]
    rows, columns = _sides(height, width, share)
    draws = _draws(problem, stream, 2 + channels)
    down = _inside(_offsets(draws[:, 0], height, rows), rows)
    across = _inside(_offsets(draws[:, 1], width, columns), columns)
    window = (down[:, :, None] & across[:, None, :])[:, None]
    signs = _signs(draws[:, 2:])[:, :, None, None]
    signed, turned = (
        _grid(threat.clamp((x + side * threat.eps * signs).view_as(best))) for side in (1, -1)
    )
    trial = torch.where(window, signed, old)
    same = (trial == old).flatten(1).all(1)
    trial = torch.where(per_sample(same, x), torch.where(window, turned, old), trial)
    return trial.view_as(best)


def _spend(problem: Problem, delta: Tensor) -> Tensor:
    """The point along delta that spends all of the budget, where the box lets it."""
    return problem.threat.edge(problem.x, delta.view_as(problem.x))


def _tiles(problem: Problem, stream: int) -> Tensor:
    """Tiles of `_eta` with random signs, per channel."""
    x = _grid(problem.x)
    channels, height, width = x.shape[1:]
    rows, columns = max(1, height // _TILES), max(1, width // _TILES)
    down = torch.arange(height, device=x.device)
    across = torch.arange(width, device=x.device)
    tile_of_row, tile_of_column = down // rows, across // columns
    shape = (channels, -(-height // rows), -(-width // columns))
    signs = _signs(_draws(problem, stream, *shape))[:, :, tile_of_row][:, :, :, tile_of_column]
    eta = _eta(_order(problem), rows, columns, x.dtype, x.device)[0][down % rows][
        :, across % columns
    ]
    return _spend(problem, eta * signs)


def _change_mass(problem: Problem, best: Tensor, share: float, stream: int) -> Tensor:
    """The mass of two windows moved into the first, in the shape of `_eta` (algorithm 3). Under L2
    masses are squared lengths, under L1 lengths."""
    order = _order(problem)
    x = _grid(problem.x)
    delta = _grid(best) - x
    channels, height, width = x.shape[1:]
    rows, columns = _sides(height, width, share, _LEAST_SIDE)
    draws = _draws(problem, stream, 5 + channels)
    down, across = _offsets(draws[:, 0], height, rows), _offsets(draws[:, 1], width, columns)
    into = (_inside(down, rows)[:, :, None] & _inside(across, columns)[:, None, :])[:, None]
    other_down = _inside(_offsets(draws[:, 2], height, rows), rows)
    other_across = _inside(_offsets(draws[:, 3], width, columns), columns)
    windows = into | (other_down[:, :, None] & other_across[:, None, :])[:, None]
    beside = (draws[:, 4] < 0.5).long()[:, None, None]
    place = (down.clamp(0, rows - 1)[:, :, None], across.clamp(0, columns - 1)[:, None, :])
    eta = _eta(order, rows, columns, x.dtype, x.device)[beside, *place][:, None]
    eta = eta * _signs(draws[:, 5:])[:, :, None, None]
    tiny = torch.finfo(x.dtype).tiny
    old = torch.where(into, delta, 0.0)
    new = torch.where(into, eta + old / _length(old, order).clamp_min(tiny), 0.0)
    used = delta.abs().pow(order).sum((1, 2, 3), keepdim=True)
    unused = (problem.threat.eps**order - used).clamp_min(0)
    moved = torch.where(windows, delta, 0.0).abs().pow(order).sum((2, 3), keepdim=True)
    length = (moved + unused / channels) ** (1 / order)
    new = new * (length / _length(new, order).clamp_min(tiny))
    changed = torch.where(windows, 0.0, delta) + new
    return _spend(problem, changed)


def _order(problem: Problem) -> int:
    return 1 if problem.threat.norm == "l1" else 2


def _length(delta: Tensor, order: int) -> Tensor:
    """The norm of each channel, (n, c, 1, 1)."""
    length: Tensor = torch.linalg.vector_norm(delta, order, dim=(2, 3), keepdim=True)
    return length


@lru_cache(maxsize=32)
def _eta(order: int, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Windows (2, rows, columns) of norm 1 with a bump up and a bump down (section 3.4), one below
    the other and side by side; where there is no room for two, both are the one that fits."""
    below = beside = torch.ones(rows, columns)
    if rows > 1:
        below = beside = torch.cat([_bump(rows // 2, columns), -_bump(rows - rows // 2, columns)])
    if columns > 1:
        left, right = _bump(rows, columns // 2), _bump(rows, columns - columns // 2)
        beside = torch.cat([left, -right], dim=1)
        below = below if rows > 1 else beside
    return torch.stack([each / each.norm(order) for each in (below, beside)]).to(device, dtype)


def _bump(rows: int, columns: int) -> Tensor:
    """Growing squares around the middle, the k-th of height 1 / k^2, added up."""
    down = (torch.arange(rows) - rows // 2).abs()
    across = (torch.arange(columns) - columns // 2).abs()
    ring = torch.maximum(down[:, None], across[None, :])
    heights = 1 / torch.arange(1, max(rows, columns) // 2 + 2) ** 2
    return heights.flip(0).cumsum(0).flip(0)[ring]
