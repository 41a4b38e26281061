"""The cascade that is learned from a run: `suite: learned:RUN`."""

from pathlib import Path
from typing import Any

from benchmark.errors import UserError
from benchmark.report.breaks import soonest
from benchmark.report.captions import threat_name
from benchmark.report.report import Report
from benchmark.run.run_folder import RUN, homes_of, read_manifest, read_run
from benchmark.spec.components import SEARCH
from benchmark.spec.learned_suite import LEARNED, LearnedSuite
from benchmark.spec.lineup import attacks_of
from benchmark.spec.run_spec import RunSpec, make_spec
from benchmark.spec.source_names import without_places
from benchmark.whole.parts import kind_in


def learn(folder: Path) -> LearnedSuite:
    """The attacks of a run in the order that leaves the same soonest, over all its rows together,
    under all its threats and with all its seeds: see `benchmark.report.breaks.soonest`.

    The run need not be finished: what it has counts. Raises UserError where the folder holds no
    run, or one in which no attack is finished.
    """
    spec, reports = reports_of(folder)
    if not any({*report.measured} - {SEARCH} for report in reports):
        raise UserError(f"{folder} holds no finished attack: nothing can be learned from it")
    attacks = attacks_of(spec)
    order = soonest(reports)
    if unknown := set(order) - attacks.keys():
        raise UserError(f"{folder} was changed: its spec lacks {', '.join(sorted(unknown))}")
    if not order:
        raise UserError(f"no attack broke anything in {folder}: there is no order to learn")
    threats = ", ".join(dict.fromkeys(threat_name(report.threat) for report in reports))
    rows = "1 row" if len(reports) == 1 else f"{len(reports)} rows"
    return LearnedSuite(
        learned=str(folder),
        of=f"{without_places(spec.data)}, {threats}, {rows} of {reports[0].total} samples",
        attacks=[attacks[label] for label in order],
    )


def reports_of(folder: Path) -> tuple[RunSpec, list[Report]]:
    """The spec and the reports of a run, under all its threats and with all its seeds.
    Raises UserError as `read_run`."""
    manifest = read_manifest(folder)
    if not kind_in(manifest):
        spec, _, reports = read_run(folder)
        return spec, reports
    spec, homes = homes_of(folder, manifest)
    there = [home for home in homes.values() if (home / RUN).exists()]
    return spec, [report for home in there for report in read_run(home)[2]]


def read_suite(suite: str | None) -> str | LearnedSuite | None:
    """The suite that a user named, learned where that is "learned:RUN". Raises as `learn`."""
    if not isinstance(suite, str) or not suite.startswith(LEARNED):
        return suite
    folder = suite.removeprefix(LEARNED)
    if not folder:
        raise UserError("learned: names no run: write learned:RUN, with the folder of a run")
    return learn(Path(folder))


def spec_of(values: dict[str, Any]) -> RunSpec:
    """Validate the values of a spec, whose suite is learned where it is "learned:RUN". Raises
    UserError, in one line, where they are not valid."""
    suite = values.get("suite")
    return make_spec(values | ({"suite": read_suite(suite)} if suite else {}))
