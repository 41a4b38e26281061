"""The rows of one or several runs, by names that tell them apart."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmark.errors import UserError, did_you_mean
from benchmark.report.report import Report
from benchmark.run.run_folder import read_run, unfinished


def rows_of_runs(
    folders: Sequence[Path], chosen: Sequence[str] = (), against: str | None = None
) -> tuple[dict[str, Report], str | None]:
    """The reports on the rows of some runs, and the name of the row that others are compared with.

    Rows go by their labels; one that several runs have has its run's folder behind it, as in
    "vanilla (runs/a)".

    chosen   the rows, by their names, or by labels, which stand for that row of each run; all by
             default.
    against  a further one, by its name, or by a label that one run alone has.

    Raises UserError for a row that there is not, or that is not finished, and as `read_run` does.
    """
    if twice := [path for path, times in Counter(map(Path.resolve, folders)).items() if times > 1]:
        raise UserError(f"{twice[0]} is named twice: name each run once")
    found: list[tuple[Path, str, Report | None]] = []
    lacking: dict[tuple[Path, str], list[str]] = {}
    for folder in folders:
        spec, manifest, reports = read_run(folder)
        of_run = unfinished(spec, manifest, reports)
        lacking |= {(folder, label): lines for label, lines in of_run.items()}
        found += [(folder, report.name, report) for report in reports]
        measured = {report.name for report in reports}
        found += [(folder, label, None) for label in of_run if label not in measured]
    times = Counter(label for _, label, _ in found)
    by_name = {
        label if times[label] == 1 else f"{label} ({folder})": (folder, label, report)
        for folder, label, report in found
    }
    wanted = {name for written in chosen for name in _matching(written, list(by_name), times)}
    if against is not None:
        matching = _matching(against, list(by_name), times)
        if len(matching) > 1:
            raise UserError(f"several runs have a row {against!r}: name one, {matching[0]!r}")
        (against,) = matching
    rows: dict[str, Report] = {}
    for name, (folder, label, report) in by_name.items():
        if wanted and name not in wanted and name != against:
            continue
        if (folder, label) in lacking or report is None:
            raise UserError(
                f"a row of {folder} is not finished ({lacking[folder, label][0]}): run the same "
                "command again, or name other rows with --rows"
            )
        rows[name] = report
    return rows, against


def _matching(written: str, names: Sequence[str], times: Counter[str]) -> list[str]:
    """The names that a user means by a name or a label. Raises UserError where there is none."""
    if written in names:
        return [written]
    if times[written]:
        return [name for name in names if name.startswith(f"{written} (")]
    hint = did_you_mean(written, names, f"there are {', '.join(names)}")
    raise UserError(f"no row {written!r}: {hint}")
