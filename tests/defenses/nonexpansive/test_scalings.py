import pytest
import torch
from torch import Tensor

from defenses.nonexpansive.scalings import (
    SCALINGS,
    almost_orthogonal,
    by_bound,
    cayley,
    norm_bound,
    penalty,
)

SIZES = [(1, 1), (1, 7), (7, 1), (5, 5), (4, 9), (9, 4), (30, 50)]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _norms(weight: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(weight, 2)


def _orthogonal(outputs: int, inputs: int) -> Tensor:
    side = max(outputs, inputs)
    return torch.linalg.qr(_random(3, side, side))[0][:, :outputs, :inputs]


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_the_bound_is_at_least_the_square_of_the_spectral_norm(outputs: int, inputs: int) -> None:
    for spread in (0.01, 1.0, 100.0):
        weight = spread * _random(50, outputs, inputs)
        assert (norm_bound(weight) >= _norms(weight).square() * (1 - 1e-12)).all()


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_the_bound_is_exact_for_orthogonal_rows_or_columns(outputs: int, inputs: int) -> None:
    weight = 3 * _orthogonal(outputs, inputs)
    torch.testing.assert_close(norm_bound(weight), torch.full((3,), 9.0, dtype=torch.float64))
    torch.testing.assert_close(norm_bound(weight), _norms(weight).square())


def test_bound_and_penalty_by_hand() -> None:
    # WᵀW = [[1, 2], [2, 5]], with row sums 3 and 7; WWᵀ = [[5, 2], [2, 1]], with 7 and 3.
    skew = [[1.0, 2.0], [0.0, 1.0]]
    # WᵀW is of ones, with row sums 3, 3 and 3; WWᵀ has 3 and 0.
    row = [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    # Both of 1/2 and 1/4.
    small = [[2**-0.5, 0.0], [0.0, 0.5]]
    assert norm_bound(torch.tensor([skew, small])).tolist() == pytest.approx([7, 0.5])
    assert penalty(torch.tensor([skew, small])).tolist() == pytest.approx([6 + 2, 0])
    assert norm_bound(torch.tensor([row])).item() == 3
    # The lesser of 2 + 2 + 2 and 2.
    assert penalty(torch.tensor([row])).item() == 2


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_the_penalty_is_0_exactly_where_the_bound_is_at_most_1(outputs: int, inputs: int) -> None:
    weight = by_bound(_random(20, outputs, inputs))
    assert (penalty(0.999 * weight) == 0).all()
    assert (penalty(1.001 * weight) > 0).all()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_every_scaling_makes_norms_of_at_most_1(scaling: str, outputs: int, inputs: int) -> None:
    for spread in (1e-6, 0.1, 1.0, 100.0):
        weight = SCALINGS[scaling](spread * _random(10, outputs, inputs))
        assert (_norms(weight) <= 1 + 1e-9).all()


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_scalings_of_zeros_are_finite_with_finite_gradients(
    scaling: str, outputs: int, inputs: int
) -> None:
    for dtype in (torch.float32, torch.float64):
        # All of zeros; a row of zeros; a column of zeros.
        weight = torch.randn(3, outputs, inputs, dtype=dtype)
        weight[0], weight[1, 0], weight[2, :, 0] = 0, 0, 0
        weight.requires_grad_()
        made = SCALINGS[scaling](weight)
        (gradient,) = torch.autograd.grad((made * torch.randn_like(made)).sum(), weight)
        assert made.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_cayley_makes_orthonormal_rows_or_columns(outputs: int, inputs: int) -> None:
    weight = cayley(_random(10, outputs, inputs))
    gram = weight @ weight.mT if outputs <= inputs else weight.mT @ weight
    torch.testing.assert_close(gram, torch.eye(len(gram[0]), dtype=gram.dtype).expand_as(gram))


@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_the_others_keep_what_is_orthonormal(outputs: int, inputs: int) -> None:
    weight = _orthogonal(outputs, inputs)
    torch.testing.assert_close(by_bound(5 * weight), weight)
    # Each row alone, so rows of any norms become of norm 1: those of the shorter side.
    torch.testing.assert_close(almost_orthogonal(5 * weight), weight)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_matrices_of_a_stack_do_not_mix(scaling: str) -> None:
    for outputs, inputs in SIZES:
        weight = _random(4, outputs, inputs)
        alone = torch.cat([SCALINGS[scaling](one[None]) for one in weight])
        torch.testing.assert_close(SCALINGS[scaling](weight), alone)


def test_large_stacks_are_right_on_several_threads() -> None:
    """Where PyTorch's inverse of a batch is wrong (PyTorch issue 142815)."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        weight = cayley(torch.randn(8, 256, 300) / 16)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(
        weight @ weight.mT, torch.eye(256).expand(8, 256, 256), atol=1e-5, rtol=0
    )
