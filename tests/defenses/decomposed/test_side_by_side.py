"""Several networks as one module do what each does alone."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from defenses import build_architecture
from defenses.decomposed.side_by_side import Networks
from defenses.networks.architectures import Shape

COUNT, IMAGES = 3, 5
KINDS: dict[str, tuple[Shape, float]] = {
    "mlp": ((1, 8, 8), 0.1),
    "cnn2": ((2, 8, 12), 0.2),
    "lenet5": ((1, 8, 8), 0.05),
    "myrtle": ((3, 8, 8), 0.04),
    "resnet18": ((3, 9, 8), 0.04),
}
# The most images for which a CPU runs all networks at once.
FEW = {"at once": 10**9, "one by one": 0}


def builder(kind: str) -> Callable[[], nn.Module]:
    shape, widen = KINDS[kind]
    return lambda: build_architecture(kind, shape, 2, widen=widen)


def several(kind: str, few: int = 10**9) -> tuple[Networks, list[nn.Module]]:
    """Networks of random weights and statistics, float64, and each of them alone."""
    networks = Networks(COUNT, builder(kind), KINDS[kind][0]).double()
    networks.few = few
    for name, value in networks.state_dict().items():
        if value.is_floating_point():
            value += 0.1 * (torch.rand_like(value) if "var" in name else torch.randn_like(value))
    alone = []
    for number in range(COUNT):
        one = builder(kind)().double()
        one.load_state_dict(
            {name: value[number] for name, value in networks.network.state_dict().items()}
        )
        alone.append(one)
    return networks, alone


def images(kind: str, shared: bool) -> Tensor:
    return torch.rand(1 if shared else COUNT, IMAGES, *KINDS[kind][0], dtype=torch.float64)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("shared", [False, True], ids=["own images", "shared images"])
@pytest.mark.parametrize("few", FEW.values(), ids=FEW)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_gradients_and_statistics_are_those_of_each_alone(
    kind: str, few: int, shared: bool, train: bool
) -> None:
    networks, alone = several(kind, few)
    x = images(kind, shared).requires_grad_()
    networks.train(train)
    logits = networks(x)
    weights = torch.randn_like(logits)
    (by_x,) = torch.autograd.grad((weights * logits).sum(), x, retain_graph=True)
    torch.autograd.backward((weights * logits).sum(), inputs=list(networks.parameters()))

    singly, gradients = [], torch.zeros_like(x)
    for number, one in enumerate(alone):
        own = x[0 if shared else number].detach().requires_grad_()
        singly.append(one.train(train)(own))
        (weights[number] * singly[-1]).sum().backward()
        gradients[0 if shared else number] += own.grad
    same(logits, torch.stack(singly))
    same(by_x, gradients)
    for number, one in enumerate(alone):
        named = dict(networks.network.named_parameters())
        for name, value in one.named_parameters():
            assert value.grad is not None
            assert named[name].grad is not None
            same(named[name].grad[number], value.grad)
        state = networks.network.state_dict()
        for name, value in one.state_dict().items():
            same(state[name][number], value)


@pytest.mark.parametrize("few", FEW.values(), ids=FEW)
def test_a_train_mode_pass_moves_every_networks_own_statistics(few: int) -> None:
    networks, _ = several("myrtle", few)
    norms = [part for part in networks.modules() if isinstance(part, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    with torch.no_grad():
        networks.eval()(images("myrtle", True))
        assert all(map(torch.equal, (norm.running_mean for norm in norms), before))
        networks.train()(images("myrtle", False))
    assert len(norms) == 4
    for norm, old in zip(norms, before, strict=True):
        assert (norm.running_mean != old).any(1).all()
        assert norm.num_batches_tracked.tolist() == [1] * COUNT


@pytest.mark.parametrize("few", FEW.values(), ids=FEW)
def test_dropout_is_each_networks_own(few: int) -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2))
    networks = Networks(2, lambda: layers, (1, 8, 8))
    networks.few = few
    x = torch.ones(1, 4, 1, 8, 8)
    for train in (False, True):
        first, second = networks.train(train)(x)
        assert torch.equal(first, second) is not train


def test_how_many_images_are_few_goes_by_the_widest_layer() -> None:
    """4x8x8 numbers behind the first convolution, and 64 of the image."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 2))
    assert Networks(2, lambda: network, (1, 8, 8)).few == 2**15 // 256


@pytest.mark.parametrize("kind", KINDS)
def test_copies_differ_and_come_back_from_a_state_dict(kind: str) -> None:
    networks, _ = several(kind)
    x = images(kind, True)
    logits = networks.eval()(x)
    assert all(not torch.allclose(logits[0], other) for other in logits[1:])
    fresh = Networks(COUNT, builder(kind), KINDS[kind][0]).double().eval()
    assert not torch.allclose(fresh(x), logits)
    fresh.load_state_dict(networks.state_dict())
    same(fresh(x), logits)

    twin = copy.deepcopy(networks)
    same(twin(x), logits)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(x).any()
    same(networks(x), logits)
    half = copy.deepcopy(networks).float()
    assert {value.dtype for value in half.parameters()} == {torch.float32}
    torch.testing.assert_close(half(x.float()), logits.float(), rtol=1e-3, atol=1e-3)


def test_weights_are_drawn_one_network_after_the_other() -> None:
    torch.manual_seed(3)
    networks = Networks(COUNT, builder("cnn2"), KINDS["cnn2"][0])
    torch.manual_seed(3)
    for number in range(COUNT):
        for name, value in builder("cnn2")().named_parameters():
            assert torch.equal(networks.network.get_parameter(name)[number], value)


def test_what_is_frozen_in_one_is_frozen_in_all() -> None:
    def build() -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Linear(2, 2))
        network[1].requires_grad_(False)
        return network

    networks = Networks(2, build, (1, 8, 8))
    learning = {name for name, value in networks.named_parameters() if value.requires_grad}
    assert learning == {"network.2.weight", "network.2.bias"}
    assert all(value.is_leaf for value in networks.parameters())
