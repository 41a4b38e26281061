"""Work on Ray comes to the same as in this process, also where workers are lost."""

import gc
import json
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, Problem, Strong, ThreatModel
from attacks.problem import Facts
from benchmark.direct.evaluate import evaluate
from benchmark.errors import UserError
from benchmark.executors import IN_PROCESS, Executor, Held, WorkerLostError, as_completed
from benchmark.executors.executor import Tell
from benchmark.judge.evaluator import Samples
from benchmark.judge.records import MemoryCell
from benchmark.judge.subject import Terms
from benchmark.report.report import Report
from benchmark.run.assess import Settings, assessed
from benchmark.run.runner import run
from benchmark.spec.lineup import Entry, Lineup
from benchmark.spec.run_spec import make_spec

pytest.importorskip("ray")

from benchmark.executors import on_ray as module
from benchmark.executors.on_ray import OnRay, on_ray
from benchmark.executors.parcels import packed, unpacked

N = 40


@pytest.fixture(scope="module")
def ray_of_two() -> Iterator[OnRay]:
    with on_ray(2, None, 1) as executor:
        yield executor


def _double(value: int, tell: Tell) -> int:
    tell(("halfway", value))
    return 2 * value


def _sum(held: Held[Tensor], tell: Tell) -> float:
    return float(held.get().sum())


def _ones(count: int, tell: Tell) -> Tensor:
    return torch.ones(count)


def _failing(error: Exception, tell: Tell) -> None:
    raise error


def _dying(times: int, notes: Path, tell: Tell) -> int:
    """Kills its worker so many times."""
    died = len(list(notes.iterdir()))
    if died < times:
        (notes / str(died)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return died


def test_units_return_tell_and_raise(ray_of_two: OnRay) -> None:
    for executor in (IN_PROCESS, ray_of_two):
        told: list[Any] = []
        assert executor.run(executor.do(_double, 4, tell=told.append)) == 8
        assert told == [("halfway", 4)]
        kept = executor.run(executor.keep(_ones, 5))
        assert executor.run(executor.do(_sum, kept)) == 5
        assert executor.run(executor.do(_sum, executor.hold(torch.arange(4.0)))) == 6
        with pytest.raises(KeyError, match="mine"):
            executor.run(executor.do(_failing, KeyError("mine")))


def _warning(tell: Tell) -> int:
    warnings.warn("mind this", stacklevel=1)
    warnings.warn("nobody minds this", DeprecationWarning, stacklevel=1)
    return 1


def test_warnings_reach_whoever_asked(ray_of_two: OnRay) -> None:
    with pytest.warns(UserWarning, match="mind this") as warned:
        assert ray_of_two.run(ray_of_two.do(_warning)) == 1
    assert [str(warning.message) for warning in warned] == ["mind this"]


def test_an_error_that_cannot_travel_keeps_its_name_and_its_line(ray_of_two: OnRay) -> None:
    class OddError(Exception):
        def __init__(self, *, needed: int) -> None:
            super().__init__(f"needed {needed}")

    def unit(tell: Tell) -> None:
        raise OddError(needed=3)

    with pytest.raises(Exception, match="needed 3") as caught:
        ray_of_two.run(ray_of_two.do(unit))
    assert type(caught.value).__name__ == "OddError"


def _exiting(error: BaseException, tell: Tell) -> None:
    raise error


class _MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("error", [SystemExit("giving up"), KeyboardInterrupt(), _MuteError()])
def test_whatever_a_unit_raises_ends_it(ray_of_two: OnRay, error: BaseException) -> None:
    with pytest.raises(RuntimeError) as caught:
        ray_of_two.run(ray_of_two.do(_exiting, error))
    assert type(caught.value).__name__ == type(error).__name__


def test_a_held_value_is_packed_once_and_let_go(ray_of_two: OnRay) -> None:
    model = nn.Linear(3, 2)
    assert ray_of_two.hold(model) is ray_of_two.hold(model)
    number = id(model)
    assert number in ray_of_two._held
    del model
    gc.collect()
    assert number not in ray_of_two._held


def test_more_threads_than_cores_are_refused(ray_of_two: OnRay) -> None:
    with pytest.raises(UserError, match="no host has 3 cores for the threads of a worker"):
        OnRay(3).check_hosts()


@pytest.mark.parametrize("address", ["localhost:1", "nowhere.invalid:6379"])
def test_an_address_where_nothing_listens_is_refused(address: str) -> None:
    with (
        pytest.raises(UserError, match=f"no workers at {address}: nothing listens there"),
        on_ray(None, address, 1),
    ):
        pass


@pytest.mark.parametrize("count", [0, 1, 30])
def test_many_works_end_in_any_order(ray_of_two: OnRay, count: int) -> None:
    async def doubled(executor: Executor) -> list[int]:
        works = (executor.do(_double, number) for number in range(count))
        return [result async for result in as_completed(executor, works)]

    here = IN_PROCESS.run(doubled(IN_PROCESS))
    assert here == [2 * number for number in range(count)]
    assert sorted(ray_of_two.run(doubled(ray_of_two))) == here


def test_what_a_lost_worker_did_is_done_again(ray_of_two: OnRay, tmp_path: Path) -> None:
    assert ray_of_two.run(ray_of_two.do(_dying, 2, tmp_path)) == 2


class _AsOfNow:
    """What it is when it is sent."""

    def __init__(self) -> None:
        self.sent = 0

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        self.sent += 1
        return int, (self.sent,)


def _dying_once(value: int, notes: Path, tell: Tell) -> int:
    _dying(1, notes, tell)
    return value


def test_what_is_done_again_is_given_what_is_known_by_then(
    ray_of_two: OnRay, tmp_path: Path
) -> None:
    """A training goes on from its last checkpoint."""
    assert ray_of_two.run(ray_of_two.do(_dying_once, _AsOfNow(), tmp_path)) == 2


def test_without_a_gpu_cuda_is_refused(ray_of_two: OnRay) -> None:
    assert ray_of_two.device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="no worker has a GPU: give cpu or auto"):
        ray_of_two.device("cuda")


def test_a_unit_that_kills_its_workers_is_given_up(ray_of_two: OnRay, tmp_path: Path) -> None:
    with pytest.raises(WorkerLostError, match=r"4 workers were lost, the last on .* \(process"):
        ray_of_two.run(ray_of_two.do(_dying, 100, tmp_path))
    assert len(list(tmp_path.iterdir())) == 4
    assert ray_of_two.run(ray_of_two.do(_double, 1)) == 2


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch, ray_of_two: OnRay) -> None:
    monkeypatch.setattr(module, "versions", lambda: {"torch": "1.0", "bestattack": "x"})
    other = OnRay(1)
    with pytest.raises(UserError, match=r"has torch .* and not 1.0, another version of bestattack"):
        other.check_hosts()
    # Also where a host comes later.
    with pytest.raises(UserError, match=r"has torch .* and not 1\.0"):
        other.run(other.do(_double, 1))


@pytest.mark.parametrize(
    "norm", [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm]
)
def test_parametrised_layers_travel(norm: Any) -> None:
    layer, x = norm(nn.Linear(4, 3)).eval(), torch.rand(5, 4)
    travelled = unpacked(packed(layer)).eval()
    assert torch.equal(travelled(x), layer(x))
    with torch.no_grad():
        next(travelled.parameters()).add_(1)
    assert not torch.equal(travelled(x), layer(x))


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_tensors_that_share_memory_still_do_and_torchscript_travels() -> None:
    weight = torch.arange(6.0)
    first, second = unpacked(packed((weight[:4], weight[2:])))
    first[3] = -1
    assert second[1] == -1
    network = torch.jit.trace(nn.Linear(3, 2), torch.rand(1, 3))
    x = torch.rand(5, 3)
    (travelled,) = unpacked(packed([network]))
    assert torch.equal(travelled(x), network(x))


def test_what_cannot_travel_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^a generator cannot be sent to workers \(TypeError"):
        packed(number for number in range(3))


class _Raising:
    facts = Facts("fixed-budget")

    def __call__(self, problem: Problem) -> Tensor:
        raise RuntimeError("out of luck")


class _ByBlock:
    """Draws its noise for a whole block."""

    facts = Facts("fixed-budget", by_block=True)

    def __call__(self, problem: Problem) -> Tensor:
        problem.logits(problem.x)
        return problem.x + torch.linspace(-0.2, 0.2, problem.x.numel()).view_as(problem.x)


class _Network(nn.Module):
    """It certifies, and is of a test's module."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits

    def certified_radius(self, x: Tensor) -> Tensor:
        top = self(x).topk(2, 1).values
        return (top[:, 0] - top[:, 1]) / 10


class _Drawing(_Network):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


def _report(executor: Executor, network: type[nn.Module], mode: Any) -> Report:
    torch.manual_seed(0)
    model = network().eval()
    x = torch.rand(N, 2, 4)
    y = model(x).argmax(1)
    entries = {"pgd": Entry(PGD(steps=8)), "strong": Entry(Strong()), "bad": Entry(_Raising())}
    entries["block"] = Entry(_ByBlock())
    entries["rest"] = Entry(PGD(steps=30), after=("pgd",))
    settings = Settings(ThreatModel("l2", 0.2), mode, "cpu", 7, Terms(draws=10), executor=executor)
    work = assessed(
        "net", model, Samples(x, y, np.arange(N)), Lineup(entries), {}, settings,
        lambda key: MemoryCell(), {"model": "net"},
    )  # fmt: skip
    return executor.run(work)


@pytest.mark.parametrize("mode", ["table", "cascade"])
@pytest.mark.parametrize("network", [_Network, _Drawing])
def test_a_report_is_the_same(ray_of_two: OnRay, network: type[nn.Module], mode: str) -> None:
    here, there = (_report(executor, network, mode) for executor in (IN_PROCESS, ray_of_two))
    assert there.keys == here.keys
    assert list(there.keys) == list(here.keys)
    assert there.errors == here.errors == {"bad": "RuntimeError: out of luck"}
    assert there.flags == here.flags
    by_sample = ["defense", "attack", "index"]
    records = [
        report.records.sort_values([c for c in by_sample if c in report.records], ignore_index=True)
        for report in (here, there)
    ]
    shown = [frame.drop(columns="seconds", errors="ignore") for frame in records]
    assert shown[0].equals(shown[1])


class _Set(_Network):
    """It depends on what workers are not sent."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + len(os.environ.get("_SET_BY_A_TEST", "")))


def test_a_model_that_is_another_on_workers_is_refused(
    ray_of_two: OnRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_SET_BY_A_TEST", "here")
    with pytest.raises(UserError, match="gives other logits on workers than here"):
        _report(ray_of_two, _Set, "table")
    assert _report(IN_PROCESS, _Set, "table").best_attack >= 0


def test_evaluate_works_on_workers(ray_of_two: OnRay) -> None:
    """Those of the cluster that is there."""
    torch.manual_seed(0)
    model, x = _Network().eval(), torch.rand(N, 2, 4)
    y = model(x).argmax(1)
    asked: dict[str, Any] = {"eps": 0.1, "attacks": ["pgd", "strong/quick"], "block": 9}
    here, there = evaluate(model, x, y, **asked), evaluate(model, x, y, **asked, workers=2)
    assert there.best_attack == here.best_attack
    assert there.keys == here.keys
    with pytest.raises(UserError, match="workers must be an integer of at least 1, not 0"):
        evaluate(model, x, y, **asked, workers=0)


def test_a_run_with_several_seeds_is_the_same(ray_of_two: OnRay, tmp_path: Path) -> None:
    spec = make_spec(
        {
            "eps": 0.5, "samples": 20, "block": 5, "seeds": [0, 1], "attacks": ["pgd/steps=2"],
            "defenses": ["vanilla/epochs=1", "l2nnn/epochs=1"],
        }
    )  # fmt: skip
    rows = []
    for name, executor in (("here", IN_PROCESS), ("there", ray_of_two)):
        reports = run(spec, tmp_path / name, None, False, lambda line: None, executor)
        assert len(reports) == 4
        rows.append(json.loads((tmp_path / name / "table.json").read_text())["rows"])
        for seed in ("0", "1"):
            manifest = json.loads((tmp_path / name / "seeds" / seed / "run.json").read_text())
            # The folder can be moved, however early a row was begun.
            assert all(row["model"].startswith("../../") for row in manifest["rows"])
    assert rows[0] == rows[1]
