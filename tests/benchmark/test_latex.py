"""What is written in LaTeX shows texts as they are, and is well-formed."""

# ruff: noqa: RUF001 (letters that look like others are what this is about)

import re
import shutil
import string
import subprocess
from pathlib import Path

import pytest

from benchmark.columns import Column, Shown
from benchmark.latex import Tex, escaped, floating, tabular

HOSTILE = [
    string.printable,
    r"\input{/etc/passwd} \\[2em] $x$ % lost & more # _ ^ ~ {",
    "[1em] a", "*a", "a--b---c", "?`!`", "ε δ Λ Ω ∞ ≠ ² µ ½ é ő Å ǘ ß ø ł ά 中 😀 \u0301 –—‘’“”…−",
]  # fmt: skip


def assert_well_formed(text: str) -> None:
    """Braces and environments close, math does not open, and rows have as many cells as columns."""
    bare = re.sub(r"\\[\\{}$&#%_]", "", re.sub(r"^%.*$", "", text, flags=re.M))
    assert bare.isascii()
    assert not re.search(r"[$#%]|(?<!\\)~", bare)
    depth = 0
    for brace in re.findall(r"[{}]", bare):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    open_: list[str] = []
    for word, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if word == "begin":
            open_.append(name)
        else:
            assert open_.pop() == name
    assert open_ == []
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    counts = {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows}
    (aligned,) = {len(found) for found in re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)}
    assert counts == {aligned}


def compiled(folder: Path, text: str) -> str:
    """What pdflatex says of a document with the text in it, which is not an error."""
    latex = shutil.which("pdflatex")
    if latex is None:
        pytest.skip("no pdflatex here")
    (folder / "whole.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,natbib}\\begin{document}\n"
        f"{text}\\end{{document}}\n"
    )
    done = subprocess.run(
        [latex, "-interaction=nonstopmode", "-halt-on-error", "whole.tex"],
        cwd=folder, capture_output=True, text=True, errors="replace", timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def _table() -> str:
    columns: list[Column[str]] = [
        Column({"latex": Shown("a & b")}, lambda row: row, left=True),
        Column({"latex": Shown("100%")}, len),
        Column({"latex": Shown("")}, lambda row: Tex(r"\textbf{1}")),
    ]
    body = tabular("latex", columns, HOSTILE)
    return floating(body, escaped(HOSTILE[1]), "tab:x", HOSTILE)


def test_any_text_gives_a_well_formed_table() -> None:
    assert_well_formed(_table())


def test_any_text_compiles(tmp_path: Path) -> None:
    compiled(tmp_path, _table())


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("50% of R&D_#1 {a} $", r"50\% of R\&D\_\#1 \{a\} \$"),
        ("\\ ~ ^", r"\textbackslash{} \textasciitilde{} \textasciicircum{}"),
        ("--a---b-c", "-{}-a-{}-{}-b-c"),
        ("é ő Å", r"\'{e} \H{o} \r{A}"),
        ("λ Λ Α", r"\ensuremath{\lambda} \ensuremath{\Lambda} A"),
        ("10² ≠ 102", r"10\ensuremath{^2} \ensuremath{\neq} 102"),
        ("中 ½", "[U+4E2D] [U+00BD]"),
        ("a\n b", "a b"),
    ],
)
def test_texts_are_escaped(text: str, written: str) -> None:
    assert escaped(text) == written
    assert escaped(escaped(text)) == written


def test_rows_do_not_begin_as_options_of_the_row_above() -> None:
    rows = [line.strip() for line in _table().splitlines()]
    assert not any(row.startswith(("[", "*")) for row in rows)
    assert any(row.startswith("{}[1em] a &") for row in rows)


def test_a_table_that_is_not_well_formed_is_noticed() -> None:
    for wrong in ((r"\&", "&"), (r"\end{tabular}", ""), (r"\}", "}"), (r"\%", "%")):
        with pytest.raises(AssertionError):
            assert_well_formed(_table().replace(*wrong))
