"""What a run will take: how long its tasks take on so many workers, and what a plan says."""

import asyncio
from pathlib import Path

import pytest

from benchmark.direct.makespan import Part, RowOfWork, least, makespan
from benchmark.executors.simulated import Simulated
from tests.conftest import Cli


def _rows(count: int, seconds: float = 3.0) -> list[RowOfWork]:
    return [
        RowOfWork(
            str(number), 50.0 + number,
            [Part("natural", 10, 0.1), Part("a", 40, seconds, after=["natural"]),
             Part("b", 40, seconds, after=["a"])],
        )
        for number in range(count)
    ]  # fmt: skip


def test_one_worker_takes_the_sum_and_many_the_longest_chain() -> None:
    rows = _rows(4)
    assert makespan(rows, 1) == pytest.approx(sum(row.work for row in rows))
    assert makespan(rows, 10_000) == pytest.approx(53 + 0.1 + 3 + 3)
    assert least(rows, 10_000) == pytest.approx(makespan(rows, 10_000))


@pytest.mark.parametrize("workers", [1, 2, 5, 16])
def test_the_order_of_a_run_is_near_the_best(workers: int) -> None:
    rows = _rows(9)
    bound = least(rows, workers)
    # With many workers the chain of trainings and attacks leaves some idle.
    assert 0.999 * bound <= makespan(rows, workers) <= (1.05 if workers < 10 else 1.15) * bound


def test_a_row_waits_for_those_that_it_is_made_of() -> None:
    rows = [
        RowOfWork("a", 2.0, []),
        RowOfWork("b", 3.0, [], made_of=["a"]),
        RowOfWork("c", 4.0, []),
    ]
    assert makespan(rows, 3) == least(rows, 3) == 5.0


def test_time_is_skipped_and_not_waited_for() -> None:
    simulated = Simulated(2)

    async def work() -> str:
        await asyncio.gather(*(simulated.do(str, 1e6) for _ in range(3)))
        return "done"

    assert simulated.run(work()) == "done"
    assert simulated.seconds == 2e6


def test_a_plan_is_told_and_compared(cli: Cli, tmp_path: Path) -> None:
    words = ["--eps", "0.5", "--samples", "40", "--block", "16", "--quiet"]
    words += ["--defense", "vanilla/epochs=1", "--attack", "pgd/steps=5"]
    words += ["--attack", "best-arm:pgd"]
    out = ["--out", tmp_path / "run"]
    ended = cli("run", *words, *out, "--plan")
    assert ended.status == 0, ended.err
    lines = ended.out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:5]] == [
        "training", "natural", "pgd/steps=5"
    ]  # fmt: skip
    assert "7 tasks, about" in ended.out
    assert "Not trained yet: vanilla/epochs=1." in ended.out
    assert not (tmp_path / "run" / "cells").exists()
    ended = cli("run", *words, *out)
    assert "planned:" in ended.out.splitlines()[-2]
    ended = cli("run", *words, *out, "--plan")
    assert "training" not in ended.out
    assert "Not trained" not in ended.out


def test_proofs_are_planned_at_most_and_not_of_what_bounds_do_not_pass(
    cli: Cli, tmp_path: Path
) -> None:
    network = "from torch import nn\n" + "".join(
        f"def {name}(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.{layer}())\n"
        for name, layer in (("bent", "ReLU"), ("smooth", "Tanh"))
    )
    (tmp_path / "net.py").write_text(network)
    words = ["--norm", "linf", "--eps", "0.1", "--samples", "20", "--attack", "pgd/steps=5"]
    for name in ("bent", "smooth"):
        words += ["--defense", f"external/python={tmp_path / 'net.py'}:{name}"]
    ended = cli("run", *words, "--certify", "branch/seconds=9", "--plan", "--out", tmp_path / "run")
    assert ended.status == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if "certified, at most" in line]
    cells = [cell.strip() for cell in line.split("|")]
    assert "bent" in cells[1]
    assert cells[4:6] == ["-", "3 min"]
    assert "tasks, at most about" in ended.out
    assert "no order takes less" not in ended.out


def test_a_recipe_that_takes_several_epochs_is_planned(cli: Cli, tmp_path: Path) -> None:
    defense = "fractal/epochs=3/widen=0.1/levels=2+2+2"
    words = ["--data", "digits", "--samples", "8", "--eps", "0.3", "--defense", defense]
    ended = cli("run", *words, "--attack", "pgd/steps=2", "--out", tmp_path, "--plan", "--quiet")
    assert ended.status == 0, ended.err
    assert "training" in ended.out
    assert "pgd/steps=2" in ended.out  # though hardly an image is classified correctly yet
