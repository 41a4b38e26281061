import itertools

import pytest
import torch

from defenses.nonexpansive.appendix import ScaledSigmoid
from defenses.nonexpansive.layers import Linear
from defenses.nonexpansive.scalings import SCALINGS
from defenses.nonexpansive.stacks import STACKS, Stack, build_stack

STACK = 3


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("arch", STACKS)
@pytest.mark.parametrize("shared", [True, False])
def test_a_stack_is_its_networks_one_by_one(scaling: str, arch: str, shared: bool) -> None:
    shape = (2, 7, 8)
    stack = build_stack(arch, shape, STACK, 2, 0.5, scaling).double()
    singles = [build_stack(arch, shape, 1, 2, 0.5, scaling).double() for _ in range(STACK)]
    for i, single in enumerate(singles):
        single.load_state_dict({key: part[i : i + 1] for key, part in stack.state_dict().items()})
    assert isinstance(stack, Stack)
    x = torch.rand(1 if shared else STACK, 5, *shape, dtype=torch.float64, requires_grad=True)
    for training, stack.few in itertools.product((True, False), (0, 5)):
        stack.train(training)
        y = stack(x)
        alone = torch.cat(
            [
                single.train(training)(x if shared else x[i : i + 1])
                for i, single in enumerate(singles)
            ]
        )
        torch.testing.assert_close(y, alone)
        direction = torch.randn_like(y)
        wanted = torch.autograd.grad((alone * direction).sum(), x)
        torch.testing.assert_close(torch.autograd.grad((y * direction).sum(), x), wanted)


def test_training_is_the_same_all_at_once_and_one_by_one() -> None:
    stack = build_stack("conv", (1, 8, 8), STACK).double()
    assert isinstance(stack, Stack)
    x = torch.rand(1, 5, 1, 8, 8, dtype=torch.float64)
    gradients = []
    for stack.few in (0, 5):
        gradients.append(torch.autograd.grad(stack(x).square().sum(), list(stack.parameters())))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 8), (3, 9, 14), (1, 28, 28), (3, 32, 20)])
@pytest.mark.parametrize("arch", STACKS)
@pytest.mark.parametrize("widen", [0.01, 1.0, 1.5])
def test_images_become_outputs_whatever_else_is_in_the_batch(
    arch: str, shape: tuple[int, int, int], widen: float
) -> None:
    network = build_stack(arch, shape, 2, 3, widen).double().eval()
    # The most images that run at once, and one more.
    x = torch.rand(1, network.few + 1 if isinstance(network, Stack) else 0, *shape).double()[:, :20]
    outputs = network(x)
    assert outputs.shape == (2, x.shape[1], 3)
    torch.testing.assert_close(network(x[:, 1:2]), outputs[:, 1:2])


@pytest.mark.parametrize("arch", STACKS)
@pytest.mark.parametrize("images", [1, 300])
def test_some_networks_are_what_all_of_them_are(arch: str, images: int) -> None:
    stack = build_stack(arch, (1, 8, 8), 5, widen=0.25).double().eval()
    assert isinstance(stack, Stack)
    x = torch.rand(1, images, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(stack.some(x, slice(1, 4)), stack(x)[1:4])


def test_networks_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be told apart in ScaledSigmoid"):
        Stack(Linear(3, 6, 4), ScaledSigmoid(3, 4), Linear(3, 4, 1))
