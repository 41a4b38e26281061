"""Units take as much memory as there is, and as much of a GPU as they need."""

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmark.direct.evaluate import evaluate
from benchmark.errors import UserError
from benchmark.executors import resources
from benchmark.executors.executor import Tell
from benchmark.executors.resources import share_of_gpu, usable_memory, whole_gpu
from benchmark.judge.evaluator import attack_block
from benchmark.judge.examination import examine
from benchmark.judge.footprint import Footprint, footprint_of
from benchmark.run import assess, looking

ray = pytest.importorskip("ray")

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _no_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_LIMITED", Path("/nowhere"))


def test_workers_share_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resources.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert usable_memory(CPU, 1) == pytest.approx(700)
    assert usable_memory(CPU, 4) == pytest.approx(175)
    # A container may take less than the machine has; or what it takes is not limited.
    monkeypatch.setattr(resources, "_LIMITED", tmp_path)
    (tmp_path / "memory.current").write_text("100\n")
    (tmp_path / "memory.stat").write_text("anon 70\ninactive_file 30\nactive_file 10\n")
    for text, expected in (("500\n", 0.7 * 430), ("max\n", 700), ("50\n", 0)):
        (tmp_path / "memory.max").write_text(text)
        assert usable_memory(CPU, 1) == pytest.approx(expected)
    assert whole_gpu(CPU) == share_of_gpu(5.0, CPU) == 0
    assert whole_gpu(GPU) == 1


def test_a_share_of_a_gpu_holds_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    of_gpu = SimpleNamespace(total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: of_gpu)
    for taken in (1e6, 1e9, 5e9, 20e9, 50e9, 100e9):
        share = share_of_gpu(taken, GPU)
        assert share == 1 or share * 80e9 > taken
        assert 1 / share == round(1 / share) <= 8
    assert share_of_gpu(1e6, GPU) == 1 / 8


def test_the_footprint_is_what_a_pass_keeps() -> None:
    """Of ReLU its output; frozen linear layers need nothing."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, 100), nn.ReLU(), nn.Linear(100, 3))
    x = torch.rand(6, 1, 50)
    footprint = footprint_of(examine(model, x, CPU), x)
    weights = 4 * (50 * 100 + 100 + 100 * 3 + 3)
    images = 16 * 4 * 50
    assert footprint == Footprint(3 * weights, images + 4 * 100)


def test_blocks_fit_in_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    x = torch.rand(30, 2, 4)
    y = model(x).argmax(1)
    sizes: list[int] = []

    def noted(*given: object) -> object:
        sizes.append(len(given[-2].get().places))  # type: ignore[attr-defined]
        return attack_block(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(assess, "attack_block", noted)
    ask = partial(evaluate, model, x, y, eps=0.1, attacks=["pgd"])
    whole = ask()
    footprint = footprint_of(examine(model, x, CPU), x)
    monkeypatch.setattr(looking, "usable_memory", lambda device, beside: footprint.of(7))
    parts = ask()
    assert sizes == [30, 6, 6, 6, 6, 6]
    assert parts.keys == whole.keys
    assert np.array_equal(parts.frames["pgd"]["broken"], whole.frames["pgd"]["broken"])


def _meeting(notes: Path, patience: float, tell: Tell) -> tuple[list[str], bool]:
    """The GPUs that a unit is given, and whether another one was at work meanwhile."""
    mine = notes / str(os.getpid())
    mine.touch()
    end = time.monotonic() + patience
    while (met := len(list(notes.iterdir())) > 1) is False and time.monotonic() < end:
        time.sleep(0.05)
    return [str(gpu) for gpu in ray.get_gpu_ids()], met


@pytest.fixture(scope="module")
def with_a_gpu() -> Iterator[None]:
    """A cluster that believes in a GPU."""
    if ray.is_initialized():
        ray.shutdown()
    ray.init(
        "local", num_cpus=2, num_gpus=1, include_dashboard=False, logging_level="ERROR",
        log_to_driver=False, _node_ip_address="127.0.0.1",
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.mark.usefixtures("with_a_gpu")
@pytest.mark.parametrize(("share", "patience"), [(1.0, 1), (0.5, 100)])
def test_units_share_a_gpu(share: float, patience: float, tmp_path: Path) -> None:
    from benchmark.executors import as_completed
    from benchmark.executors.on_ray import OnRay, on_ray

    async def both(executor: OnRay) -> list[tuple[list[str], bool]]:
        works = (executor.do(_meeting, tmp_path, patience, share=share) for _ in range(2))
        return [result async for result in as_completed(executor, works)]

    with on_ray(None, None, 1) as executor:
        assert executor.device("auto") == executor.device("cuda") == GPU
        assert executor.device("cpu") == CPU
        with pytest.raises(UserError, match="give cuda as the device, not cuda:1"):
            executor.device("cuda:1")
        (first, met_first), (second, met_second) = executor.run(both(executor))
        assert first == second == ["0"]
        # Of two that are there at once, both see the other; else the second alone finds a trace.
        assert (met_first and met_second) == (share < 1)
