"""Pages fit the width that there is, lose nothing, and are in colour on terminals alone."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from benchmark.terminal import WIDTH, Grid, Page, Words, text
from benchmark.terminal.printing import folded, printed

NUMBERS = Grid(
    ["defense", "best-attack [95%]", "flags"],
    [
        [("pgd-at/epochs=20/arch=resnet18/widen=0.25/batch=512", ""), ("55.5 [40.1, 60.3]", ""),
         ("not-converged, zero-gradient, large-eps, float32-only", "warning")],
        [("pgd-at/epochs=20/arch=resnet18/widen=0.25/batch=256", ""), ("error", "wrong"),
         ("-", "")],
    ],
    [True, False, True],
)  # fmt: skip
PAGE: Page = [NUMBERS, [Words("word " * 60, "not-converged (a)", "warning", list=True)]]
ANSI = "\x1b["


def _widest(printed: str) -> int:
    return max(map(cell_len, printed.splitlines()))


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_lines_are_no_wider_than_asked_for(width: int) -> None:
    assert _widest(text(PAGE, width)) <= width


def test_names_that_differ_at_their_ends_are_told_apart_and_numbers_stay_whole() -> None:
    told = text([NUMBERS])
    assert "batch=512" in told
    assert "batch=256" in told
    assert "55.5 [40.1, 60.3]" in told
    # A terminal that is too narrow breaks lines itself: no digit is lost.
    assert "55.5 [40.1, 60.3]" in text([NUMBERS], 20)


def test_sections_stand_apart_and_lists_are_indented() -> None:
    table, told = text(PAGE).split("\n\n")
    assert told.startswith("- not-converged (a): word word")
    assert all(line.startswith("  word") for line in told.splitlines()[1:])
    assert len(table.splitlines()) > len(NUMBERS.rows)
    assert not re.search(r" $", text(PAGE), re.M)


NAMES = st.text(st.characters(exclude_categories=["C", "Z", "M"]) | st.sampled_from("/,= "))


@given(NAMES, st.integers(6, 40))
def test_folding_loses_nothing_and_fits(name: str, width: int) -> None:
    lines = folded(name, width)
    assert all(cell_len(line) <= width for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])
    assert "".join("".join(lines).split()) == "".join(name.split())


def test_what_would_command_a_terminal_does_not() -> None:
    told = text([[Words("a\x1b[31m\x07b\nc", "d\x9be")], Grid(["x"], [[("\x1b[2J", "")]], [True])])
    assert not re.search(r"[^\n\x20-\x7e─?]", told)
    assert "[bold]" in text([[Words("[bold]x")]])  # nor does what looks like rich's markup


class _Terminal:
    """A stdout that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def write(self, told: str) -> int:
        return len(told)

    def flush(self) -> None:
        pass


def test_colours_are_for_warnings_and_failures_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdout", _Terminal())
    told = printed(PAGE)
    coloured = re.findall(r"\x1b\[[\d;]+m([^\x1b]*)\x1b\[0m", told)
    assert any("not-converged" in part for part in coloured)
    assert any("error" in part for part in coloured)
    assert not any("55.5" in part or "pgd-at" in part for part in coloured)
    assert _widest(re.sub(r"\x1b\[[\d;]*m", "", told)) <= WIDTH
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[\d;]*3[13]", printed(PAGE))


def test_there_are_no_codes_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert ANSI not in printed(PAGE)
    assert ANSI not in text(PAGE)


def test_rich_is_imported_when_something_is_printed() -> None:
    code = (
        "import sys, benchmark.cli.main, benchmark.report.report;"
        "sys.exit(any(m.startswith('rich.table') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
