"""The reader of VNN-LIB files against formulas evaluated one by one, and its refusals."""

import gzip
import operator
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from benchmark.errors import UserError
from benchmark.vnnlib.properties import Case, Interval, Property, Row, read_property
from tests.benchmark.vnnlib.small_properties import property_text

BOX = [("-0.5", "1e-1"), ("0", "+2.50")]
HEAD = property_text(BOX, 2)


def _read(tmp_path: Path, text: str) -> Property:
    path = tmp_path / "p.vnnlib"
    path.write_text(text)
    return read_property(path)


def _row(weights: dict[int, int], bound: int, is_strict: bool = False) -> Row:
    pairs = tuple((j, Fraction(weight)) for j, weight in weights.items())
    return Row(pairs, Fraction(bound), is_strict)


INTERVALS = (
    Interval(Fraction(-1, 2), Fraction(1, 10)),
    Interval(Fraction(0), Fraction(5, 2)),
)


def test_a_robustness_property_is_one_box_and_a_way_for_each_class(tmp_path: Path) -> None:
    text = "; a comment (with brackets\n" + HEAD
    text += "(assert (or ; one of\n\t(and (>= Y_0 Y_1))\n (>= Y_1 0.5)))"
    read = _read(tmp_path, text)
    half = Row(((1, Fraction(-1)),), Fraction(-1, 2), False)
    ways = ((_row({0: -1, 1: 1}, 0),), (half,))
    assert (read.name, read.inputs, read.outputs) == ("p.vnnlib", 2, 2)
    assert read.cases == (Case(INTERVALS, ways),)


def test_a_packed_file_is_the_same(tmp_path: Path) -> None:
    text = HEAD + "(assert (<= Y_0 Y_1))"
    packed = tmp_path / "p.vnnlib.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    read, plain = read_property(packed), _read(tmp_path, text)
    assert (read.name, read.cases) == (plain.name, plain.cases)


def test_each_box_is_a_case_of_its_own(tmp_path: Path) -> None:
    text = HEAD + (
        "(assert (or (and (<= X_0 0) (> Y_0 1)) (and (<= X_0 0) (<= Y_1 -1))"
        " (and (>= X_0 0.05) (< X_1 1) (<= Y_0 Y_1)) (and (>= X_0 7) (<= Y_0 Y_1))))"
    )
    read = _read(tmp_path, text)
    first = Interval(Fraction(-1, 2), Fraction(0)), INTERVALS[1]
    second = (
        Interval(Fraction(1, 20), Fraction(1, 10)),
        Interval(Fraction(0), Fraction(1), is_open_above=True),
    )
    assert read.cases == (
        Case(first, ((_row({0: -1}, -1, True),), (_row({1: 1}, -1),))),
        Case(second, ((_row({0: 1, 1: -1}, 0),),)),
    )  # and none of the last, which is empty


def test_bounds_may_be_turned_scaled_and_repeated(tmp_path: Path) -> None:
    text = HEAD + (
        "(assert (>= 0.05 X_0)) (assert (<= X_0 3)) (assert (<= (* 2 X_1) (- 4 1)))"
        "(assert (> (- X_1) -1.5))(assert (<= (+ Y_0 (* 3 Y_1 2) 1) (- Y_1 2)))"
    )
    (case,) = _read(tmp_path, text).cases
    assert case.box == (
        Interval(Fraction(-1, 2), Fraction(1, 20)),
        Interval(Fraction(0), Fraction(3, 2), is_open_above=True),
    )
    assert case.ways == ((_row({0: 1, 1: 5}, -3),),)


def test_without_outputs_each_point_is_a_counterexample(tmp_path: Path) -> None:
    (case,) = _read(tmp_path, HEAD).cases
    assert case.is_trivial
    assert case.holds([Fraction(0), Fraction(0)])


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip


def _formula(draw: random.Random, depth: int) -> tuple[str, Callable[[list[int]], bool]]:
    """A random formula over three outputs, and what it says of them."""
    if depth and draw.random() < 0.8:
        word, holds = draw.choice([("and", all), ("or", any)])
        parts = [_formula(draw, depth - 1) for _ in range(draw.randint(1, 3))]
        return (
            f"({word} {' '.join(text for text, _ in parts)})",
            lambda y: holds(part(y) for _, part in parts),
        )
    compare, i, j, c = draw.choice(list(_COMPARE)), draw.randrange(3), draw.randrange(3), 0
    if i == j:
        j, c = (i + 1) % 3, draw.randint(-1, 1)
    text = f"({compare} (+ Y_{i} {c}) (* 2 Y_{j}))"
    return text, lambda y: _COMPARE[compare](y[i] + c, 2 * y[j])


@pytest.mark.parametrize("seed", range(40))
def test_the_normal_form_says_what_the_formulas_say(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    formulas = [_formula(draw, 3) for _ in range(2)]
    text = property_text([("0", "1")], 3, *(text for text, _ in formulas))
    (case,) = _read(tmp_path, text).cases
    for _ in range(100):
        y = [draw.randint(-2, 2) for _ in range(3)]
        expected = all(holds(y) for _, holds in formulas)
        assert case.holds([Fraction(value) for value in y]) == expected


@pytest.mark.parametrize(
    ("added", "line"),
    [
        ("(assert (<= Y_0 Y_1)", "line 9: this bracket is never closed"),
        ("(assert (<= Y_0 Y_1)))", "line 9: ) stands in no brackets"),
        ("assert", "line 9: assert stands in no brackets"),
        ("\n(check-sat)", "line 10: (check-sat) is neither (declare-const ...) nor (assert ...)"),
        ("(vnnlib-version <2.0>)", "line 9: vnnlib-version is of VNN-LIB 2.0, and only 1.0 can"),
        ("(declare-const X_0 Real)", "line 9: X_0 is declared twice"),
        ("(declare-const Z_0 Real)", "line 9: 'Z_0' is no input X_0, X_1, ... or output Y_0, ..."),
        ("(declare-const X_2 Int)", "line 9: (declare-const X_2 Int) declares no constant of the"),
        ("(declare-const X_3 Real)", "X_3 is declared, and X_2 is not"),
        ("(declare-const X_2 Real)", "X_2 has no lower bound"),
        ("(assert (<= Y_0 Y_2))", "line 9: 'Y_2' is no number and not declared"),
        ("(assert (<= Y_0 0.1.2))", "line 9: '0.1.2' is no number and not declared"),
        ("(assert (<= Y_0 1e999))", "line 9: the number 1e999 is too large"),
        ("(assert (<= Y_0 1e9999))", "line 9: '1e9999' is no number and not declared"),
        ("(assert (= Y_0 Y_1))", "line 9: '=' is none of <=, >=, <, >, and, or"),
        ("(assert (not (<= Y_0 1)))", "line 9: 'not' is none of <=, >=, <, >, and, or"),
        ("(assert true)", "line 9: true is no comparison, (and ...) or (or ...)"),
        ("(assert (or))", "line 9: (or) is no comparison, (and ...) or (or ...)"),
        ("(assert (<= Y_0 Y_1 2))", "line 9: (<= Y_0 Y_1 2) compares 3 things, not two"),
        ("(assert (<= Y_0 Y_0))", "line 9: (<= Y_0 Y_0) compares no inputs and no outputs"),
        ("(assert (<= X_0 X_1))", "line 9: (<= X_0 X_1) compares inputs with each other: only"),
        ("(assert (<= X_0 Y_1))", "line 9: (<= X_0 Y_1) compares an input with outputs: only"),
        ("(assert (<= Y_0 (* Y_1 Y_0)))", "line 9: (* Y_1 Y_0) multiplies variables"),
        ("(assert (<= Y_0 (/ Y_1 2)))", "line 9: (/ Y_1 2) is no sum of +, - and * by a constant"),
        ("(assert (<= X_0 -1))", "no input fulfils the bounds: X_0 must be from -0.5 to -1.0"),
        ("(assert (< X_1 0))", "no input fulfils the bounds: X_1 must be from 0.0 to 0.0"),
        (
            "(assert (or (>= Y_0 1) (>= Y_1 1)))" * 14,
            "line 9: the property has more than 10000 alternatives",
        ),
        (f"(assert {'(and ' * 200}", "line 9: brackets are nested more than 100 deep"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path: Path, added: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        _read(tmp_path, HEAD + added)
    assert str(error.value).startswith(f"{tmp_path / 'p.vnnlib'}: {line}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"\x1f\x8b\x08broken", "it is no whole gzip file"),
        (gzip.compress(b"(assert" * 99, mtime=0)[:-9], "it is no whole gzip file"),
        (b"\xff\xfe\x00", "it is no text"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, line: str) -> None:
    path = tmp_path / "p.vnnlib"
    path.write_bytes(data)
    with pytest.raises(UserError, match="^cannot read the property .*" + line):
        read_property(path)


def test_a_file_without_variables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"p\.vnnlib: no X_0 is declared$"):
        _read(tmp_path, "")
    with pytest.raises(UserError, match=r"p\.vnnlib: no Y_0 is declared$"):
        _read(tmp_path, "(declare-const X_0 Real)")
