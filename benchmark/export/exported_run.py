"""A run that is exported: read from its folder, finished, and written without losing anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.messages import one_line
from benchmark.errors import UserError
from benchmark.export.bibliography import bibliography, cited, keys_of
from benchmark.export.model_card import chosen, model_card
from benchmark.judge.records import write_text
from benchmark.report import tables
from benchmark.report.report import Report
from benchmark.run.run_folder import missing_of, named, read_run
from benchmark.spec.run_spec import RunSpec

# What every export says of itself in its first lines.
_MARK = "bestattack export"


@dataclass(frozen=True)
class ExportedRun:
    """A finished run under one threat, as its folder has it.

    spec     what was asked for, under this threat.
    run      its manifest.
    reports  on each row.
    """

    folder: Path
    spec: RunSpec
    run: dict[str, Any]
    reports: Sequence[Report]

    @classmethod
    def of(cls, folder: Path) -> "ExportedRun":
        """Read a run. Raises UserError where the folder holds none, one under several threats or
        with several seeds, or a damaged one, and for a run that is not finished, whose numbers may
        still fall."""
        spec, run, reports = read_run(folder)
        if missing := missing_of(spec, run, reports):
            raise UserError(
                f"the run of {folder} is not finished, and its numbers may still fall: "
                f"{'; '.join(missing)}: run the same command again"
            )
        return cls(folder, named(spec, run), run, reports)

    def latex(self, with_attacks: bool = True) -> str:
        """The table in LaTeX, after comments on what it needs."""
        keys = ", ".join(keys_of(cited(self.reports, self.spec.data)))
        return (
            f"% {self._made_by('latex')}\n"
            "% It needs \\usepackage{booktabs}. Its papers, as `bestattack export bibtex` has "
            f"them:\n% \\citep{{{keys}}}\n{tables.latex(self.reports, self.spec, with_attacks)}"
        )

    def bibtex(self) -> str:
        """The references in BibTeX."""
        return f"% {self._made_by('bibtex')}\n\n{bibliography(self.reports, self.spec.data)}"

    def model_card(self, row: str | None = None, url: str | None = None) -> str:
        """A model card on one row, or on all; `url` is where readers find the run."""
        card = model_card(chosen(self.reports, row), self.spec, self.run, url)
        return card.replace("---\n", f"---\n# {self._made_by('model-card')}\n", 1)

    def _made_by(self, what: str) -> str:
        name = one_line(self.folder.resolve().name).replace("@", "(at)")
        return f"{_MARK} {what} {name}"


def write_export(path: Path, text: str) -> None:
    """Write an export into a file. Raises UserError where that cannot be written, or is there and
    is no export, which would be lost."""
    if path.exists() and not _is_export(path):
        raise UserError(f"{path} is there, and is no export: name another file, or remove it")
    write_text(path, text)


def _is_export(path: Path) -> bool:
    """Whether a file begins as exports do."""
    try:
        with path.open(encoding="utf-8") as file:
            return any(_MARK in file.readline() for _ in range(2))
    except (OSError, UnicodeDecodeError):
        return False
