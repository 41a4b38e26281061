"""Every attack runs on the simulated accelerator, finds there what it finds on the CPU, and seldom
waits for the device."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from attacks import Problem, ThreatModel
from attacks.threat import Norm
from benchmark.spec.registry import ATTACKS
from tests.accelerator.simulated import DEVICE, HOST, OnDevice, accelerator, to_host
from tests.guarded import (
    ATTACK_OPTIONS,
    SHAPE,
    _Misleading,
    _Network,
    _network_for,
    _Staged,
    _wave,
    attack_of,
)

# Far enough to break some of the samples, so that some leave the batch and others stay.
EPS = {"l2": 0.05, "linf": 0.01, "l1": 0.05}

# Attacks of libraries wait as they like.
LIBRARIES = ("foolbox", "torchattacks")


@dataclass
class Ran:
    """What became of an attack: its points (n, *shape) on the host, and how often it called the
    model and waited for the device."""

    points: Tensor
    calls: int
    waits: int


def _problem(model: nn.Module, norm: Norm, device: torch.device) -> Problem:
    x = (_wave(24, *SHAPE, phase=0.4) + 1) / 2
    y = model(x).argmax(1)
    peers = {"other": _Network(0.05).to(device)}
    model = copy.deepcopy(model).to(device)
    threat = ThreatModel(norm, EPS[norm])
    return Problem(model, x.to(device), y.to(device), threat, seed=3, peers=peers)


def _run(
    text: str,
    model: nn.Module,
    norm: Norm,
    device: torch.device = DEVICE,
    change: Callable[[Problem], Problem] = lambda problem: problem,
) -> Ran:
    """Run an attack that is written so, on a problem that is changed first."""
    calls = 0

    def meter(rows: Tensor, logits: Tensor) -> None:
        nonlocal calls
        calls += 1

    attack = attack_of(text)
    with accelerator() if device == DEVICE else nullcontext() as simulated:
        problem = change(replace(_problem(model, norm, device), meter=meter))
        before = simulated.waited if simulated else 0
        points = attack(problem)
        waits = simulated.waited - before if simulated else 0
        assert isinstance(points, OnDevice) == (device == DEVICE)
    return Ran(to_host(points), calls, waits)


def _with_norms(texts: dict[str, str], slow: tuple[str, ...] = ()) -> list[object]:
    """The names and norms of attacks. All but the first norm, and those that are slow, are marked
    so."""
    return [
        pytest.param(name, norm, id=f"{name}-{norm}",
                     marks=[pytest.mark.slow] if name in slow or place else [])
        for name, text in texts.items()
        for place, norm in enumerate(attack_of(text).facts.norms)
    ]  # fmt: skip


NAMED = {
    name: ATTACK_OPTIONS.get(name, f"{name}:pgd/steps=6")
    for name in sorted(ATTACKS._builtin)
    if name not in LIBRARIES
}


COSTLY = ("best-arm", "boundary", "cw", "ddn", "robin", "smoothed", "square", "strong")


@pytest.mark.parametrize(("name", "norm"), _with_norms(NAMED, slow=COSTLY))
def test_an_attack_finds_on_the_device_what_it_finds_on_the_cpu(name: str, norm: Norm) -> None:
    text, model = NAMED[name], _network_for(name)
    on_device, on_host = _run(text, model, norm), _run(text, model, norm, HOST)
    assert on_device.calls == on_host.calls
    torch.testing.assert_close(on_device.points, on_host.points, rtol=0, atol=0)


# Attacks by their number of steps, the network, and steps after which all of their loops are under
# way: they look for samples that can leave at every 8th step from the 32nd on.
UNDER_WAY: dict[str, tuple[str, Callable[[], nn.Module], int]] = {
    "pgd": ("pgd/steps={}", _Network, 40),
    "apgd": ("apgd/steps={}", _Network, 40),
    "cw": ("cw/steps={}/searches=2/minimize/abort_early=false", _Network, 40),
    "ddn": ("ddn/steps={}/minimize", _Network, 400),
    "boundary": ("boundary/steps={}/minimize", _Network, 480),
    "boundary to the budget": ("boundary/steps={}", _Network, 480),
    "rays": ("rays/steps={}/minimize", _Network, 64),
    "rays to the budget": ("rays/steps={}", _Network, 64),
    "square": ("square/steps={}", _Network, 48),
    "strong": ("strong/steps={}/queries=40", _Network, 40),
    "strong, queries": ("strong/steps=8/queries={}", _Misleading, 640),
    "targeted": ("targeted:pgd/steps={}", _Network, 40),
    "smoothed": ("smoothed:pgd/steps={}", _Network, 40),
    "bpda": ("bpda:pgd/steps={}", _Network, 40),
    "transfer": ("transfer:pgd/steps={}/source=other", _Network, 40),
    "seeded": ("seeded:square/steps={}/source=other", _Network, 48),
    "robin on arms": ("robin:pgd/steps={}", lambda: _network_for("robin"), 40),
    "robin on stages": ("robin:pgd/steps={}", _Staged, 40),
    "hierarchical": ("hierarchical:pgd/steps={}", _Staged, 40),
    **{
        name: (f"{name}:pgd/steps={{}}", lambda: _network_for("robin"), 40)
        for name in ("best-arm", "top-2", "softmax", "highest-arm", "average-gradient",
                     "softmax-top-2")
    },
}  # fmt: skip
LONG = (
    "ddn", "boundary", "boundary to the budget", "strong", "strong, queries", "seeded", "smoothed",
    "robin on arms", "robin on stages", "hierarchical", "best-arm", "targeted",
)  # fmt: skip


def per_step(name: str, norm: Norm) -> tuple[int, float]:
    """How many more steps an attack of twice as many steps takes, and how often it waits in each
    of these."""
    text, network, steps = UNDER_WAY[name]
    once, twice = (_run(text.format(count), network(), norm) for count in (steps, 2 * steps))
    more = twice.calls - once.calls
    return more, (twice.waits - once.waits) / max(1, more)


@pytest.mark.parametrize(
    ("name", "norm"),
    _with_norms({key: text.format(n) for key, (text, _, n) in UNDER_WAY.items()}, slow=LONG),
)
def test_an_attack_under_way_waits_at_most_once_in_eight_steps(name: str, norm: Norm) -> None:
    steps, waits = per_step(name, norm)
    assert steps > 0
    assert waits <= 1 / 8


def test_every_attack_is_watched() -> None:
    watched = {text.partition("/")[0].partition(":")[0] for text, _, _ in UNDER_WAY.values()}
    assert watched == set(NAMED)


# Bounds of each pixel, one of which cannot move, in double precision.
def _bounds() -> tuple[Tensor, Tensor]:
    lower, upper = torch.zeros(SHAPE).double(), torch.ones(SHAPE).double()
    lower[0, 0, 0] = upper[0, 0, 0] = 0.5
    return lower, upper


def _held(problem: Problem, lower: float | Tensor, upper: float | Tensor) -> Problem:
    x = problem.x.clone()
    x[:, 0, 0, 0] = 0.5
    return replace(problem, x=x, threat=replace(problem.threat, lower=lower, upper=upper))


BOUNDS: dict[str, Callable[[Problem], Problem]] = {
    "on the host": lambda problem: _held(problem, *_bounds()),
    "on the device": lambda problem: _held(
        problem, *(side.to(problem.x.device) for side in _bounds())
    ),
    "one of them a number": lambda problem: _held(
        problem, _bounds()[0].sub(0.5).to(problem.x.device), 1.0
    ),
}
SEARCHES = {
    name: NAMED[name] for name in ("pgd", "apgd", "cw", "ddn", "boundary", "rays", "square")
}


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize(("name", "norm"), _with_norms(SEARCHES, slow=COSTLY))
def test_bounds_of_each_pixel_come_to_the_device(name: str, norm: Norm, bounds: str) -> None:
    text, model, change = SEARCHES[name], _Network(), BOUNDS[bounds]
    on_device, on_host = (_run(text, model, norm, at, change) for at in (DEVICE, HOST))
    torch.testing.assert_close(on_device.points, on_host.points, rtol=0, atol=0)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_bounds_do_not_cost_a_wait_at_each_step(bounds: str) -> None:
    once, twice = (
        _run(f"apgd/steps={steps}", _Network(), "linf", DEVICE, BOUNDS[bounds])
        for steps in (40, 80)
    )
    assert twice.waits - once.waits <= (twice.calls - once.calls) / 8


def _started(problem: Problem) -> Problem:
    return replace(problem, start=problem.x.flip(0))


@pytest.mark.parametrize(("name", "norm"), _with_norms(SEARCHES, slow=COSTLY))
def test_a_start_and_a_model_that_may_reject_run_on_the_device(name: str, norm: Norm) -> None:
    def change(problem: Problem) -> Problem:
        return replace(_started(problem), allowed=2, draws=2)

    text = SEARCHES[name]
    on_device, on_host = (_run(text, _Network(), norm, at, change) for at in (DEVICE, HOST))
    torch.testing.assert_close(on_device.points, on_host.points, rtol=0, atol=0)


def test_attacks_of_a_library_run_on_the_device() -> None:
    """Torchattacks', in float32, in which libraries work. Foolbox knows torch's tensors by the name
    of their class, and does not take the simulated ones."""

    def change(problem: Problem) -> Problem:
        return replace(problem, x=problem.x.float())

    text, model = ATTACK_OPTIONS["torchattacks"], _InFloat(_Network())
    norm = attack_of(text).facts.norms[0]
    on_device, on_host = (_run(text, model, norm, at, change) for at in (DEVICE, HOST))
    torch.testing.assert_close(on_device.points, on_host.points)


class _InFloat(nn.Module):
    """A model that takes any precision and computes in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.float())
