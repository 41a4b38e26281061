"""Columns: what they print, where they are shown, and what captions say of them."""

import io
import math
import re

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmark.columns import (
    Column,
    Markup,
    Shown,
    Table,
    captions,
    decimals,
    eps_text,
    escaped,
    frame_csv,
    frame_markdown,
    markdown,
    percent,
    shown_in,
)
from benchmark.report.captions import threat_name
from benchmark.report.report_columns import detail_columns, report_columns
from benchmark.spec.run_spec import make_spec, make_threat

COLUMN: Column[dict[str, object]] = Column(
    {"run": Shown("share", "share: in %."), "json": Shown("plain")}, lambda row: row["x"], percent
)


@pytest.mark.parametrize(
    ("value", "text"), [(0.125, "12.5"), (1, "100.0"), (None, "-"), (math.nan, "-"), ("error",) * 2]
)
def test_a_cell_prints_a_value_a_word_or_that_there_is_none(value: object, text: str) -> None:
    assert COLUMN.cell({"x": value}) == text


def test_a_column_is_shown_where_it_says() -> None:
    other = COLUMN.only("json")
    assert shown_in("run", [COLUMN, other]) == [COLUMN]
    assert shown_in("json", [COLUMN, other]) == [COLUMN, other]
    assert shown_in("board", [COLUMN, other]) == []
    assert (COLUMN.heading("run"), other.heading("json")) == ("share", "plain")


def test_captions_speak_of_optional_columns_last() -> None:
    optional: Column[object] = Column({"run": Shown("o", "o: not always.", True)}, str)
    silent: Column[object] = Column({"run": Shown("s")}, str)
    assert captions("run", [optional, silent, COLUMN]) == ["share: in %.", "o: not always."]
    assert captions("json", [optional, silent, COLUMN]) == []


def test_numbers_have_so_many_digits() -> None:
    assert [decimals(n)(1.25) for n in (0, 1, 3)] == ["1", "1.2", "1.250"]
    assert decimals(1)(math.nan) == "-"


OF_DEFENSES: tuple[Table, ...] = ("run", "json", "board")
OF_ATTACKS: tuple[Table, ...] = ("details", "numbers")


def test_no_table_has_two_columns_of_one_name() -> None:
    columns = report_columns("l2", ["a", "b"])
    headings = [[c.heading(table) for c in shown_in(table, columns)] for table in OF_DEFENSES]
    details = detail_columns()
    headings += [[c.heading(table) for c in shown_in(table, details)] for table in OF_ATTACKS]
    for names in headings:
        assert len(set(names)) == len(names) > 4


HOSTILE = "a|b\n<script>&`c`\\"


def test_texts_of_users_are_shown_as_they_are_in_markdown() -> None:
    shown = r"a\|b &lt;script&gt;&amp;\`c\`" + "\\\\"
    assert escaped(HOSTILE) == escaped(escaped(HOSTILE)) == shown
    table = markdown([HOSTILE, "n"], [[HOSTILE, "-1"]], [True, False])
    framed = frame_markdown(pd.DataFrame({HOSTILE: [HOSTILE], "n": [-1]}))
    for text in (table, framed):
        head, _, row = text.splitlines()
        assert re.split(r"(?<!\\)\|", head)[1].strip() == shown
        assert [cell.strip() for cell in re.split(r"(?<!\\)\|", row)][1:3] == [shown, "-1"]


def test_markup_is_not_escaped_again() -> None:
    assert "[a](b)" in markdown(["x"], [[Markup("[a](b)|")]], [True])
    assert markdown(["x"], [[Markup("a`b")]], [True]).endswith("| a`b |")


@pytest.mark.parametrize("text", ["=1+1", "+a", "-a", "@a", "\ta", "=cmd|' /C calc'!A0", "-1-1"])
def test_a_spreadsheet_runs_no_text(text: str) -> None:
    frame = pd.DataFrame({text: [text], "n": [-0.5]})
    read = pd.read_csv(io.StringIO(frame_csv(frame)))
    assert read.to_dict("list") == {f"'{text}": [f"'{text}"], "n": [-0.5]}


def test_all_else_is_written_to_csv_as_it_is() -> None:
    frame = pd.DataFrame(
        {"x": [-1, 2], "y": [0.1, math.nan], "z": ["-0.5", "a,\n=b"], "w": ["-", None], "b": True}
    )
    assert frame_csv(frame) == frame.to_csv(index=False)


RADII = st.one_of(
    st.floats(1e-9, 1e6),
    st.builds(lambda top, bottom: top / bottom, st.integers(1, 2000), st.integers(1, 2000)),
    st.builds(lambda k: k / 255, st.integers(1, 510)),
    st.builds(lambda number: float(f"{number:.3g}"), st.floats(1e-4, 10)),
)


@given(RADII)
@example(math.nextafter(8 / 255, 1))
@example(math.nextafter(0.3, 0))
def test_the_text_of_a_radius_is_that_number(eps: float) -> None:
    assert make_threat("l2", eps_text(eps)).eps == eps


@given(st.integers(1, 254))
def test_a_fraction_of_255_stays_one(k: int) -> None:
    text = eps_text(k / 255)
    assert text == f"{k}/255" or len(text) < 4  # such as 0.2, or 1/3


@pytest.mark.parametrize("text", ["0.3", "1/255", "8/255", "0.5/255", "1/3", "2", "0.0313725"])
def test_a_radius_is_written_as_users_write_it(text: str) -> None:
    threat = make_threat("linf", text)
    assert threat_name(threat) == f"L-infinity eps {text}"
    spec = make_spec({"norm": "linf", "eps": text, "defenses": ["vanilla"]})
    assert str(spec.written()["eps"]) in (text, f"{text}.0")
    assert make_spec(spec.written()) == spec
    assert spec.model_dump(mode="json")["eps"] == threat.eps  # files for machines keep the number
