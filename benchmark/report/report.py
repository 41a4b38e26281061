"""What users are handed: what was measured on one model, with its flags and tables."""

import pandas as pd

from benchmark.report import tables
from benchmark.report.flags import explain
from benchmark.report.measurements import Measurements


class Report(Measurements):
    """What was measured on one model. Accuracies are over all its samples.

    natural       share classified correctly.
    per_attack    share classified correctly and not broken by that attack, or by those before it in
                  its series; NaN where it failed or does not apply. Empty in cascade mode, where an
                  attack sees only what those before it left.
    certified     share classified correctly, which the model's own certificate proves not to change
                  within eps; NaN where it has none or that failed.
    best_attack   share classified correctly and broken by no attack; NaN where no attack ran.
    contradictions  the samples (k,) that an attack misclassifies within their certified radius.
    errors        why attacks or the certificate failed; inapplicable, why attacks do not apply to
                  the model.
    after         for the later attacks of a series, those before them.
    flags         what to know before trusting the numbers: code to explanation.
    notes         on the attacks that were asked for.
    records       a DataFrame with one row per sample and attack ("natural" among them). Where there
                  is a certificate, `radius` is the sample's certified radius, in the run's norm.
    adversarial   for each attack, its judged misclassified points.
    cells         what it is made from: natural, the certificate and each attack, by label.

    >>> from benchmark.run.evaluate import evaluate
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    >>> x = torch.full((8, 1, 2, 2), 0.5)
    >>> report = evaluate(model, x, model(x).argmax(1), norm="linf", eps=1e-6, attacks=["pgd"])
    >>> report.per_attack, report.best_attack
    ({'pgd': 1.0}, 1.0)
    >>> report.to_frame()["attack"].tolist()
    ['natural', 'pgd', 'best-attack']
    >>> len(report.records)  # a row for each sample, clean and under the attack
    16
    """

    @property
    def flags(self) -> dict[str, str]:
        return explain(self)

    def to_frame(self) -> pd.DataFrame:
        """One row for natural, each attack, certified (where there is a certificate), best-attack.

        Accuracies with their intervals; `attacked` samples and `broken` among them; mean and median
        `distance` of the broken ones (those unbroken are left out: attacked - broken); mean
        `forwards` and `backwards` per attacked sample; seconds.
        """
        return tables.details([self])

    def to_markdown(self) -> str:
        """The report as a Markdown table with its caption and flags."""
        return tables.render([self], spec=None)
