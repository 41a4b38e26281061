"""What users are handed: what was measured on one model, with its flags and tables."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from benchmark.errors import UserError
from benchmark.judge.evaluator import Samples
from benchmark.report import tables
from benchmark.report.breaks.attribution import Attribution, attribution
from benchmark.report.flags import explain
from benchmark.report.measurements import Measurements
from benchmark.report.pictures.closest_examples import plot_examples
from benchmark.report.pictures.curves import plot_curves
from benchmark.spec.components import NATURAL
from benchmark.terminal import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The samples that were attacked, and the names of their classes where they have some.
Origin = Callable[[], tuple[Samples, Sequence[str] | None]]


class Report(Measurements):
    """What was measured on one model, with flags and tables. Accuracies are over all its samples.

    natural, per_attack, certified, best_attack, contradictions, records, adversarial, precision and
    draws are described below; the other attributes are:

    errors        why attacks or the certificate failed; inapplicable, why attacks do not apply to
                  the model.
    after         for the later attacks of a series, those before them.
    notes         on the attacks that were asked for.
    rejecting     of a model that may reject images: the same, where rejecting a perturbed image
                  does not count as misclassifying it. None for any other model.
    cells         what it is made from: natural, the certificate and each attack, by label.
    origin        gives the samples that were attacked, for `plot_examples`; None where they are not
                  at hand.

    >>> from benchmark.direct.evaluate import evaluate
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

    rejecting: "Report | None" = None
    origin: Origin | None = None

    @property
    def flags(self) -> dict[str, str]:
        """What to know before trusting the numbers: code to explanation."""
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
        return tables.render(self._rows, spec=None)

    def to_latex(self) -> str:
        r"""The report as a table in LaTeX with its caption and flags; it needs
        \usepackage{booktabs}."""
        return tables.latex(self._rows, spec=None)

    def attribution(self) -> Attribution:
        """Which attack broke what first, what each was worth, and which order of them would have
        broken the same soonest: see `Attribution`. Raises UserError where no attack counts."""
        return attribution(self)

    def plot_curve(self, axes: "Axes | None" = None) -> "Axes":
        """Draw which share of the samples is left at each eps up to that of the threat: solid, what
        the closest adversarial examples of all attacks leave, an upper bound, and dashed what is
        certified. Into some axes of Matplotlib, or those of a new figure, which are returned.
        Raises UserError where nothing gives a curve."""
        return plot_curves([self], axes)

    def plot_examples(self, most: int = 6) -> "Figure":
        """Show at most so many of the closest adversarial examples, of as many classes and attacks
        as can be: the image, what was changed (at full contrast), and the adversarial image. A
        figure of Matplotlib. Raises UserError where there is none to show."""
        if self.origin is None:
            raise UserError("the images are not at hand: load the run from its folder")
        samples, labels = self.origin()
        return plot_examples(self, samples, labels, most)

    def __str__(self) -> str:
        return text(tables.page(self._rows, spec=None)).rstrip()

    def __repr__(self) -> str:
        """In a shell, the report as `print` shows it, once its clean images are judged."""
        return str(self) if NATURAL in self.frames else super().__repr__()

    def _repr_html_(self) -> str | None:
        """In a notebook, the same as a table."""
        return tables.notebook(self._rows, spec=None) if NATURAL in self.frames else None

    @property
    def _rows(self) -> list["Report"]:
        return [self, *([self.rejecting] if self.rejecting else [])]
