"""Certificates beside attacks: what they prove, what contradicts them, what counts for nothing."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from attacks import PGD, CarliniWagner, Problem
from benchmark import Report
from benchmark.report import tables
from benchmark.spec.run_spec import make_spec
from tests.benchmark.small import Linear, Returning, evaluate_small, refusal

# Class 0 up to 0.6: the distances to the boundary are 0.6, 0.35, 0.2, 0.1, 0.05; the rest is wrong.
FIRST = torch.tensor([0.0, 0.25, 0.4, 0.5, 0.55, 0.7, 1.0])
RADII = (FIRST.double() - 0.6).abs()
IMAGES = torch.cat([FIRST[:, None], torch.full((7, 3), 0.5)], 1)
LABELS = torch.zeros(7, dtype=torch.int64)


class Proven(Linear):
    """Knows its distance to the boundary, and may overstate it."""

    def __init__(self, overstated: float = 1.0) -> None:
        super().__init__()
        self.overstated = overstated
        self.seen: list[tuple[int, torch.dtype]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Proven":
        copied = type(self)(self.overstated)
        copied.load_state_dict(self.state_dict())
        copied.to(self.weight.dtype).eval()
        copied.seen = self.seen
        return copied

    def certified_radius(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), x.dtype))
        return self.overstated * (x @ self.weight + self.bias).diff(dim=1).abs()[:, 0]


class Odd(Proven):
    """Gives what a test wants in place of radii."""

    radii: ClassVar[Callable[[Tensor], Any]]

    def certified_radius(self, x: Tensor) -> Any:
        return type(self).radii(super().certified_radius(x))


def _odd(radii: Callable[[Tensor], Any]) -> Proven:
    return type("OddOne", (Odd,), {"radii": staticmethod(radii)})().eval()


def _report(model: Linear | None = None, **options: Any) -> Report:
    chosen = {"x": IMAGES, "y": LABELS, "eps": 0.25} | options
    return evaluate_small((model or Proven()).eval(), **chosen)


def _beyond(distance: Tensor) -> Returning:
    """An attack that goes so far (n,) along the first pixel."""

    def move(problem: Problem) -> Tensor:
        points = problem.x.clone()
        points[:, 0] += distance[problem.index].to(points)
        return points

    return Returning(move, "minimal-norm")


def _columns(*reports: Report) -> list[str]:
    return list(tables.wide(reports).columns)


def test_what_is_correct_and_proven_within_eps_is_certified() -> None:
    report = _report()
    assert report.radii is not None
    np.testing.assert_allclose(report.radii.radius, RADII, atol=1e-7)
    # Steepest ascent on a linear model is exact: what is not proven is broken.
    assert report.certified == report.best_attack == 2 / 7
    assert (report.errors, list(report.flags), len(report.contradictions)) == ({}, [], 0)
    # The last image is far from the boundary, and wrong.
    assert report.radii.radius[6] > 0.25
    assert _report(eps=0.0625).certified == 4 / 7
    records = report.records
    for row in records.to_dict("records"):
        assert row["radius"] == report.radii.radius[row["index"]]
    assert set(records["attack"]) == {"natural", "PGD"}


def test_a_radius_of_just_eps_is_enough() -> None:
    model = _odd(lambda radius: torch.full_like(radius, 0.25))
    assert _report(model, attacks=[_beyond(2 * RADII)]).certified == 5 / 7
    assert _report(model, attacks=[_beyond(2 * RADII)], eps=0.25001).certified == 0


def test_an_infinite_radius_is_one() -> None:
    model = _odd(lambda radius: torch.full_like(radius, torch.inf))
    report = _report(model, attacks=[Returning(lambda problem: problem.x)])
    assert (report.certified, report.errors) == (5 / 7, {})


def test_under_l_infinity_the_radius_is_shared_by_the_dimensions() -> None:
    report = _report(norm="linf", eps=0.125)
    assert report.radii is not None
    np.testing.assert_allclose(report.radii.radius, RADII / math.sqrt(4), atol=1e-7)
    assert report.certified == 2 / 7
    assert _report(norm="linf", eps=0.1875).certified == 1 / 7
    assert "eps * sqrt(dimensions) in L2" in tables.caption([report], None)


def test_a_lie_is_found_by_points_within_the_radius() -> None:
    report = _report(Proven(overstated=3))
    assert report.certified == 4 / 7 > report.best_attack == 2 / 7
    # Sample 4 was certified beyond where it is broken, but not to eps, which is a lie too.
    assert report.contradictions.tolist() == [2, 3, 4]
    assert list(report.flags) == ["contradiction"]
    lines = report.to_markdown().splitlines()
    said = "attacks misclassify 3 of 7 samples within the radius certified for them: 2, 3, 4"
    assert f"- Proven: {said}" in lines
    assert any(line.startswith("- Proven: contradiction: ") for line in lines)
    (row,) = tables.plain([report])
    assert (row["certified"], row["contradictions"]) == (4 / 7, [2, 3, 4])


def test_a_lie_is_found_beyond_eps_and_beside_errors() -> None:
    """By points that do not count as broken, and by an attack that failed later."""
    report = _report(Proven(1.5), attacks=[_beyond(1.2 * RADII)], eps=0.0625)
    assert report.contradictions.tolist() == [0, 1, 2, 3, 4]

    def fail_later(problem: Problem) -> Tensor:
        if 2 in problem.index:
            raise ValueError("no")
        return _beyond(1.2 * RADII)(problem)

    report = _report(Proven(1.5), attacks=[Returning(fail_later, "minimal-norm")], block=2)
    assert list(report.flags) == ["attack-error", "contradiction"]
    assert report.contradictions.tolist() == [0, 1]


@pytest.mark.parametrize(("overstated", "count"), [(1.0, 0), (1 + 1e-5, 0), (1.001, 5)])
def test_rounding_is_no_contradiction(overstated: float, count: int) -> None:
    report = _report(Proven(overstated), attacks=[_beyond(RADII + 2e-7)])
    assert report.records["distance"].dropna().size >= 5
    assert len(report.contradictions) == count


def test_certified_is_never_above_best_attack_without_a_contradiction() -> None:
    model = _odd(lambda radius: radius + 1e-6)
    for eps in (float(RADII[3]) + 1e-6, float(RADII[4]) + 5e-7):
        report = _report(model, attacks=[_beyond(RADII + 2e-7)], eps=eps)
        assert (report.certified > report.best_attack) == (len(report.contradictions) > 0)


def test_misclassified_images_do_not_contradict() -> None:
    """Their radius is about another class than their label."""
    report = _report(attacks=[CarliniWagner(steps=50, searches=3, minimize=True)])
    assert (report.certified, len(report.contradictions)) == (2 / 7, 0)


REFUSED = "ValueError: a certified radius must be at least 0"
UNSHAPED = "ValueError: certified_radius must give (7,)"


def _raise(radius: Tensor) -> Tensor:
    raise RuntimeError("no\nidea")


@pytest.mark.parametrize(
    ("radii", "line"),
    [
        (lambda radius: radius * torch.nan, f"{REFUSED}, not nan"),
        (lambda radius: radius - 0.3, f"{REFUSED}, not -0.0"),
        (lambda radius: radius[:, None], f"{UNSHAPED} for as many images: (7, 1)"),
        (lambda radius: radius[:3], f"{UNSHAPED} for as many images: (3,)"),
        (lambda radius: radius.tolist(), f"{UNSHAPED} for as many images: list"),
        (_raise, "RuntimeError: no idea"),
    ],
)  # fmt: skip
def test_what_is_no_radius_certifies_nothing(radii: Callable[[Tensor], Any], line: str) -> None:
    report = _report(_odd(radii))
    assert report.errors["certified"].startswith(line)
    assert math.isnan(report.certified)
    assert report.radii is None
    assert "radius" not in report.records
    # The attacks are not touched by it.
    assert (report.best_attack, list(report.flags), report.failed) == (2 / 7, [], [])
    row = tables.wide([report]).iloc[0]
    assert (row["certified"], row["best-attack [95% interval]"][:4]) == ("error", "28.6")
    assert f"certified failed: {line}" in report.to_markdown()
    assert tables.plain([report])[0]["certified"] is None


def test_one_bad_radius_certifies_nothing() -> None:
    def one(radius: Tensor) -> Tensor:
        return torch.where(radius < 0.06, torch.nan, radius)

    report = _report(_odd(one), block=2)
    assert "nan" in report.errors["certified"]
    assert report.accuracy("certified") is None


def test_rows_with_and_without_certificates() -> None:
    one, other = _report(), _report(Linear())
    both = tables.wide([other, one])
    assert list(both.columns)[-3:] == ["certified", "best-attack [95% interval]", "flags"]
    assert both["certified"].tolist() == ["-", "28.6"]
    assert math.isnan(other.certified)
    assert tables.plain([other])[0]["certified"] is None
    assert "certified" not in _columns(other)
    assert "certified" not in tables.render([other], None)
    assert "certified: if it is classified correctly" in tables.caption([other, one], None)
    frame = one.to_frame().set_index("attack")
    assert list(frame.index) == ["natural", "PGD", "certified", "best-attack"]
    assert frame.loc["certified", "accuracy"] == one.certified
    assert 0 < frame.loc["certified", "low"] < one.certified < frame.loc["certified", "high"] < 1
    assert "certified" in _columns(_report(mode="cascade"))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_radii_are_computed_block_by_block_in_float64(precision: str) -> None:
    model = Proven()
    report = _report(model, precision=precision, block=3)
    assert model.seen == [(3, torch.float64), (2, torch.float64), (2, torch.float64)]
    whole = _report(Proven(), precision=precision)
    assert whole.radii is not None
    assert report.radii is not None
    assert report.radii.radius.tolist() == whole.radii.radius.tolist()


def test_a_model_without_float64_is_certified_in_float32() -> None:
    class Single(Proven):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype is torch.float64:
                raise RuntimeError("float32 only")
            return super().forward(x)

    model = Single()
    report = _report(model)
    assert {dtype for _, dtype in model.seen} == {torch.float32}
    assert (report.certified, list(report.flags)) == (2 / 7, ["float32-only"])


def test_certified_is_no_label() -> None:
    line = refusal(attacks=[{"name": "pgd", "label": "certified"}])
    assert "'certified' is a column of the table" in line


def _lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *reports: Report) -> dict[str, Any]:
    """The curves that are drawn, by their labels."""
    drawn: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **options: Any) -> None:
        drawn.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    spec = make_spec({"eps": 0.5, "defenses": ["vanilla"], "suite": "none"})
    tables.write(tmp_path, reports, spec, {})
    return {str(line.get_label()): line for figure in drawn for line in figure.axes[0].lines}


def test_certificates_are_drawn_dashed_in_the_colour_of_their_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minimising = CarliniWagner(steps=50, searches=3, minimize=True)
    lines = _lines(
        tmp_path, monkeypatch,
        _report(name="both", attacks=[minimising]),
        _report(Linear(), name="measured", attacks=[minimising]),
        _report(name="proven", attacks=[PGD(steps=2)]),
        _report(Linear(), name="neither", attacks=[PGD(steps=2)]),
    )  # fmt: skip
    dashed = {label: line for label, line in lines.items() if line.get_linestyle() == "--"}
    assert list(dashed) == ["both, certified", "proven, certified"]
    assert {label for label in lines if not label.startswith("_")} == {
        *("both", "measured"), *dashed,
    }  # fmt: skip
    assert lines["both"].get_color() == dashed["both, certified"].get_color()
    assert len({line.get_color() for line in (lines["both"], lines["measured"])}) == 2
    for line in dashed.values():
        x, y = line.get_xdata(), line.get_ydata()
        for eps, left in ((0.01, 5), (0.07, 4), (0.15, 3), (0.3, 2), (0.4, 1)):
            assert np.interp(eps, x, y) == pytest.approx(100 * left / 7)
