"""Weights that never expand an L2 distance, of many networks stacked in one tensor.

A stack of k matrices is a tensor (k, out, in). Each scaling turns any matrices into others whose
spectral norm is at most 1. One is that of Qian and Wegman 2019, "L2-nonexpansive neural networks"
(L2NNN, section 2.1); the two others keep more of the distances.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# What keeps a row of zeros from a division by zero; far below any rounding of a weight.
_TINY = 1e-30


def norm_bound(weight: Tensor) -> Tensor:
    """b(W) (k,) of matrices (k, out, in): at least the square of the spectral norm (L2NNN, equation
    (2)), the smaller of the largest absolute row sums of WᵀW and WWᵀ."""
    return torch.minimum(
        _row_sums(weight.mT @ weight).amax(-1), _row_sums(weight @ weight.mT).amax(-1)
    )


def penalty(weight: Tensor) -> Tensor:
    """How far b(W) is above 1, summed over rows, for matrices (k, out, in): (k,) (L2NNN, equation
    (7))."""
    return torch.minimum(
        (_row_sums(weight.mT @ weight) - 1).relu().sum(-1),
        (_row_sums(weight @ weight.mT) - 1).relu().sum(-1),
    )


def by_bound(weight: Tensor) -> Tensor:
    """W / sqrt(b(W)) for matrices (k, out, in) (L2NNN, section 2.1)."""
    return weight / norm_bound(weight).clamp_min(_TINY).sqrt()[:, None, None]


def almost_orthogonal(weight: Tensor) -> Tensor:
    """Each row of matrices (k, out, in) by its own sum, (sum_k |(WWᵀ)_ik|)^(-1/2) (Prach and
    Lampert 2022, theorem 1, on the shorter side); rows that are orthogonal stay of norm 1."""
    if weight.shape[-2] > weight.shape[-1]:
        return almost_orthogonal(weight.mT).mT
    return weight * _row_sums(weight @ weight.mT).clamp_min(_TINY).rsqrt()[..., None]


def cayley(weight: Tensor) -> Tensor:
    """Orthonormal rows, or columns where these are fewer, from any matrices (k, out, in).

    The Cayley transform of a tall matrix, which inverts only its small side (Trockman and Kolter
    2021, section 4.2 and appendix).
    """
    if weight.shape[-2] < weight.shape[-1]:
        return cayley(weight.mT).mT
    side = weight.shape[-1]
    square, rest = weight[..., :side, :], weight[..., side:, :]
    skewed = square - square.mT + rest.mT @ rest
    identity = torch.eye(side, dtype=weight.dtype, device=weight.device)
    inverse = _inverse(identity + skewed)
    return torch.cat([(identity - skewed) @ inverse, -2 * rest @ inverse], dim=-2)


SCALINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "bound": by_bound,
    "almost-orthogonal": almost_orthogonal,
    "cayley": cayley,
}


def _row_sums(gram: Tensor) -> Tensor:
    return gram.abs().sum(-1)


def _inverse(matrices: Tensor) -> Tensor:
    # One by one: on several threads a batch of large ones comes out wrong (PyTorch issue 142815).
    alone = matrices.device.type == "cpu"
    return torch.stack([_invert(matrix) for matrix in matrices]) if alone else _invert(matrices)


def _invert(matrices: Tensor) -> Tensor:
    # NaN, not an error, where weights are so large that rounding leaves none: training stops then.
    inverse, failed = torch.linalg.inv_ex(matrices)
    return torch.where(failed[..., None, None] == 0, inverse, torch.nan)
