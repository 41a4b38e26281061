"""Robustness under assumed bounds of the local Lipschitz constant.

Source: "Robustness via fractal divide and fractal aggregation" (Qian 2021), table 6.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmark.columns import percent
from benchmark.errors import UserError
from benchmark.report.captions import images, on_settings, threat_name
from benchmark.report.report import Report
from benchmark.report.tables import contradictions
from benchmark.run.run_folder import read_run
from benchmark.spec.components import BEST
from benchmark.studies.study import Study, pairs

# The assumed bounds of table 6.
BOUNDS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


def lipschitz(folder: Path) -> Study:
    """Robustness as predicted under assumed bounds of the local Lipschitz constant, and how often
    the attacks of a run agree (table 6), for each of its defenses with a certificate.

    Raises UserError where the folder holds no run, or no certificate.
    """
    spec, _, reports = read_run(folder)
    rows = [row for report in reports for row in _predictions(report)]
    if not rows:
        raise UserError(f"no defense of {folder} offers a certificate: run it with one that does")
    records = pd.DataFrame(rows)
    first = reports[0]
    attacks = ", ".join(dict.fromkeys(a for report in reports for a in report.measured))
    caption = on_settings(spec, first) + (
        f"Prediction: % of {images(first, spec)}, that are "
        "classified correctly and whose certified radius, divided by the assumed bound of the "
        f"local Lipschitz constant, is at least {threat_name(first.threat)}. Correctness: % of "
        f"those that no attack broke ({attacks or 'none yet'}). Only bound 1 is proven."
    )
    caption += "".join(
        f" CONTRADICTION: {line}: it proves nothing." for line in contradictions(reports)
    )
    printed = {
        "bound": records["bound"].map("{:g}".format),
        "prediction": records["prediction"].map(percent),
        "correctness": records["correctness"].map(percent),
    }
    return Study("lipschitz", records, records.assign(**printed), caption, _draw(records))


def _predictions(report: Report) -> Iterator[dict[str, object]]:
    """A record for each assumed bound; none where the defense offers no certificate."""
    attacked = report.accuracy(BEST) is not None
    for bound in BOUNDS:
        predicted = report.certified_within(bound * report.threat.eps, itself=True)
        if predicted is None:
            return
        held = int(predicted[report.survivors()].sum())
        known = attacked and bool(predicted.any())
        yield {
            "defense": report.name,
            "bound": bound,
            "prediction": float(predicted.mean()),
            "correctness": held / int(predicted.sum()) if known else np.nan,
        }


def _draw(records: pd.DataFrame) -> Any:
    figure, plot = pairs(records, "bound", "prediction", "correctness")
    plot.set(
        xlabel="assumed bound of the local Lipschitz constant",
        ylabel="predicted robust, and (dashed) correctly so (%)",
        xlim=(max(BOUNDS) + 0.02, min(BOUNDS) - 0.02),
        ylim=(0, 103),
    )
    return figure
