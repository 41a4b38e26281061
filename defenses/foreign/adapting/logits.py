"""Where the logits are in what a model returns, and which of them count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Reading:
    """What a user says of a model's outputs.

    output  where the logits are in a tuple or list (an index), or in a dictionary or an object (a
            key or the name of an attribute); None if the model returns them alone.
    binary  whether the model returns one logit per image, (n,) or (n, 1), that is above 0 for
            class 1. Its logits are then 0 and that.
    """

    output: int | str | None = None
    binary: bool = False

    def __call__(self, returned: Any, n: int) -> Tensor:
        """The logits (n, classes) in what a model returned for n images. Raises ValueError, in one
        line."""
        logits = self._picked(returned, n)
        if not self.binary:
            return logits
        if logits.dim() == 2 and logits.shape[1] == 1:
            logits = logits[:, 0]
        if logits.dim() != 1:
            raise ValueError(
                f"binary=True is for one logit per image, (n,) or (n, 1), not {kind_of(logits)}"
            )
        return torch.stack([torch.zeros_like(logits), logits], 1)

    def _picked(self, returned: Any, n: int) -> Tensor:
        picked = returned
        if self.output is not None:
            try:
                if isinstance(returned, Mapping) and self.output in returned:
                    picked = returned[self.output]
                elif isinstance(self.output, int):
                    several = isinstance(returned, Mapping)
                    picked = (list(returned.values()) if several else returned)[self.output]
                elif isinstance(returned, Mapping):
                    raise KeyError(self.output)
                else:
                    picked = getattr(returned, self.output)
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                self._refuse_needless(returned)
                raise ValueError(
                    f"the model returns {kind_of(returned)}, which has no output {self.output!r}"
                ) from error
            self._check_picked(returned, picked, n)
        if not isinstance(picked, Tensor):
            raise ValueError(
                f"the model must give logits (n, classes), not {kind_of(picked)}: say where they "
                f"are, such as output={_suggested(picked)}"
            )
        if not picked.dim():
            raise ValueError(f"the model must give logits (n, classes), not {kind_of(picked)}")
        if picked.is_complex():
            raise ValueError("the model gives complex logits: return their real part or their size")
        return picked

    def _check_picked(self, returned: Any, picked: Any, n: int) -> None:
        """Raises ValueError where what `output` picked holds nothing for each of n images."""
        # A single column is left to those who know what it may be.
        allowed = (1, 2) if self.binary or not isinstance(returned, Tensor) else (2,)
        if isinstance(picked, Tensor) and picked.dim() in allowed and len(picked) == n:
            return
        self._refuse_needless(returned)
        raise ValueError(
            f"output {self.output!r} of the model is {kind_of(picked)}, which is no batch of "
            f"logits (n, classes) for {n} images: name another output"
        )

    def _refuse_needless(self, returned: Any) -> None:
        """Raises ValueError where there is nothing to pick from."""
        if isinstance(returned, Tensor):
            raise ValueError(
                f"the model gives {kind_of(returned)} already: leave out output={self.output!r}, "
                "which says where the logits are in a tuple, a dictionary or an object"
            )


def kind_of(value: Any) -> str:
    """What a model returned, in words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(repr, value)) or 'nothing'}"
    return f"a {type(value).__name__}"


def _suggested(value: Any) -> str:
    if isinstance(value, tuple | list):
        rows = (place for place, part in enumerate(value) if _are_rows(part))
        return str(next(rows, 0))
    names = list(value) if isinstance(value, Mapping) else dir(value)
    return repr(next((name for name in names if "logit" in str(name)), "logits"))


def _are_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2


class Logits(nn.Module):
    """A model whose outputs are read: its logits, of some of its classes, in order.

    reading  where the logits are.
    classes  which of the model's classes are those of the data; None: all of them.
    """

    def __init__(
        self, model: nn.Module, reading: Reading, classes: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.model, self.reading = model, reading
        self.classes = None if classes is None else list(classes)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.reading(self.model(x), len(x))
        if self.classes is None:
            return logits
        if max(self.classes) >= logits.shape[1]:
            raise ValueError(f"classes name {max(self.classes)} of {logits.shape[1]} classes")
        return logits[:, self.classes]
