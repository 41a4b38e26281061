"""What models hold out of sight: modules of functions, states, other answers under gradients."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmark import UserError, evaluate

X = torch.rand(40, 4, generator=torch.Generator().manual_seed(0))


class OfFunction(nn.Module):
    """A model that does what a function does."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    network[1].running_mean += 0.5
    return network


def _by_closure(network: nn.Module) -> nn.Module:
    return OfFunction(lambda x: network(x))


def _by_default(network: nn.Module) -> nn.Module:
    return OfFunction(lambda x, net=network: net(x))


def _by_keyword(network: nn.Module) -> nn.Module:
    model = OfFunction(lambda x, *, net=network: net(x))
    model.registered = network
    return model


def _by_attribute(network: nn.Module) -> nn.Module:
    def function(x: Tensor) -> Tensor:
        result: Tensor = function.network(x)  # type: ignore[attr-defined]
        return result

    function.network = network  # type: ignore[attr-defined]
    return OfFunction(function)


@pytest.mark.parametrize("held", [_by_closure, _by_default, _by_keyword, _by_attribute])
def test_a_network_that_a_function_holds_is_judged_by_a_copy_in_eval_mode(
    held: Callable[[nn.Module], nn.Module],
) -> None:
    network = _network()
    y = copy.deepcopy(network).eval()(X).argmax(1)
    before = copy.deepcopy(network.state_dict())
    report = evaluate(held(network), X, y, eps=0.05, suite="quick")
    plain = evaluate(copy.deepcopy(network).eval(), X, y, eps=0.05, suite="quick")
    assert (report.natural, report.best_attack) == (plain.natural, plain.best_attack)
    assert network.training
    for name, value in network.state_dict().items():
        assert value.equal(before[name])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_generator_that_a_function_holds_stays_as_it_is() -> None:
    network, generator = nn.Linear(4, 3), torch.Generator().manual_seed(3)
    before = generator.get_state()
    model = OfFunction(lambda x: network(x) + torch.randn(len(x), 3, generator=generator))
    report = evaluate(model, X, network(X).argmax(1), eps=0.1, suite="none")
    assert "non-deterministic" in report.flags
    assert generator.get_state().equal(before)


def test_what_a_function_remembers_stays_as_it_is() -> None:
    network, seen = nn.Linear(4, 3), torch.zeros(1)
    last: Any = None

    def function(x: Tensor) -> Tensor:
        nonlocal last
        last = x
        seen.add_(1)
        return network(x)

    evaluate(OfFunction(function), X, network(X).argmax(1), eps=0.1, suite="none")
    assert last is None
    assert float(seen) == 0


class SetUpByTheFirst(nn.Module):
    """A network that centres its logits by the first images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(4, 3)
        self.state: list[Tensor | None] = [None]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        if self.state[0] is None:
            self.state[0] = logits.mean(0).detach()
        return logits - self.state[0]


def test_a_model_that_its_first_images_set_up_is_refused_until_it_is() -> None:
    torch.manual_seed(0)
    model = SetUpByTheFirst()
    y = torch.zeros(40, dtype=torch.int64)
    with pytest.raises(UserError, match="set up by the first images"):
        evaluate(model, X, y, eps=0.1, suite="none")
    model(X[:5])
    known = float((model(X).argmax(1) == y).double().mean())
    reports = [evaluate(model, X, y, eps=0.1, suite="none", block=block) for block in (1, 7, 40)]
    assert {report.natural for report in reports} == {known}


@pytest.mark.parametrize("asks", ["grad mode", "requires_grad"])
def test_a_model_that_answers_otherwise_under_gradients_is_refused(asks: str) -> None:
    network = nn.Linear(4, 3)

    def function(x: Tensor) -> Tensor:
        other = torch.is_grad_enabled() if asks == "grad mode" else x.requires_grad
        logits: Tensor = network(x)
        return -logits if other else logits

    with pytest.raises(UserError, match="other logits where gradients are on"):
        evaluate(OfFunction(function), X, network(X).argmax(1), eps=0.1, suite="none")


@pytest.mark.parametrize("masked", [-1e9, torch.finfo(torch.float32).min, -1e4])
def test_a_masked_class_does_not_hide_that_a_model_mixes_its_batch(masked: float) -> None:
    network = nn.Linear(4, 3)

    def function(x: Tensor) -> Tensor:
        logits = network(x) + x.mean() * torch.tensor([1.0, -1.0, 0.0])
        return torch.cat([logits, torch.full((len(x), 1), masked)], dim=1)

    y = network(X).argmax(1)
    reports = [
        evaluate(OfFunction(function), X, y, eps=0.1, suite="none", block=block)
        for block in (5, 40)
    ]
    for report in reports:
        assert "batch-dependent" in report.flags
    assert reports[0].natural == reports[1].natural


@pytest.mark.parametrize("masked", [-1e9, torch.finfo(torch.float32).min, -1e4])
def test_a_masked_class_makes_no_false_flag(masked: float) -> None:
    network = _network().eval()

    def function(x: Tensor) -> Tensor:
        return torch.cat([network(x), torch.full((len(x), 1), masked)], dim=1)

    y = network(X).argmax(1)
    report = evaluate(OfFunction(function), X, y, eps=0.01, suite="none")
    assert not {"batch-dependent", "non-deterministic", "float32-only"} & report.flags.keys()
    assert report.natural == 1


def test_the_generator_of_a_loader_stays_as_it_is() -> None:
    network, generator = nn.Linear(4, 3), torch.Generator().manual_seed(3)
    before = generator.get_state()
    data = TensorDataset(X, network(X).argmax(1))
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
    assert evaluate(network, loader, eps=0.1, suite="none").natural == 1
    assert generator.get_state().equal(before)


@pytest.mark.filterwarnings("ignore")  # torch deprecates both kinds of tensors
def test_masked_arrays_and_quantised_images_are_refused() -> None:
    network = nn.Linear(4, 3)
    y = network(X).argmax(1)
    masked = np.ma.masked_array(X.numpy(), mask=X.numpy() < 0.5)
    with pytest.raises(UserError, match="masked entries"):
        evaluate(network, masked, y, eps=0.1, suite="none")
    quantised = torch.quantize_per_tensor(X, 0.1, 0, torch.quint8)
    with pytest.raises(UserError, match="dense tensor"):
        evaluate(network, quantised, y, eps=0.1, suite="none")
    with pytest.raises(UserError, match="nested"):
        evaluate(network, torch.nested.nested_tensor(list(X)), y, eps=0.1, suite="none")


def test_images_without_any_finite_logit_count_as_undefined() -> None:
    network = nn.Linear(4, 3)

    def function(x: Tensor) -> Tensor:
        logits: Tensor = network(x)
        return logits.where(x[:, :1] < 0.5, -torch.inf)

    report = evaluate(OfFunction(function), X, network(X).argmax(1), eps=0.01, suite="none")
    assert report.natural == float((X[:, 0] < 0.5).double().mean())
    assert "nan" in report.flags


def test_the_default_dtype_of_the_caller_is_no_matter() -> None:
    network = nn.Linear(4, 3)
    y = network(X).argmax(1)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert evaluate(network, X, y, eps=0.1, suite="none").natural == 1
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_minimal_norm_attack_on_a_random_model_is_judged_within_the_ball() -> None:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(6, generator=generator)
    x = 0.5 + 0.1 * direction / direction.norm() * torch.ones(200, 1)
    rise = nn.Linear(6, 2)
    rise.weight.data, rise.bias.data = torch.stack([direction, -direction]), torch.zeros(2)
    model = OfFunction(lambda x: rise(x - 0.5 + 0.1 * torch.randn_like(x)))
    y = torch.zeros(200, dtype=torch.int64)
    # The images are 1 standard deviation from the boundary, and at eps half of one.
    attacks = ["cw/steps=50/searches=2"]
    report = evaluate(model, x, y, norm="l2", eps=0.05, attacks=attacks)
    assert abs(report.natural - 0.841) < 0.02
    assert abs(report.best_attack - 0.691) < 0.03
