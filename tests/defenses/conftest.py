import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's digits: 1297 to train on and 500 to test on, (n, 1, 8, 8) in [0, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = (torch.tensor(data.images, dtype=torch.float32) / 16)[order, None]
    y = torch.tensor(data.target, dtype=torch.int64)[order]
    return x[500:], y[500:], x[:500], y[:500]
