"""The temperature at which a model is smoothed, which falls while an attack goes on."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from attacks.smoothing.mode import Smoothing
from attacks.smoothing.through import StraightThrough

# The usual temperatures, from and to: they do on networks of all kinds that were tried.
WARM = (1.0, 0.03)


class Cooling:
    """A falling temperature, for the gradients of one run of an attack.

    Each differentiated step lowers the temperature, geometrically from `hot` to `cold` over `steps`
    steps; from then on gradients are the model's own. Steps without gradients are left alone:
    smoothing changes derivatives and no value. See `Smoothing` for the units.

    through   whether steps that cut the gradient are passed straight through, as by
              `StraightThrough`; they then are to the end, at the last temperature.

    softened  how many operations were smoothed in the last step: 0 where the model has nothing to
              smooth, or torch runs it elsewhere.
    cuts      how many were passed straight through in it.

    >>> cooling = Cooling(hot=2.0, cold=0.5, steps=3)
    >>> x = torch.tensor([[-1.0, 3.0]], requires_grad=True)
    >>> for _ in range(4):
    ...     with cooling.step(x):
    ...         value = torch.relu(x).sum()
    ...     print([round(float(slope), 2) for slope in torch.autograd.grad(value, x)[0][0]])
    [0.44, 0.68]
    [0.38, 0.82]
    [0.27, 0.95]
    [0.0, 1.0]
    """

    def __init__(self, hot: float, cold: float, steps: int, through: bool = False) -> None:
        self._hot, self._cold, self._steps, self._through = hot, cold, steps, through
        self._taken = 0
        self._last: Smoothing | None = None

    @property
    def softened(self) -> int:
        return self._last.softened if self._last else 0

    @property
    def cuts(self) -> int:
        return self._last.cuts if isinstance(self._last, StraightThrough) else 0

    def step(self, points: Tensor) -> AbstractContextManager[object]:
        """A context for a forward at points (n, *shape), one step of the attack."""
        ended = self._taken >= self._steps and not self._through
        if ended or not (points.requires_grad and torch.is_grad_enabled()):
            return nullcontext()
        share = min(1.0, self._taken / max(1, self._steps - 1))
        self._taken += 1
        temperature = self._hot * (self._cold / self._hot) ** share
        if self._through:
            self._last = StraightThrough(temperature, points)
        else:
            self._last = Smoothing(temperature, len(points))
        return self._last
