"""Small networks that sources give, and what is asked of what is built of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses import External
from defenses.foreign.extras import installed
from defenses.foreign.torchvision_source import import_torchvision

# torch's exporter imports it where it is installed, also where it does not import.
if installed("torchvision"):
    import_torchvision()

SHAPE, CLASSES = (3, 16, 16), 5
X = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """Convolutions, batch norm, a residual sum and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.last = nn.MaxPool2d(2), nn.Linear(8 * 64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.pool(torch.relu(self.second(x) + x))
        logits: Tensor = self.last(x.view(x.shape[0], -1))
        return logits


class Attention(nn.Module):
    """Patches, a class token, a transformer's layer and its last token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1)
        logits: Tensor = self.last(self.layer(tokens)[:, 0])
        return logits


def _smooth() -> nn.Module:
    """Activations and normalisations that newer operators are for, and global pooling."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.GroupNorm(2, 8), nn.SiLU(), nn.Hardswish(),
        nn.AvgPool2d(2), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, CLASSES),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual, "attention": Attention, "smooth": _smooth,
}  # fmt: skip


def small_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.uniform_(-0.1, 0.1)  # type: ignore[operator,union-attr]
    # A transformer's layer is fused where nothing needs gradients, which torch exports nowhere.
    return network


def built(**options: Any) -> nn.Module:
    return External(**options).build(SHAPE, CLASSES).eval()


def agree(model: nn.Module, network: nn.Module, tolerance: float = 1e-5) -> None:
    """The same logits, for any number of images, and gradients."""
    for count in (1, 6):
        torch.testing.assert_close(model(X[:count]), network(X[:count]), rtol=0, atol=tolerance)
    slopes = []
    for function in (model, network):
        x = X.clone().requires_grad_()
        slopes.append(torch.autograd.grad(function(x).square().sum(), x)[0])
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-4)


def refusal(**options: Any) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        built(**options)
    return str(error.value)
