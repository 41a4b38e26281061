"""Whatever kind of model a user brings, the figures are those of its plain twin."""

import contextlib

import pytest
import torch

from benchmark import evaluate
from tests.benchmark.judge.kinds import EPS, KINDS, SHAPES, Around, N, Plain, samples

ATTACKS = {
    "linf": [
        "pgd/steps=10",
        "cw/steps=60/searches=3",
        "strong/steps=5/queries=60",
        "square/steps=300",
    ],
    "l2": ["pgd/steps=10", "cw/steps=60/searches=3", "boundary/steps=300"],
}

# By default each kind in one shape and norm, turn by turn; the others are slow.
CASES = [
    pytest.param(
        name, shape, norm, id=f"{name}-{'x'.join(map(str, shape))}-{norm}",
        marks=() if (turn % len(SHAPES), turn % 2) == (place, side) else pytest.mark.slow,
    )
    for turn, name in enumerate(KINDS)
    for place, shape in enumerate(SHAPES)
    for side, norm in enumerate(ATTACKS)
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "norm"), CASES)
def test_its_verdicts_are_those_of_its_plain_twin(
    name: str, shape: tuple[int, ...], norm: str
) -> None:
    kind, net = KINDS[name], Plain(shape).eval()
    flat, y, robust = samples(net, norm)
    x = flat.view(N, *shape)
    model = kind.make(net, x.clone())
    if isinstance(model, Around) and "train-mode" not in kind.flags:
        model.eval()
    before, labels = x.clone(), y.clone()
    random_state = torch.get_rng_state()
    with kind.around() if kind.around else contextlib.nullcontext():
        report = evaluate(model, x, y, norm=norm, eps=EPS, attacks=ATTACKS[norm], **kind.options)
    assert report.errors == {}
    assert set(report.flags) == kind.flags
    assert report.natural == 1.0
    for label in report.measured:
        found = report.robust_to(label)
        assert found is not None
        assert kind.misled or found.tolist() == robust.tolist(), label
    # Nothing that was handed over has changed.
    assert torch.equal(x, before)
    assert torch.equal(y, labels)
    assert torch.equal(torch.get_rng_state(), random_state)
