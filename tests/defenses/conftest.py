import pytest
import torch
from torch import Tensor

from defenses.training import loop as training


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's digits: 1297 to train on and 500 to test on, (n, 1, 8, 8) in [0, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = (torch.tensor(data.images, dtype=torch.float32) / 16)[order, None]
    y = torch.tensor(data.target, dtype=torch.int64)[order]
    return x[500:], y[500:], x[:500], y[:500]


@pytest.fixture
def few(digits: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return digits[0][:257], digits[1][:257]


@pytest.fixture
def at_every_occasion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints after every epoch, reports after every step."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training, "READ_SECONDS", 0.0)
