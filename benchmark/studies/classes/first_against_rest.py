"""A classifier as seen by images that are not of its first class (RoBin, section 3.2)."""

import torch
from torch import Tensor, nn


class FirstAgainstRest(nn.Module):
    """A classifier of many classes as one of two: its first class against all others.

    It gives two logits (n, 2) of images (n, *shape): that of the first class, and the highest of
    the others. They predict 0 where the classifier predicts its first class, else 1, and their
    difference is what the prediction leads by.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(x)
        return torch.stack([logits[:, 0], logits[:, 1:].amax(1)], 1)
