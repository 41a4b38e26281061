"""Further layers that never expand an L2 distance (Qian and Wegman 2019, "L2-nonexpansive neural
networks", L2NNN below, appendix A), for tensors as in `defenses.nonexpansive.layers`."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

# What keeps the largest factor from being 0 where it divides; far below any rounding.
_TINY = 1e-30


class ScaledSigmoid(nn.Module):
    """t sigmoid(4x / t) with a trainable t > 0 per neuron (L2NNN, equation (8)), for tensors
    (1 or k, n, *features)."""

    def __init__(self, stack: int, *features: int) -> None:
        super().__init__()
        self.log_t = nn.Parameter(torch.zeros(stack, 1, *features))

    def forward(self, x: Tensor) -> Tensor:
        t = self.log_t.exp()
        return t * torch.sigmoid(4 * x / t)


class Residual(nn.Module):
    """t^2 x + sqrt(1 - t^2) f(sqrt(1 - t^2) x), a skip around the branch f, with one trainable t in
    (0, 1) for each network (L2NNN, equations (9) and (10)).

    Unstated in the source: where t begins, here at 0.94, so that most of the distance is kept while
    the branch, whose convolutions shrink it, is not trained.
    """

    def __init__(self, stack: int, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        # t^2 is its sigmoid.
        self.odds = nn.Parameter(torch.full((stack,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        odds = self.odds.reshape(-1, *[1] * (x.dim() - 1))
        rest = (logsigmoid(-odds) / 2).exp()
        return odds.sigmoid() * x + rest * cast(Tensor, self.branch(rest * x))


class SubtractMean(nn.Module):
    """Subtracts the mean over the given dimensions of the features, the first of which is 2 (L2NNN,
    appendix A.5)."""

    def __init__(self, dims: tuple[int, ...] = (2,)) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(self.dims, keepdim=True)


class BoundedScale(nn.Module):
    """A trainable factor for each of the features of dimension 2, divided by the largest of their
    absolute values (L2NNN, appendix A.5)."""

    def __init__(self, stack: int, features: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(stack, features))

    def forward(self, x: Tensor) -> Tensor:
        bounded = self.factor / self.factor.abs().amax(1, keepdim=True).clamp_min(_TINY)
        return x * bounded[:, None].reshape(len(bounded), 1, -1, *[1] * (x.dim() - 3))
