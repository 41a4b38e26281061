"""A nonexpansive classifier that leaves what it is not sure of to another model."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from defenses.networks.architectures import Shape
from defenses.nonexpansive.nonexpansive_classifier import L2NonexpansiveClassifier, confidence_gap
from defenses.recipes.derived import Derived


class HybridClassifier(nn.Module):
    """A classifier of two models: the logits (n, classes) are those of `of` where its confidence
    gap is at least `threshold`, and those of `otherwise` elsewhere (Qian and Wegman 2019,
    "L2-nonexpansive neural networks", section 3.2).

    Gradients are those of the model that answers.
    """

    def __init__(
        self, of: L2NonexpansiveClassifier, otherwise: nn.Module, threshold: float
    ) -> None:
        super().__init__()
        self.of, self.otherwise, self.threshold = of, otherwise, threshold

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.of(x)
        sure = confidence_gap(logits.detach()) >= self.threshold
        return torch.where(sure[:, None], logits, self.otherwise(x))

    def certified_radius(self, x: Tensor) -> Tensor:
        """The L2 radius (n,) around images (n, *shape) within which `of` answers, and always the
        same; 0 where `otherwise` answers."""
        return self.of.radius((self.of.confidence_gap(x) - self.threshold).clamp_min(0))


@dataclass(frozen=True, kw_only=True)
class Hybrid(Derived):
    """An L2NNN that delegates images with a small confidence gap to another model (Qian and Wegman
    2019, section 3.2).

    of, otherwise  the defenses that it is made from: an L2NNN, and the one that it delegates to.
    threshold      the confidence gap, in units of the logits, below which it delegates; for MNIST
                   the source has 1.

    Raises ValueError for a threshold that is not above 0 and, by `derive`, where `of` is no L2NNN.
    """

    of: str
    otherwise: str
    threshold: float = 1.0

    parts: ClassVar[tuple[str, ...]] = ("of", "otherwise")
    needs_float32: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threshold > 0:
            raise ValueError(f"threshold must be above 0, not {self.threshold}")

    def derive(self, shape: Shape, classes: int, of: nn.Module, otherwise: nn.Module) -> nn.Module:
        if not isinstance(of, L2NonexpansiveClassifier):
            raise ValueError(f"hybrid: of must name an l2nnn, not {type(of).__name__}")
        return HybridClassifier(of, otherwise, self.threshold)
