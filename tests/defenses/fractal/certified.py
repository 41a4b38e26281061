"""Certificates held against attacks."""

from typing import Any

from torch import Tensor

from attacks import Problem, ThreatModel
from attacks.strong import Strong


def assert_not_contradicted(model: Any, x: Tensor, eps: float) -> None:
    """No prediction that is certified within L2 eps is changed by `strong`; some others are."""
    answer, certified = model(x).argmax(1), model.certified_radius(x) >= eps
    points = Strong(classes=1, queries=50)(Problem(model, x, answer, ThreatModel("l2", eps)))
    broken = model(points).argmax(1) != answer
    assert not (broken & certified).any()
    assert broken.any()
    assert certified.any()
