"""Attribution: which attack of a report broke each sample first, what each attack was worth, and in
which order the same would have been broken soonest."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pandas as pd

from benchmark.columns import AsMarkdown
from benchmark.errors import UserError
from benchmark.report.breaks import attribution_tables
from benchmark.report.breaks.attribution_tables import Cells
from benchmark.report.breaks.cascades import Orders, orders_of
from benchmark.report.breaks.outcomes import Outcomes
from benchmark.report.breaks.worth import first_of, per_attack, per_sample, per_stage
from benchmark.report.measurements import Measurements
from benchmark.spec.components import SEARCH

# The row of what attacks take on all models together.
TOGETHER = "all together"


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(AsMarkdown):
    """Which attack of a report broke what. Samples that are misclassified as they are do not count,
    since no attack works on them. Work is in passes, forward and backward ones, and in seconds,
    where the time of an attack is divided among its samples by their passes. Under a randomised
    model, an attack breaks a sample if its point is misclassified in most draws.

    per_sample  a row for each sample that an attack broke, with the columns

                sample           its place among the samples;
                first            the attack that broke it first: the first one in the order of the
                                 table, or of the cascade, that broke it;
                first stage      the stage of that attack, where it says so;
                first passes, first seconds  that a cascade in this order spends on the sample until
                                 it is broken: those of that attack, and of all before it;
                cheapest, cheapest stage, cheapest passes, cheapest seconds  the attack that broke
                                 it with the fewest passes of its own, of several the first. None
                                 and NaN in a cascade, where the others did not meet the sample;
                broken by        how many attacks broke it.
    per_attack  a row for each attack that counts, in the order in which the next is always the one
                that newly breaks most per pass, with the columns

                attack;
                attacked, broken  how many samples it worked on, and broke among them;
                only it          how many no other attack broke. NaN where that is not known,
                                 because another attack did not meet some sample that it broke;
                first            how many it broke first, as above;
                newly, so far    how many it newly breaks in the order of the rows, where it works
                                 on what the rows above it leave; and how many it and these break.
                                 Of a randomised model, these are sums of shares of draws;
                passes for that  that it spends on what the rows above it leave;
                passes, seconds  that it spent in all;
                per 1000 passes, per second  how many samples it broke, per work in all.
    per_stage   a row for each stage of an attack that says which stage broke a sample: attack,
                stage, how many samples it `broke` and broke `first`, and the mean `passes` of the
                attack on those that it broke.
    orders      the order that would have left the same soonest, and what it takes.
    notes       what does not count, or cannot be known.
    """

    name: str
    per_sample: pd.DataFrame
    per_attack: pd.DataFrame
    per_stage: pd.DataFrame
    orders: Orders
    notes: Sequence[str]

    @property
    def order(self) -> tuple[str, ...]:
        """The attacks in the order that gives the same best-attack accuracy soonest."""
        return self.orders.learned.order

    def to_markdown(self) -> str:
        """The tables per attack, per stage and of orders as Markdown."""
        return render([self])


def attribution(report: Measurements) -> Attribution:
    """Which attack of a report broke what, and which order would have broken the same soonest.

    Raises UserError where the report has no attack that counts.

    >>> from benchmark.direct.evaluate import evaluate
    >>> import torch
    >>> x, y = torch.tensor([[0.6, 0.4], [0.9, 0.1]]).view(2, 1, 1, 2), torch.tensor([0, 0])
    >>> attacks = ["pgd/steps=1/random_start=no", "pgd/steps=5/random_start=no"]
    >>> report = evaluate(torch.nn.Flatten(), x, y, norm="linf", eps=0.2, attacks=attacks)
    >>> told = attribution(report)
    >>> told.per_sample[["sample", "first", "broken by"]].values.tolist()
    [[0, 'pgd/steps=1/random_start=no', 2]]
    >>> told.order
    ('pgd/steps=1/random_start=no',)
    """
    outcomes = Outcomes.of([report])
    first = first_of(outcomes.broke)
    is_table = report.mode == "table"
    return Attribution(
        report.called,
        per_sample(outcomes, first, is_table),
        per_attack(outcomes, first),
        per_stage(outcomes, first),
        orders_of(report.called, outcomes, is_table),
        _notes(report),
    )


def _notes(report: Measurements) -> list[str]:
    """Lines on attacks that do not count, and on what is not known."""
    notes = _without(report.called, report.errors, "failed", report.attacks)
    notes += _without(report.called, report.inapplicable, "does not apply", report.attacks)
    if report.mode == "cascade":
        notes.append(
            f"{report.called}: a cascade: what an attack would have done to samples that others "
            "broke before it is not known"
        )
    elif later := [label for label in report.measured if label in report.after.keys() - {SEARCH}]:
        notes.append(
            f"{report.called}: later in a series: what {', '.join(later)} would have done to "
            "samples that the ones before it broke is not known"
        )
    if report.searched:
        notes.append(
            f"{report.called}: the search for proofs broke {report.searched} more, which no attack "
            "broke"
        )
    if report.draws:
        notes.append(
            f"{report.called}: randomised: newly and so far are sums of shares of draws, all other "
            "counts are of samples that are misclassified in most draws"
        )
    return notes


def _without(name: str, reasons: Mapping[str, str], what: str, attacks: Iterable[str]) -> list[str]:
    return [
        f"{name}: {label} {what}, and counts for nothing: {reasons[label]}"
        for label in attacks
        if label in reasons
    ]


def render(attributions: Sequence[Attribution], reports: Sequence[Measurements] = ()) -> str:
    """The tables of some attributions as Markdown, with their captions and notes.

    reports  where there are several: what they are of. The order that is soonest over all of them
             together then has a row too.
    """
    orders = [told.orders for told in attributions]
    if len(reports) > 1:
        is_table = all(report.mode == "table" for report in reports)
        with suppress(UserError):  # no order is known for all of them
            orders.append(orders_of(TOGETHER, Outcomes.of(reports), is_table))
    return attribution_tables.render(
        _cells((told.name, told.per_attack) for told in attributions),
        _cells((told.name, told.per_stage) for told in attributions),
        orders,
        [note for told in attributions for note in told.notes],
    )


def page_table(reports: Sequence[Measurements]) -> tuple[list[str], list[list[str]], str]:
    """What pages tell of the attacks on each of some reports: headings, rows and the caption."""
    told = [(report.called, Outcomes.of([report])) for report in reports if report.finished_attacks]
    return attribution_tables.page_table(
        _cells((name, per_attack(outcomes, first_of(outcomes.broke))) for name, outcomes in told)
    )


def _cells(frames: Iterable[tuple[str, pd.DataFrame]]) -> list[Cells]:
    """The rows of some frames, each with the name of its model."""
    named = (frame.assign(defense=name) for name, frame in frames)
    return [row for frame in named for row in frame.to_dict("records")]


def frame(attributions: Sequence[Attribution]) -> pd.DataFrame:
    """A row for each sample of each model that an attack broke: see `Attribution.per_sample`."""
    parts = [told.per_sample.assign(defense=told.name) for told in attributions]
    joined = pd.concat(parts, ignore_index=True)
    return joined[["defense", *joined.columns.drop("defense")]]
