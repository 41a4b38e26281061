"""How attributions are printed: a table with a row per attack, one with a row per stage of an
attack, and one with a row per order of attacks."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from benchmark.columns import (
    NONE,
    Column,
    Shown,
    Table,
    captions,
    decimals,
    escaped,
    percent,
    rows_markdown,
)
from benchmark.report.breaks.cascades import Cost, Orders

# A row, by the headings of its columns.
Cells = Mapping[Hashable, Any]


def render(
    attacks: Sequence[Cells],
    stages: Sequence[Cells],
    orders: Sequence[Orders],
    notes: Sequence[str],
) -> str:
    """The tables as Markdown, with their captions, and the notes below them.

    attacks, stages  rows of `Attribution.per_attack` and `Attribution.per_stage`, each with the
                     name of its model as "defense".
    """
    sections = _section("attribution", _attack_columns(), attacks)
    if stages:
        sections += _section("stages", _stage_columns(), stages)
    sections += _section("orders", _order_columns(), orders)
    if notes:
        sections.append("\n".join(f"- {escaped(note)}" for note in notes))
    return "\n\n".join(sections) + "\n"


def _section(table: Table, columns: Sequence[Column[Any]], rows: Sequence[Any]) -> list[str]:
    return [rows_markdown(table, columns, rows), escaped(" ".join(captions(table, columns)))]


# The columns of the table per attack for which a page has room.
_ON_PAGE = (
    *("defense", "attack", "attacked", "broken", "only it", "first", "newly"),
    "passes for that",
)


def page_table(attacks: Sequence[Cells]) -> tuple[list[str], list[list[str]], str]:
    """The table per attack as pages have it: its headings, its rows, and its caption."""
    columns = [column for column in _attack_columns() if column.heading("attribution") in _ON_PAGE]
    return (
        [column.heading("attribution") for column in columns],
        [[column.cell(row) for column in columns] for row in attacks],
        " ".join(captions("attribution", columns)),
    )


def _count(value: float) -> str:
    """A number of samples, or a sum of shares of them."""
    return decimals(1)(value).removesuffix(".0")


def _attack_columns() -> list[Column[Cells]]:
    """The columns of the table with a row per attack."""
    table: Table = "attribution"
    return [
        _column(table, "defense", left=True),
        _column(table, "attack", left=True),
        _column(table, "attacked", "attacked, broken: how many samples the attack worked on, and "
                "broke.", _count),
        _column(table, "broken", "", _count),
        _column(table, "only it", "only it: that no other attack broke (- where that is not "
                "known).", _count),
        _column(table, "first", "first: that it broke, and none before it in the order of the "
                "run.", _count),
        _column(table, "newly", "newly: what it adds where attacks come in the order of the rows, "
                "of which the next is always the one that newly breaks most per pass, and each "
                "works on what those above it leave, for so many passes.", _count),
        _column(table, "so far", "so far: what is broken then.", _count),
        _column(table, "passes for that", "", _count),
        _column(table, "passes", "passes, seconds: that it spent in the run, forward and backward "
                "passes together.", _count),
        _column(table, "seconds", "", decimals(1)),
        _column(table, "per 1000 passes", "per 1000 passes, per second: how many samples it broke, "
                "by what it spent in the run.", decimals(2)),
        _column(table, "per second", "", decimals(2)),
    ]  # fmt: skip


def _stage_columns() -> list[Column[Cells]]:
    """The columns of the table with a row per stage of an attack."""
    table: Table = "stages"
    return [
        _column(table, "defense", left=True),
        _column(table, "attack", left=True),
        _column(table, "stage", left=True),
        _column(table, "broken", "broken: how many samples the stage broke.", _count),
        _column(table, "first", "first: those that no attack before it in the run broke.", _count),
        _column(table, "passes", "passes: mean passes of the whole attack on those that it broke.",
                decimals(1)),
    ]  # fmt: skip


def _column(
    table: Table,
    heading: str,
    caption: str = "",
    text: Callable[[Any], str] = str,
    left: bool = False,
) -> Column[Cells]:
    """A column of what rows hold under its heading."""
    return Column({table: Shown(heading, caption)}, lambda row: row[heading], text, left=left)


def _order_columns() -> list[Column[Orders]]:
    """The columns of the table with a row per order of attacks."""

    def column(
        heading: str,
        value: Callable[[Orders], Any],
        caption: str = "",
        text: Callable[[Any], str] = str,
        left: bool = False,
    ) -> Column[Orders]:
        return Column({"orders": Shown(heading, caption)}, value, text, left=left)

    return [
        column("defense", lambda orders: orders.name, left=True),
        column(
            "soonest", lambda orders: ", ".join(orders.learned.order) or None,
            "soonest: the order of attacks that leaves the same with the fewest passes, as a "
            "cascade, where each attack works on what those before it leave.", left=True,
        ),
        column(
            "left out", lambda orders: ", ".join(orders.left_out) or None,
            "left out: attacks that it has no use for.", left=True,
        ),
        column(
            "best-attack", lambda orders: percent(orders.learned.best_attack.value),
            "best-attack: in %, under that order.",
        ),
        column(
            "passes", lambda orders: orders.learned.passes,
            "passes, seconds: that it takes.",
        ),
        column("seconds", lambda orders: orders.learned.seconds, text=decimals(1)),
        column(
            "cascade as given", lambda orders: orders.given and orders.given.passes,
            "cascade as given: passes of a cascade in the order of the run, with how many % of "
            "them are saved.",
        ),
        column("saved %", lambda orders: _saved(orders.learned, orders.given)),
        column(
            "table", lambda orders: orders.table and orders.table.passes,
            "table: passes of the run where it is a table, likewise.",
        ),
        column(
            "saved % of table", lambda orders: _saved(orders.learned, orders.table),
        ),
    ]  # fmt: skip


def _saved(learned: Cost, before: Cost | None) -> str:
    """By how many % passes are fewer than before; nothing to tell where nothing was broken."""
    if before is None or not learned.order:
        return NONE
    return percent(1 - learned.passes / before.passes) if before.passes else NONE
