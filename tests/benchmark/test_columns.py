"""Columns: what they print, where they are shown, and what captions say of them."""

import io
import math
import re

import pandas as pd
import pytest

from benchmark.columns import (
    Column,
    Markup,
    Shown,
    Table,
    captions,
    decimals,
    escaped,
    frame_csv,
    frame_markdown,
    markdown,
    percent,
    shown_in,
)
from benchmark.report.report_columns import detail_columns, report_columns

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
