"""Small piecewise-linear networks of many layers."""

import itertools
from collections import OrderedDict

import torch
from torch import nn

from defenses import CNN2, Normalised

SHAPE = (1, 8, 8)


def mlp(*units: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(units):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def _normed() -> nn.Sequential:
    norm = nn.BatchNorm2d(3)
    nn.init.normal_(norm.weight)
    norm.running_mean, norm.running_var = torch.randn(3), 0.5 + torch.rand(3)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False), norm, nn.LeakyReLU(0.2),
        nn.AvgPool2d(2), nn.Identity(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3),
    )  # fmt: skip


NETWORKS = {
    "cnn2": ((1, 8, 8), lambda: CNN2(SHAPE, 3, widen=0.2)),
    "normalised": ((2, 8, 8), lambda: Normalised(_normed(), [0.2, 0.4], [0.5, 0.3])),
    "max pooling": (
        (2, 7, 7),
        lambda: nn.Sequential(
            nn.MaxPool2d(3, stride=2), nn.Conv2d(2, 3, 2), nn.ReLU(), nn.MaxPool2d((2, 1)),
            nn.Flatten(), nn.Linear(6, 3),
        ),
    ),
    "no activation": ((4,), lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))),
    "nested": ((4,), lambda: nn.Sequential(OrderedDict(a=mlp(4, 6, 6), b=mlp(6, 6, 3)))),
}  # fmt: skip
