"""The working batch: what samples know stays together, and what leaves keeps what it knew."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks import Problem, ThreatModel
from attacks.working import State, Working, due, in_restarts

N = 7


@dataclass
class Known(State):
    points: Tensor
    value: Tensor


@dataclass
class More(Known):
    table: Tensor


def _state() -> More:
    """Each field of a sample says which sample it is of."""
    number = torch.arange(N, dtype=torch.float32)
    return More(number.view(N, 1, 1).repeat(1, 2, 3), number.clone(), number[:, None].repeat(1, 4))


def _problem() -> Problem:
    x = torch.arange(N, dtype=torch.float32).view(N, 1, 1) / N * torch.ones(N, 2, 3)
    return Problem(lambda points: points.flatten(1), x, torch.arange(N) % 6, ThreatModel("l2", 1.0))


def _numbers(state: More) -> list[float]:
    """The samples of a state, which all of its fields must agree on."""
    for field in (state.points.flatten(1).T, state.table.T):
        assert all(torch.equal(row, state.value) for row in field)
    return state.value.tolist()


def test_all_fields_are_selected_together_and_copied() -> None:
    state = _state()
    assert _numbers(state.select(torch.tensor([5, 0, 3]))) == [5, 0, 3]
    some = state.select(state.value > 3)
    assert type(some) is More
    assert _numbers(some) == [4, 5, 6]
    some.points.zero_()
    assert _numbers(state) == list(range(N))


def test_all_fields_are_put_together() -> None:
    state = _state()
    state.put(torch.tensor([1, 6]), state.select(torch.tensor([4, 2])))
    assert _numbers(state) == [0, 4, 2, 3, 4, 5, 2]


def test_those_that_leave_keep_their_state_and_the_others_go_on() -> None:
    problem, state = _problem(), _state()
    batch = Working(problem, state)
    gone: list[float] = []
    for leaving in ([], [0, 4], [6], [1, 2, 3]):
        done = torch.tensor([value in leaving for value in _numbers(state)])
        assert batch.retire(done)
        gone += leaving
        left = [number for number in range(N) if number not in gone]
        assert _numbers(state) == left
        assert len(batch) == len(batch.problem) == len(left)
        assert batch.problem.index.tolist() == batch.problem.rows.tolist() == left
        assert torch.equal(batch.problem.x, problem.x[left])
        assert torch.equal(batch.problem.y, problem.y[left])
        # Later work is none of theirs who left.
        state.value = state.value + 0
    state.points, state.value, state.table = (
        field + 100 for field in (state.points, state.value, state.table)
    )
    assert _numbers(batch.finish()) == [0, 1, 2, 3, 4, 105, 6]
    assert not batch.retire(torch.ones(1, dtype=torch.bool))
    assert _numbers(batch.finish()) == [0, 1, 2, 3, 4, 105, 6]


def test_a_batch_that_nobody_left_ends_as_it_is() -> None:
    state = _state()
    batch = Working(_problem(), state)
    assert batch.retire(torch.zeros(N, dtype=torch.bool))
    state.value = state.value * 2
    assert batch.finish().value.tolist() == [2 * number for number in range(N)]


def test_work_in_place_does_not_reach_those_that_left() -> None:
    state = _state()
    batch = Working(_problem(), state)
    batch.retire(state.value < 3)
    for field in (state.points, state.value, state.table):
        field.add_(1)
    assert _numbers(batch.finish()) == [0, 1, 2, 4, 5, 6, 7]


def test_each_run_is_on_what_those_before_did_not_break() -> None:
    runs: list[list[int]] = []

    def run(problem: Problem, restart: int) -> tuple[Tensor, Tensor]:
        runs.append(problem.index.tolist())
        return torch.full_like(problem.x, restart), problem.index % 3 == restart

    points = in_restarts(_problem(), 5, run)
    assert runs == [[0, 1, 2, 3, 4, 5, 6], [1, 2, 4, 5], [2, 5]]
    assert points.flatten(1)[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_no_run_is_on_nothing() -> None:
    problem = _problem()
    nobody = problem.select(problem.y < 0)
    assert in_restarts(nobody, 3, lambda problem, restart: 1 / 0).shape == (0, 2, 3)  # type: ignore[arg-type]


def test_a_decided_sample_stays_for_a_quarter_of_its_steps_at_most() -> None:
    looks = [step for step in range(200) if due(step)]
    assert looks[:9] == list(range(9))
    for before, after in itertools.pairwise(looks):
        assert after - before <= max(1, before / 4)
        assert after - before <= 8
