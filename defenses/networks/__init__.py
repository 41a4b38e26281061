"""Architectures, with ordinary layers, and how modules are run."""

from defenses.networks.architectures import (
    ARCHITECTURES,
    CNN2,
    MLP,
    LeNet5,
    Myrtle,
    Shape,
    build_architecture,
)
from defenses.networks.residual import ResNet, WideResNet
from defenses.networks.text import parse_layers

__all__ = [
    "ARCHITECTURES",
    "CNN2",
    "MLP",
    "LeNet5",
    "Myrtle",
    "ResNet",
    "Shape",
    "WideResNet",
    "build_architecture",
    "parse_layers",
]
