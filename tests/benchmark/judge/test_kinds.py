"""Whatever kind of model a user brings, the figures are those of its plain twin."""

import contextlib

import pytest
import torch

from benchmark import evaluate
from tests.benchmark.judge.kinds import KINDS
from tests.benchmark.judge.plain import EPS, SHAPES, Around, N, Plain, samples

ATTACKS = {
    "linf": [
        "pgd/steps=10",
        "cw/steps=60/searches=3",
        "strong/steps=5/queries=60",
        "square/steps=300",
    ],
    "l2": ["pgd/steps=10", "cw/steps=60/searches=3", "boundary/steps=300"],
}

# By default each kind in one shape and norm, turn by turn, under the first attack.
QUICK = [
    (name, SHAPES[turn % len(SHAPES)], list(ATTACKS)[turn % 2], False)
    for turn, name in enumerate(KINDS)
]
ALL = [(name, shape, norm, True) for name in KINDS for shape in SHAPES for norm in ATTACKS]
CASES = [
    pytest.param(
        *case, id=f"{case[0]}-{'x'.join(map(str, case[1]))}-{case[2]}{'-all' if case[3] else ''}",
        marks=pytest.mark.slow if case[3] else (),
    )
    for case in (*QUICK, *ALL)
]  # fmt: skip


@pytest.mark.parametrize(("name", "shape", "norm", "whole"), CASES)
def test_its_verdicts_are_those_of_its_plain_twin(
    name: str, shape: tuple[int, ...], norm: str, whole: bool
) -> None:
    kind, net = KINDS[name], Plain(shape).eval()
    flat, y, robust = samples(net, norm)
    x = flat.view(N, *shape)
    model = kind.make(net, x.clone())
    if isinstance(model, Around) and "train-mode" not in kind.flags:
        model.eval()
    before, labels = x.clone(), y.clone()
    random_state = torch.get_rng_state()
    attacks = ATTACKS[norm] if whole else ATTACKS[norm][:1]
    with kind.around() if kind.around else contextlib.nullcontext():
        report = evaluate(model, x, y, norm=norm, eps=EPS, attacks=attacks, **kind.options)
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
