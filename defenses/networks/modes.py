"""Train mode and eval mode of a module."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model is in eval mode inside, and each of its modules is back in its own mode after. One
    of frozen TorchScript has no modes."""
    modes = [(part, part.training) for part in model.modules() if hasattr(part, "training")]
    if modes:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
