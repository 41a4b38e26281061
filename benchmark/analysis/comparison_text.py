"""How a comparison of rows is printed: letters for the rows, so that lines stay short."""

import textwrap
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from benchmark.analysis.comparable import images, met
from benchmark.analysis.row_pairs import Pair
from benchmark.columns import escaped, markdown
from benchmark.report.accuracy import Accuracy
from benchmark.report.captions import threat_name
from benchmark.report.flags import explain
from benchmark.report.measurements import Measurements
from benchmark.report.paired import LEVEL
from benchmark.spec.components import BEST, CERTIFIED, NATURAL

_WIDTH = 80


def rendered(
    of: str,
    rows: Mapping[str, Measurements],
    accuracies: Mapping[str, Accuracy],
    pairs: Sequence[Pair],
) -> str:
    """The rows with their accuracies, a table of the pairs, and what its numbers mean."""
    letters = {name: _letter(place) for place, name in enumerate(rows)}
    report = next(iter(rows.values()))
    title = f"{of} accuracy in % over {images(report)}, {threat_name(report.threat)}:"
    named = [
        _filled(f"- {letters[name]}: {accuracy} {escaped(name)}", "  ")
        for name, accuracy in accuracies.items()
    ]
    headings = ["pair", "difference [95%]", "only", "p", "Holm", "verdict"]
    table = markdown(
        headings,
        [_cells(pair, letters) for pair in pairs],
        [True, False, False, False, False, True],
    )
    remarks = [_filled(f"- {escaped(line)}", "  ") for line in _remarks(of, rows, letters)]
    parts = [_filled(escaped(title)), "\n".join(named), table, _filled(_caption(pairs))]
    return "\n\n".join([*parts, *(["\n".join(remarks)] if remarks else [])])


def _letter(place: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    more, last = divmod(place, len(ascii_uppercase))
    return (_letter(more - 1) if more else "") + ascii_uppercase[last]


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _cells(pair: Pair, letters: dict[str, str]) -> list[str]:
    first, second = letters[pair.first], letters[pair.second]
    low, high = pair.interval
    better = "" if pair.better is None else f"{letters[pair.better]} is better"
    return [
        f"{first}-{second}",
        f"{_points(pair.difference):+.1f} [{_points(low):.1f}, {_points(high):.1f}]",
        f"{len(pair.only_first)}/{len(pair.only_second)}",
        _chance(pair.p),
        _chance(pair.p_holm),
        better or pair.verdict,
    ]


def _points(share: float) -> float:
    """A share in %, as it prints; without the sign of a zero."""
    return round(100 * share, 1) + 0.0


def _chance(p: float) -> str:
    return f"{p:.4f}" if p >= 1e-4 else f"{p:.0e}"


def _caption(pairs: Sequence[Pair]) -> str:
    """What the numbers of the table are."""
    text = (
        "difference: that of the first row less that of the second, in points, with its 95% "
        "interval, of each pair by itself. only: on how many samples the first row is better, "
        "and on how many the second. p: the chance of so uneven a result if both were equal; Holm: "
        f"p, corrected for the number of pairs. A row is called better where Holm is below "
        f"{LEVEL:g}. "
    )
    verdicts = [pair for pair in pairs if not pair.by_shares]
    if verdicts:
        text += "Intervals are Tango's, and p is by McNemar's exact test"
        text += ", " if len(verdicts) < len(pairs) else "."
    if len(verdicts) < len(pairs):
        text += "but of randomised models, whose" if verdicts else "Of randomised models"
        text += (
            " samples count by shares of draws, both are normal, over paired differences (Bonett "
            "and Price)."
        )
    return text


def _remarks(of: str, rows: Mapping[str, Measurements], letters: dict[str, str]) -> list[str]:
    """What differs between the rows though they can be compared, and their flags."""
    lines = []
    groups = met(rows, of)
    if len(groups) > 1:
        what = "was certified by" if of == CERTIFIED else "met"
        told = [
            f"{_listed([letters[name] for name in names])} {what} {_listed(attacks)}"
            f"{' alone' if len(attacks) == 1 and of == BEST else ''}"
            for attacks, names in groups.items()
        ]
        bound = "a lower bound by its own proofs" if of == CERTIFIED else (
            "an upper bound by its own attacks: a row that met fewer, or weaker ones, may look "
            "better than it is"
        )  # fmt: skip
        lines.append(f"{'; '.join(told)}. Each number is {bound}.")
    if of != NATURAL:
        for name, report in rows.items():
            if flags := explain(report):
                lines.append(f"{letters[name]} is flagged: {', '.join(flags)}.")
    return lines


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
