"""Copies of a model share its memory until one is written to, and no write reaches another."""

import copy
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark.direct.evaluate import evaluate
from benchmark.judge.replica import copied, twin_of

MEGABYTE = 2**20


class Tied(nn.Module):
    """A network with tied weights, and with views of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8, bias=False)
        self.again = self.first
        self.register_buffer("table", torch.arange(8.0))
        self.half = self.table[4:]
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.again(self.first(x.flatten(1))))
        return x + self.table + self.half.sum()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten()
    ),
    "tied": Tied,
    "recurrent": lambda: nn.LSTM(8, 4),
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
}
WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda tensor: tensor.zero_(),
    "data": lambda tensor: tensor.data.fill_(1),
    "numpy": lambda tensor: np.copyto(tensor.numpy(), 1),
    "alias": lambda tensor: tensor.view(-1).detach()[:1].add_(1),
    "set": lambda tensor: tensor.set_(torch.ones(3, dtype=tensor.dtype)),
}


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in model.state_dict().values()]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_what_is_written_to_one_reaches_no_other(
    make: Callable[[], nn.Module], write: Callable[[Tensor], object]
) -> None:
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    known = copy.deepcopy(model.state_dict())
    first, second = copied(model), copied(model)
    third = copied(first)
    for writer in (first, third):
        for tensor in _tensors(writer):
            write(tensor)
    for other in (model, second):
        assert all(known[name].equal(value) for name, value in other.state_dict().items())
    # The user may train on, and a copy stays as it was.
    for tensor in _tensors(model):
        write(tensor)
    assert all(known[name].equal(value) for name, value in second.state_dict().items())


def test_parts_of_a_copy_that_share_memory_share_it_still() -> None:
    model = Tied()
    duplicate = copied(model)
    assert isinstance(duplicate, Tied)
    assert duplicate.first.weight is duplicate.again.weight
    duplicate.half.zero_()
    assert not duplicate.table[4:].any()
    assert model.table[4:].all()


@pytest.mark.parametrize("kind", ["plain", "traced", "cyclic"])
def test_what_is_handed_over_stays_where_it_was_in_memory(kind: str) -> None:
    model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    if kind == "traced":
        model = torch.fx.symbolic_trace(model)
    elif kind == "cyclic":
        model.itself = [model]  # type: ignore[assignment]
    (weight,) = (value for value in model.parameters() if value.dim() == 2)
    view, place = weight.detach().numpy(), weight.data_ptr()
    gc.disable()  # copies that hold themselves stay
    try:
        x = torch.rand(6, 1, 2, 2)
        evaluate(model, x, model(x).argmax(1), eps=0.1, attacks=["pgd/steps=2"])
        with torch.no_grad():
            weight.zero_()
    finally:
        gc.enable()
    assert weight.data_ptr() == place
    assert not view.any()


def test_parts_of_one_piece_of_memory_are_not_shared() -> None:
    flat = torch.arange(100.0)
    model = nn.ParameterList(nn.Parameter(part) for part in flat.split(10))
    duplicate = copied(model)
    assert not any(torch._C._is_cow_tensor(value) for value in duplicate.parameters())
    assert all(map(torch.equal, duplicate.parameters(), model.parameters()))


@pytest.mark.parametrize("kind", ["numpy", "shared", "memory map", "loaded"])
def test_memory_that_is_not_torch_s_own_is_copied(kind: str, tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    if kind == "numpy":
        model.weight.data = torch.from_numpy(np.ones((2, 4), np.float32))
    elif kind == "shared":
        model.share_memory()
    else:
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        mapped = kind == "memory map"
        state = torch.load(tmp_path / "weights.pt", mmap=mapped, weights_only=True)
        model.load_state_dict(state, assign=True)
    known = model.weight.detach().clone()
    duplicate = copied(model)
    assert isinstance(duplicate, nn.Linear)
    duplicate.weight.data.zero_()
    duplicate.bias.detach().add_(1)
    assert model.weight.equal(known)
    assert not copied(duplicate).bias.equal(model.bias)  # type: ignore[union-attr, arg-type]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_copies_take_no_memory_and_a_twin_only_that_of_its_own() -> None:
    model = nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(32)]).requires_grad_(False)
    size = 32 * 1024 * 1025 * 4
    before = _resident()
    copies = [copied(model) for _ in range(4)]
    for duplicate in copies:
        duplicate(torch.ones(2, 1024))
    assert _resident() - before < size / 2
    twin = twin_of(copies[0])
    assert 1.5 * size < _resident() - before < 3 * size
    assert next(twin.parameters()).dtype == torch.float64


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Masked(nn.Module):
    """A network whose weight carries a mask as an attribute of the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(16, 4)
        self.last.weight.mask = (torch.rand(4, 16) < 0.3).float()  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        mask = getattr(self.last.weight, "mask", 1.0)
        return nn.functional.linear(x.flatten(1), self.last.weight * mask, self.last.bias)


class Filled(nn.Module):
    """A network whose weight is a view of a buffer that it fills when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("flat", torch.zeros(64))
        self.raw, self.last = nn.Parameter(torch.randn(64)), nn.Linear(16, 4)
        self.last.weight = nn.Parameter(self.flat.view(4, 16))

    def forward(self, x: Tensor) -> Tensor:
        self.flat.copy_(self.raw.detach())
        logits: Tensor = self.last(x.flatten(1))
        return logits


@pytest.mark.parametrize("kind", [Masked, Filled])
def test_copies_have_what_parameters_carry_and_share(kind: type[nn.Module]) -> None:
    x, model = torch.rand(30, 1, 4, 4), kind().eval()
    known = copy.deepcopy(model.state_dict())
    assert copied(kind().eval()) is not None
    y = copied(model)(x).argmax(1)
    assert all(known[name].equal(value) for name, value in model.state_dict().items())
    assert y.equal(model(x).argmax(1))
    report = evaluate(model, x, y, norm="linf", eps=1e-6, attacks=["pgd/steps=3"])
    assert report.natural == 1.0


def test_a_copy_has_parametrizations_of_its_own() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    known = model(torch.ones(1, 3))
    duplicate = copied(model)
    assert isinstance(duplicate, nn.Sequential)
    nn.utils.parametrize.remove_parametrizations(duplicate[0], "weight")
    assert model(torch.ones(1, 3)).equal(known)
    assert duplicate(torch.ones(1, 3)).allclose(known)


def test_buffers_of_other_layouts_can_be_compared() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("which", torch.eye(4).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = torch.sparse.mm(self.which, x.flatten(1).T).T
            return logits

    x = torch.rand(10, 4)
    report = evaluate(Sparse(), x, x.argmax(1), eps=0.01, attacks=["pgd/steps=2"])
    assert report.natural == 1.0
