"""`bestattack run --onnx NET --vnnlib PROPERTY...`: verdicts on properties of a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from benchmark.cli.options import say
from benchmark.errors import FailedError, UserError

# The flags of a run whose name in a spec is another.
_FLAGS = {"threats": "threat", "defenses": "defense", "attacks": "attack", "plugins": "plugin"}

_LIMIT_S = 60.0
_LARGEST_SEED = 2**63 - 1


def judge_properties(
    onnx: Path | None,
    properties: Sequence[Path],
    exact: bool,
    limit: float | None,
    out: Path | None,
    flags: Mapping[str, object],
) -> None:
    """Print a verdict on each property of the network in a file.

    Of a single property that is all that the competition asks for, and of several a line each.

    limit  seconds for each property; None: 60.
    out    a folder for the counterexamples; None: those of several are not kept.
    flags  the other flags of a run, by their names in a spec, of which all but the seed must be
           missing.

    Raises UserError for flags and files that do not go together or cannot be read, and FailedError
    where the solver contradicts an attack or some of several properties cannot be read.
    """
    seed = _check(onnx, properties, flags)
    from benchmark.vnnlib.properties import read_property
    from benchmark.vnnlib.verdicts import Judge

    assert onnx is not None  # as was checked
    names = _names(properties)
    judge = Judge(onnx, exact)
    if judge.unreadable:
        say(f"--exact cannot show unsat here: {onnx}: {judge.unreadable}")
    limit_s = _LIMIT_S if limit is None else limit
    failed: list[str] = []
    lost = 0
    for path, name in zip(properties, names, strict=True):
        try:
            verdict = judge.decide(read_property(path), limit_s, seed)
        except UserError as error:
            if len(properties) == 1:
                raise
            say(str(error))
            typer.echo(f"{name} error")
            failed.append(f"{name} cannot be judged")
            continue
        if verdict.contradicted:
            failed.append(
                f"CONTRADICTION: {name} has a counterexample that onnxruntime confirms, and the "
                "solver proves that there is none"
            )
        typer.echo(verdict.text() if len(properties) == 1 else f"{name} {verdict.status}")
        if verdict.counterexample is not None and out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{name}.counterexample").write_text(verdict.text() + "\n")
        lost += verdict.counterexample is not None and out is None
    if len(properties) > 1 and lost:
        say("The counterexamples were not kept: give --out FOLDER for a file of each.")
    if failed:
        raise FailedError("; ".join(failed))


def _check(onnx: Path | None, properties: Sequence[Path], flags: Mapping[str, object]) -> int:
    """The seed. Raises UserError where flags do not go together."""
    if onnx is None:
        raise UserError(
            "--vnnlib, --exact and --limit ask about a network: name its file by --onnx"
        )
    if any(path.suffix in (".yaml", ".yml") for path in properties):
        raise UserError("--onnx goes without a spec: leave one of them out")
    others = [f"--{_FLAGS.get(key, key)}" for key, value in flags.items() if _is_given(value)]
    others = [flag.replace("_", "-") for flag in others if flag != "--seed"]
    if others:
        raise UserError(
            f"--onnx goes with --vnnlib, --exact, --limit, --seed and --out alone, not with "
            f"{', '.join(others)}: to attack an ONNX file on data, name it as a --defense"
        )
    if not properties:
        raise UserError("--onnx needs properties: name their files by --vnnlib")
    seed = flags["seed"] or 0
    if not isinstance(seed, int) or not 0 <= seed <= _LARGEST_SEED:
        raise UserError(f"--seed must be from 0 to {_LARGEST_SEED}, not {seed}")
    return seed


def _is_given(value: object) -> bool:
    return value is not None and value != []


def _names(properties: Sequence[Path]) -> list[str]:
    """What the properties are called, which is what their files are. Raises UserError where a file
    is missing, or two have one name."""
    names = [path.name.removesuffix(".gz") for path in properties]
    for path, name in zip(properties, names, strict=True):
        if not path.is_file():
            raise UserError(f"cannot read the property {path}: there is no such file")
        if names.count(name) > 1:
            raise UserError(f"two properties are named {name}: ask about them one by one")
    return names
