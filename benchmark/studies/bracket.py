"""How wide the bracket is between what is proven of a run's models and what attacks leave of them,
against the budget."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmark.analysis.learned_order import spec_of
from benchmark.columns import NONE, percent
from benchmark.errors import UserError
from benchmark.report.captions import NORMS, images, on_settings
from benchmark.report.report import Report
from benchmark.report.report_columns import proven_by
from benchmark.spec.components import BEST, CERTIFIED, NATURAL
from benchmark.spec.run_spec import RunSpec, read_budgets
from benchmark.studies.budgets import How, run_values, runs_at
from benchmark.studies.study import Study, axes, flagged

_WIDTH = "width"


def bracket(
    folder: Path,
    eps: str,
    certify: str,
    how: How,
    attacks: Sequence[str] = (),
    suite: str | None = None,
    defenses: Sequence[str] = (),
) -> Study:
    """Certified and best-attack accuracy of the models of a run at each budget of `eps`, "0.1,0.2"
    or "4/255,8/255", and how far they are apart. By default under the attacks of the run, and for
    all of its rows.

    certify  how bounds prove what no attack breaks, as in a spec: "branch/seconds=10".

    Each budget is a run of its own, which resumes and can be verified. Raises UserError,
    SavedModelError or TrainingError, each in one line, as the run itself does.
    """
    values, models = run_values(folder, how)
    values |= {"certify": certify}
    if attacks or suite:
        values |= {"attacks": list(attacks), "suite": suite}
    spec = spec_of(values)
    if spec.certify is None:
        raise UserError("a bracket needs proofs: give --certify crown, or branch/seconds=10")
    texts = read_budgets(spec.norm, eps)
    runs = runs_at("bracket", folder, spec, models, defenses or models, texts, how)
    records = pd.DataFrame([_row(value, report) for value, told in runs.items() for report in told])
    caption = _caption(spec, list(runs.values()))
    return Study("bracket", records, _table(records, texts), caption, _draw(records, spec.norm))


def _row(eps: float, report: Report) -> dict[str, object]:
    """Both ends at one budget; NaN where one was not measured."""
    best, certified = report.accuracy(BEST), report.accuracy(CERTIFIED)
    width = np.nan
    if best is not None and certified is not None:
        # By counts, since the difference of two shares is rounded.
        width = (best.count - certified.count) / best.n
    return {
        "defense": report.name,
        "eps": eps,
        NATURAL: report.natural,
        CERTIFIED: report.certified,
        BEST: report.best_attack,
        _WIDTH: width,
    }


def _table(records: pd.DataFrame, texts: Mapping[float, str]) -> pd.DataFrame:
    """A line for each defense, and for each budget both ends and the width, in points."""
    lines = []
    for defense, rows in records.groupby("defense", sort=False):
        line = {"defense": str(defense), NATURAL: percent(rows[NATURAL].iloc[0])}
        for _, row in rows.iterrows():
            certified, best, width = (
                NONE if np.isnan(row[end]) else percent(row[end])
                for end in (CERTIFIED, BEST, _WIDTH)
            )
            line[f"eps {texts[row['eps']]}"] = f"[{certified}, {best}] {width}"
        lines.append(line)
    return pd.DataFrame(lines)


def _caption(spec: RunSpec, runs: Sequence[Iterable[Report]]) -> str:
    first, *_ = runs[0]
    proven = proven_by([report for reports in runs for report in reports])
    own = "the defense's own certificate"
    by = own if proven == "itself" else str(spec.certify)
    return (
        on_settings(spec, first)
        + f"Accuracy in % over {images(first, spec)}, natural and within each {NORMS[spec.norm]} "
        "eps, of the models as the run trained them: [certified, best-attack], and how many points "
        f"they are apart. Certified: by {by}{f', or by {own}' if proven == 'either' else ''}. "
        f"{NONE}: bounds do not pass the model, as the tables say. Each eps is a run of its own, "
        "with its records and tables, in bracket/."
    ) + flagged(report for reports in runs for report in reports)


def _draw(records: pd.DataFrame, norm: str) -> Any:
    """The bracket of each defense, as a band from certified to best-attack accuracy."""
    defenses = list(records["defense"].unique())
    figure, plot = axes(4.5 + 0.2 * len(defenses))
    for place, defense in enumerate(defenses):
        rows = records[records["defense"] == defense]
        eps = [0.0, *rows["eps"]]
        best, certified = (
            [100 * share for share in (rows[NATURAL].iloc[0], *rows[end])]
            for end in (BEST, CERTIFIED)
        )
        plot.plot(eps, best, "o-", color=f"C{place}", label=defense, markersize=4)
        plot.plot(eps, certified, "o:", color=f"C{place}", markersize=4)
        plot.fill_between(eps, certified, best, color=f"C{place}", alpha=0.15)
    plot.set(
        xlabel=f"eps ({norm})", ylabel="certified to best-attack accuracy (%)", xlim=(0, None),
        ylim=(0, 102),
    )  # fmt: skip
    figure.legend(loc="outside lower center", fontsize="small")
    return figure
