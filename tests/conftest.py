"""What every test shares."""

import os
from collections.abc import Iterator

# Before torch is loaded, as in `benchmark`: waiting threads must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow: give --slow to run it")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """But for timings: the tensors here are tiny, and more threads make them slow."""
    before = torch.get_num_threads()
    if "performance" not in request.path.parts:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
