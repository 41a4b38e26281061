r"""Tables in LaTeX, with the package booktabs, and how texts of users are written in it.

All that is written is ASCII, and needs no package but booktabs: pdflatex takes it in any encoding
of fonts.
"""

# ruff: noqa: RUF001 (letters that look like others are what this is about)

import re
from collections.abc import Sequence
from unicodedata import lookup, normalize

from attacks.messages import one_line
from benchmark.columns import Column, Row, Table


class Tex(str):
    """A text that is LaTeX already, which is not escaped again."""

    __slots__ = ()


_MARKS = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\`{}",
    '"': "''",
} | {mark: f"\\{mark}" for mark in "{}$&#%_"}

# Accents, by the character that Unicode combines with the letter before it.
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u",
    "\u0307": ".", "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0323": "d",
    "\u0327": "c", "\u0331": "b",
}  # fmt: skip

_LETTERS = {
    "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}",
    "Ł": r"\L{}", "–": r"\textendash{}", "—": r"\textemdash{}", "‘": "`", "’": "'", "“": "``",
    "”": "''", "…": r"\ldots{}",
}  # fmt: skip
_MATHS = {
    "×": r"\times", "±": r"\pm", "·": r"\cdot", "≤": r"\leq", "≥": r"\geq", "≠": r"\neq",
    "≈": r"\approx", "∞": r"\infty", "√": r"\surd", "→": r"\to", "∈": r"\in", "ℓ": r"\ell",
    "−": "-", "²": "^2", "³": "^3", "°": r"^\circ", "µ": r"\mu", "ς": r"\varsigma",
}  # fmt: skip
# Greek letters by their names in LaTeX; Unicode spells lamda. The others look like Latin ones.
_SMALL = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega"
)
_LARGE = "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
for _size, _names in (("SMALL", _SMALL), ("CAPITAL", _LARGE)):
    for _name in _names.split():
        _spelt = _name.upper().replace("MBD", "MD")
        _MATHS[lookup(f"GREEK {_size} LETTER {_spelt}")] = f"\\{_name}"
_ALIKE = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧο", "ABEZHIKMNOPTXo", strict=True))

_KNOWN = {
    **_MARKS,
    **_LETTERS,
    **_ALIKE,
    **{symbol: rf"\ensuremath{{{written}}}" for symbol, written in _MATHS.items()},
}


def escaped(text: str) -> Tex:
    r"""A text in one line that LaTeX shows as it is.

    A character that LaTeX has no name for is shown as its number.

    >>> print(escaped("50% of R&D_#1"), escaped("ε = ½"))
    50\% of R\&D\_\#1 \ensuremath{\epsilon} = [U+00BD]
    """
    if isinstance(text, Tex):
        return text
    shown = normalize("NFC", one_line(text))
    # Hyphens in a row would be a dash.
    return Tex(re.sub("-(?=-)", "-{}", "".join(map(_written, shown))))


def _written(character: str) -> str:
    """One character in LaTeX."""
    if known := _KNOWN.get(character):
        return known
    if character.isascii() and character.isprintable():
        return character
    base, *marks = list(normalize("NFD", character))
    if marks and base.isascii() and all(mark in _ACCENTS for mark in marks):
        for mark in marks:
            base = f"\\{_ACCENTS[mark]}{{{base}}}"
        return base
    return f"[U+{ord(character):04X}]"


def tabular(table: Table, columns: Sequence[Column[Row]], rows: Sequence[Row]) -> str:
    """Rows with the columns that a table shows, as a tabular with its texts escaped."""
    heads = [column.heading(table) for column in columns]
    head, *body = (
        f"    {_unbound(' & '.join(map(escaped, cells)))} \\\\"
        for cells in (heads, *([column.cell(row) for column in columns] for row in rows))
    )
    aligned = "".join("l" if column.left else "r" for column in columns)
    return "\n".join(
        [
            rf"  \begin{{tabular}}{{{aligned}}}",
            r"    \toprule",
            head,
            r"    \midrule",
            *body,
            r"    \bottomrule",
            r"  \end{tabular}",
        ]
    )


def _unbound(row: str) -> str:
    """A row that does not begin as an option of what ends the row above does."""
    return f"{{}}{row}" if row.startswith(("[", "*")) else row


def floating(tabular: str, caption: str, label: str, below: Sequence[str] = ()) -> str:
    """A tabular as a float, with its caption and label, both in LaTeX, and lines below it."""
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{caption}}}",
            rf"  \label{{{label}}}",
            tabular,
            *(rf"  \par\smallskip{{\footnotesize {escaped(line)}\par}}" for line in below),
            r"\end{table}",
            "",
        ]
    )
