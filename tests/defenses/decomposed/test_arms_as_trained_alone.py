"""Arms trained side by side become what plain descent on each alone makes of them."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from attacks import ThreatModel, noise
from defenses import Batch, RoBin, build_architecture, fingerprint, initialise, train

SHAPE = (1, 8, 8)
LINF = ThreatModel("linf", 0.1)


def _by_hand(
    method: str, network: nn.Module, x: Tensor, y: Tensor, index: Tensor, step: int, part: float
) -> Tensor:
    """The loss of a binary classifier with s the log-odds of label 1, from sums over samples."""

    def odds(points: Tensor, labels: Tensor) -> Tensor:
        logits = network(points)
        return (logits[:, 1] - logits[:, 0]) * (2 * labels - 1)

    def kl(s: Tensor, t: Tensor) -> Tensor:
        rise, fall = softplus(-t) - softplus(-s), softplus(t) - softplus(s)
        return s.sigmoid() * rise + (-s).sigmoid() * fall

    count = round(part * len(x))
    clean = x[:count]
    network.eval()
    known = odds(clean, y[:count]).detach()
    start = 2 * noise.uniform(5, index[:count], step, SHAPE).double() - 1
    points = (clean + 0.1 * start).clamp(0, 1)
    for _ in range(2):
        points.requires_grad_()
        s = odds(points, y[:count])
        value = kl(known, s) if method == "trades" else softplus(-s)
        (gradient,) = torch.autograd.grad(value.sum(), points)
        near = (points + 0.04 * gradient.sign() - clean).clamp(-0.1, 0.1)
        points = (clean + near).clamp(0, 1).detach()
    network.train()
    if method == "pgd-at":
        return cross_entropy(network(torch.cat([points, x[count:]])), y)
    s, t = odds(x, y), odds(torch.cat([points, x[count:]]), y)[:count]
    moved = kl(s[:count], t)
    if method == "trades":
        return (softplus(-s).sum() + 3 * moved.sum()) / len(x)
    boosted = 2 * softplus(-torch.cat([t, s[count:]]))
    return (boosted.sum() + 3 * (moved * (-s[:count]).sigmoid()).sum()) / len(x)


@pytest.mark.parametrize(
    ("warm_up", "balanced"), [(False, False), (True, True)], ids=["plain", "warming up, balanced"]
)
@pytest.mark.parametrize("method", ["pgd-at", "trades", "mart"])
@pytest.mark.parametrize(("arch", "widen"), [("mlp", 0.05), ("myrtle", 0.03)])
def test_arms_side_by_side_become_what_each_becomes_alone(
    arch: str, widen: float, method: Any, warm_up: bool, balanced: bool
) -> None:
    x, y = torch.rand(18, *SHAPE, dtype=torch.float64), torch.arange(18) % 3
    y[:2] = 0
    drawn: list[Tensor] = []

    @dataclass(frozen=True, kw_only=True)
    class Recording(RoBin):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            # Sample by sample, and for each sample task by task.
            drawn.append((batch.index % 18).unflatten(0, (-1, 3)).T)
            return super().loss(model, batch)

    recipe = Recording(
        arch=arch, widen=widen, epochs=2, batch=6, steps=2, step_size=0.04, method=method,
        weight=1.0 if method == "pgd-at" else 3.0, warm_up=warm_up, balanced=balanced,
    )  # fmt: skip
    model: Any = initialise(recipe, SHAPE, 3, 0).double()
    alone = []
    for arm in range(3):
        alone.append(build_architecture(arch, SHAPE, 2, widen=widen).double())
        state = model.networks.network.state_dict()
        alone[-1].load_state_dict({name: rows[arm] for name, rows in state.items()})
    train(recipe, model, x, y, threat=LINF, seed=5)

    assert [rows.shape for rows in drawn] == [(3, 6)] * 6
    trained = model.networks.network.state_dict()
    for arm, network in enumerate(alone):
        before = fingerprint(network)
        descent = torch.optim.SGD(network.parameters(), momentum=0.9, weight_decay=5e-4)
        for step, rows in enumerate(every[arm] for every in drawn):
            part = (0.5 if step < 3 else 1.0) if warm_up else 1.0
            own = (y[rows] == arm).long()
            loss = _by_hand(method, network, x[rows], own, arm * 18 + rows, step, part)
            descent.param_groups[0]["lr"] = 0.1 if step < 3 else 0.01
            descent.zero_grad()
            loss.backward()
            descent.step()
        assert fingerprint(network) != before
        for name, value in network.state_dict().items():
            torch.testing.assert_close(trained[name][arm], value, rtol=1e-8, atol=1e-10)
