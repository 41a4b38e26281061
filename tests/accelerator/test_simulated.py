"""The simulated accelerator itself: it computes as the CPU does, and notices what it is for."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.accelerator.simulated import (
    DEVICE,
    HOST,
    Accelerator,
    MixedDevicesError,
    OnDevice,
    accelerator,
    to_host,
)


@pytest.fixture
def device() -> Iterator[Accelerator]:
    with accelerator() as simulated:
        yield simulated


def _there(*numbers: float) -> Tensor:
    """A tensor on the device, which nothing waited for."""
    return OnDevice(torch.tensor(numbers))


MAKES: dict[str, Callable[[], Tensor]] = {
    "zeros": lambda: torch.zeros(3, device=DEVICE),
    "full": lambda: torch.full((2,), 0.5, device=DEVICE),
    "arange": lambda: torch.arange(4, device=DEVICE),
    "rand": lambda: torch.rand(3, device=DEVICE),
    "tensor": lambda: torch.tensor([1.0, 2.0], device=DEVICE),
    "as_tensor": lambda: torch.as_tensor(0.5, dtype=torch.float64, device=DEVICE),
    "new_tensor": lambda: _there(1.0).double().new_tensor([3.0, 4.0]),
    "new_full": lambda: _there(1.0).new_full((2,), 7.0),
    "like": lambda: torch.ones_like(_there(1.0, 2.0)),
    "moved": lambda: torch.ones(3).to(DEVICE),
    "computed": lambda: (2 * _there(1.0, 2.0) + torch.tensor(1.0)).sqrt(),
    "indexed by a list": lambda: _there(1.0, 2.0, 3.0)[[2, 0]],
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_what_is_made_on_the_device_has_the_values_of_the_cpu(
    make: Callable[[], Tensor], device: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    made = make()
    assert isinstance(made, OnDevice)
    assert made.device == DEVICE
    torch.manual_seed(1)
    monkeypatch.setitem(globals(), "DEVICE", HOST)
    monkeypatch.setitem(globals(), "_there", lambda *numbers: torch.tensor(numbers))
    expected = make()
    assert expected.device == HOST
    torch.testing.assert_close(to_host(made), expected, rtol=0, atol=0)


ROWS, MASK = torch.tensor([1, 0]), torch.tensor([True, False])
MIXED: dict[str, Callable[[Tensor], object]] = {
    "sum": lambda x: x + torch.ones(2),
    "sum on the host": lambda x: torch.ones(2) + x,
    "in place on the host": lambda x: torch.ones(2).add_(x),
    "product": lambda x: x[None] @ torch.ones(2, 2),
    "concatenation": lambda x: torch.cat([x, torch.ones(2)]),
    "choice": lambda x: torch.where(MASK, x, 0.0),
    "gathered": lambda x: x.gather(0, ROWS),
    "host indexed by the device": lambda x: torch.ones(2)[x.long()],
    "values of the host": lambda x: x.index_put_((ROWS.to(DEVICE),), torch.ones(2)),
    "clamped": lambda x: x.clamp(torch.zeros(2), torch.ones(2)),
    "loss": lambda x: nn.functional.cross_entropy(x[None], torch.zeros(1).long()),
    "layer": lambda x: nn.Linear(2, 3)(x),
}


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_tensors_of_both_devices_do_not_mix(
    mix: Callable[[Tensor], object], device: Accelerator
) -> None:
    with pytest.raises(MixedDevicesError, match="host"):
        mix(_there(1.0, 2.0))


TAKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "a number": lambda x: x * 2,
    "a tensor without dimensions": lambda x: torch.where(x > 1, x, torch.tensor(0.0)),
    "indices": lambda x: x[ROWS],
    "a mask": lambda x: x[MASK],
    "a filled mask": lambda x: x.masked_fill(x > 1, torch.tensor(0.0)),
}


@pytest.mark.parametrize("take", TAKEN.values(), ids=TAKEN)
def test_what_cuda_takes_from_the_host_is_taken(
    take: Callable[[Tensor], Tensor], device: Accelerator
) -> None:
    torch.testing.assert_close(to_host(take(_there(1.0, 2.0))), take(torch.tensor([1.0, 2.0])))


# Each waits as often as the number says.
WAITING: dict[str, tuple[Callable[[Tensor], object], int]] = {
    "item": (lambda x: x[0].item(), 1),
    "float": (lambda x: float(x.sum()), 1),
    "bool": (lambda x: bool((x > 0).any()), 1),
    "if": (lambda x: 1 if x[0] > 0 else 0, 1),
    "tolist": (lambda x: x.tolist(), 1),
    "cpu": (lambda x: x.cpu(), 1),
    "to the host": (lambda x: x.to("cpu", torch.float64), 1),
    "copied to the host": (lambda x: torch.ones(2).copy_(x), 1),
    "from the host": (lambda x: torch.ones(2).to(x.device), 1),
    "of numbers": (lambda x: torch.tensor([1.0], device=x.device), 1),
    "without blocking": (lambda x: x.to("cpu", non_blocking=True), 0),
    "nonzero": (lambda x: x.nonzero(), 1),
    "where": (lambda x: torch.where(x > 0), 1),
    "mask": (lambda x: x[x > 0], 1),
    "a mask of two": (lambda x: (x[x > 0], x[x > 0]), 2),
    "masked_select": (lambda x: x.masked_select(x > 0), 1),
    "set by a mask": (lambda x: x.__setitem__(x > 0, x.clone()), 1),
    "filled by a mask": (lambda x: x.__setitem__(x > 0, 1.0), 0),
    "unique": (lambda x: x.unique(), 1),
    "repeated": (lambda x: x.repeat_interleave(x.long()), 1),
    "equal": (lambda x: x.equal(x), 1),
    "allclose": (lambda x: torch.allclose(x, x), 1),
    "indices of the host": (lambda x: x[ROWS], 1),
    "indices": (lambda x: x[x.long().clamp(0, 1)], 0),
    "slice": (lambda x: x[1:], 0),
    "sorted": (lambda x: x.sort().values.topk(1), 0),
    "chosen": (lambda x: torch.where(x > 0, x, -x).sum(), 0),
    "filled": (lambda x: torch.full_like(x, 2).add_(torch.zeros((), device=x.device)), 0),
}


@pytest.mark.parametrize(("use", "count"), WAITING.values(), ids=WAITING)
def test_waits_are_counted(
    use: Callable[[Tensor], object], count: int, device: Accelerator
) -> None:
    use(_there(1.0, 2.0))
    assert device.waited == count, device.waits


def test_a_network_trains_as_on_the_cpu(device: Accelerator) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    x, y = torch.randn(8, 3), torch.arange(8) % 2

    def trained(at: torch.device) -> dict[str, Tensor]:
        model = copy.deepcopy(network).to(at)
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        for _ in range(5):
            loss = nn.functional.cross_entropy(model(x.to(at)), y.to(at))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return {name: to_host(value) for name, value in model.state_dict().items()}

    on_device, on_host = trained(DEVICE), trained(HOST)
    for name, value in on_host.items():
        torch.testing.assert_close(on_device[name], value)
    assert not torch.equal(on_host["0.weight"], network[0].weight)


def test_copies_of_a_module_on_the_device_are_their_own(device: Accelerator) -> None:
    module = nn.Linear(2, 2).to(DEVICE)
    duplicate = copy.deepcopy(module).double()
    assert isinstance(duplicate.weight, nn.Parameter)
    assert duplicate.weight.requires_grad
    with torch.no_grad():
        duplicate.weight.zero_()
    assert to_host(duplicate.weight).dtype == torch.float64
    assert bool((to_host(module.weight) != 0).all())


def test_views_and_changes_in_place_share_memory(device: Accelerator) -> None:
    x = _there(1.0, 2.0, 3.0)
    x[1:].add_(1)
    x.data[0] = 9.0
    assert to_host(x).tolist() == [9.0, 3.0, 4.0]


def test_nothing_of_the_device_is_used_outside_of_it() -> None:
    with accelerator():
        x = torch.ones(2, device=DEVICE)
    with pytest.raises(RuntimeError, match="outside"):
        x + 1


def test_a_meta_tensor_of_torch_is_not_taken_for_the_device() -> None:
    stray = torch.ones(2, device="meta")
    with accelerator(), pytest.raises(RuntimeError, match="did not make"):
        stray + 1
