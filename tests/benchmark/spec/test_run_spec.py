"""What a run may be asked for, and how it is refused."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from attacks import ThreatModel
from benchmark.errors import UserError
from benchmark.spec.components import Component
from benchmark.spec.lineup import choose
from benchmark.spec.run_spec import RunSpec, make_spec, make_threat, read_budgets, read_values
from tests.benchmark.conftest import Cli

LEAST: dict[str, Any] = {"eps": 0.5, "defenses": ["vanilla"], "attacks": ["pgd"]}


def _refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as error:
        make_spec({key: value for key, value in (LEAST | changes).items() if value is not ...})
    line = str(error.value)
    assert line.startswith("the spec is not valid: ")
    assert "\n" not in line
    return line.removeprefix("the spec is not valid: ")


def test_what_is_not_said_has_a_default() -> None:
    spec = make_spec(LEAST)
    assert spec == RunSpec(
        data="digits",
        samples=None,
        norm="l2",
        eps=0.5,
        defenses=[Component(name="vanilla")],
        attacks=[Component(name="pgd")],
        suite=None,
        mode="table",
        seed=0,
        device="auto",
        precision="model",
        block=256,
        plugins=[],
    )
    assert spec.threat == ThreatModel("l2", 0.5)


@pytest.mark.parametrize(
    ("eps", "value"),
    [
        ("8/255", Fraction(8, 255)),
        (" 8 / 255", Fraction(8, 255)),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        (2, 2.0),
        (0.25, 0.25),
    ],
)
def test_eps_may_be_a_fraction(eps: Any, value: Any) -> None:
    assert make_spec(LEAST | {"eps": eps}).eps == float(value)
    assert make_threat("linf", str(eps)) == ThreatModel("linf", float(value))


@pytest.mark.parametrize("eps", [0, -1, "0", "-8/255", 0.0, "1e-999"])
def test_eps_must_be_above_zero(eps: Any) -> None:
    assert _refusal(eps=eps) == "eps: Input should be greater than 0"


@pytest.mark.parametrize("eps", [float("nan"), float("inf")])
def test_eps_must_be_finite(eps: float) -> None:
    assert _refusal(eps=eps) in (
        "eps: Input should be a finite number",
        "eps: Input should be greater than 0",  # where that is looked at first, NaN is not
    )


@pytest.mark.parametrize("eps", ["nan", "inf", "much", "1/0", "1/2/3", "", "1e999"])
def test_eps_must_be_a_number(eps: str) -> None:
    expected = f"{eps!r} is not a number or a fraction such as 8/255"
    assert _refusal(eps=eps) == f"eps: {expected}"
    with pytest.raises(UserError) as error:
        make_threat("l2", eps)
    assert str(error.value) == expected


def test_budgets_are_in_order_and_as_they_were_written() -> None:
    found = read_budgets("l2", "1/2, 0.05,1e-1")
    assert list(found.items()) == [(0.05, "0.05"), (0.1, "1e-1"), (0.5, "1/2")]
    for text, line in (
        ("0.5,", "'' is not a number or a fraction such as 8/255"),
        ("0.5,0", "eps must be above 0 and finite, not 0.0"),
    ):
        with pytest.raises(UserError) as error:
            read_budgets("l2", text)
        assert str(error.value) == line


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"eps": ...}, "give eps, in the spec or as --eps"),
        ({"defenses": ...}, "give defenses, in the spec or as --defense"),
        ({"defenses": []}, "defenses: List should have at least 1 item after validation, not 0"),
        ({"attack": ["pgd"]}, "unknown setting 'attack': did you mean 'attacks'?"),
        # An unknown setting is named before what is missing for it, or wrong besides.
        (
            {"defenses": ..., "defence": ["vanilla"], "eps": -1},
            "unknown setting 'defence': did you mean 'defenses'?",
        ),
        ({"sample": 10}, "unknown setting 'sample': did you mean 'samples'?"),
        ({"xyzzy": 1}, f"unknown setting 'xyzzy': use {', '.join(RunSpec.model_fields)}"),
        (
            {"attacks": [{"name": "pgd", "options": {}, "steps": 4}]},
            "unknown setting 'attacks.0.steps': leave it out",
        ),
        ({"attacks": ["pgd", "cw", "pgd"]}, "attack 'pgd' is named twice"),
        (
            {"attacks": ["pgd/steps=4", {"name": "pgd", "steps": 4}]},
            "attack 'pgd/steps=4' is named twice",
        ),
        ({"defenses": ["vanilla", "vanilla"]}, "defense 'vanilla' is named twice"),
        ({"norm": "l0"}, "norm: Input should be 'l2', 'linf' or 'l1'"),
        ({"mode": "both"}, "mode: Input should be 'table' or 'cascade'"),
        ({"device": "tpu"}, "device: unknown device 'tpu': use auto, cpu, cuda or cuda:1"),
        (
            {"precision": "float8"},
            "precision: Input should be 'model', 'float32', 'float64', 'bfloat16' or 'float16'",
        ),
        ({"samples": 0}, "samples: Input should be greater than 0"),
        ({"block": 0}, "block: Input should be greater than 0"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"seed": 2**63}, "seed: Input should be less than 9223372036854775808"),
        ({"attacks": [{"steps": 4}]}, "attacks.0.name: Input should be a valid string"),
    ],
)
def test_a_spec_that_is_not_valid_gets_one_line(changes: dict[str, Any], line: str) -> None:
    assert _refusal(**changes) == line


def test_a_suite_and_attacks_beside_it_are_each_run_once() -> None:
    spec = make_spec(LEAST | {"suite": "standard", "attacks": ["cw", "cw/steps=7"]})
    assert list(choose(spec.suite, spec.attacks, spec.threat).entries) == [
        "pgd",
        "pgd/objective=margin/restarts=5",
        "cw",
        "cw/steps=7",
    ]
    assert make_spec({"eps": 1, "defenses": ["vanilla"], "suite": "quick"}).attacks == []


def test_a_saved_spec_reads_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = make_spec(
        LEAST
        | {"eps": "8/255", "attacks": ["pgd/steps=4", {"name": "cw", "minimize": True}]}
        | {"plugins": ["mine.py"], "mode": "cascade", "samples": 10}
    )
    saved = tmp_path / "spec.yaml"
    saved.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    monkeypatch.chdir("/")
    assert make_spec(read_values(saved)) == spec
    assert spec.plugins == [tmp_path / "mine.py"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "cannot read the spec {}: No such file or directory"),
        (b"- a\n- b\n", "{} must hold a mapping of settings such as 'data: mnist'"),
        (b"", "{} must hold a mapping of settings such as 'data: mnist'"),
        (b"a: [1\n", "{} is not YAML: while parsing a flow sequence"),
        (b"\xff\xfe\x00\xd8", "{} is not YAML: "),
        (b"eps: 1\ndefenses: []\n", "the spec is not valid: defenses: List should have at least"),
    ],
)
def test_a_spec_file_that_cannot_be_used_gets_one_line(
    tmp_path: Path, cli: Cli, content: bytes | None, line: str
) -> None:
    path = tmp_path / "spec.yaml"
    if content is not None:
        path.write_bytes(content)
    ended = cli("run", path, "--out", tmp_path / "run")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith(f"bestattack: {line.format(path)}")
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [{}, {"attacks": []}, {"suite": None}])
def test_without_attacks_and_a_suite_strong_runs(given: dict[str, Any]) -> None:
    values = {"eps": 1.0, "defenses": ["vanilla"]}
    assert make_spec(values | given).suite == "strong"
    assert make_spec(values | given | {"attacks": ["pgd"]}).suite is None


@pytest.mark.parametrize("certify", [None, "crown", "branch", "branch/seconds=3"])
def test_a_spec_with_proofs_is_read_back_from_what_is_kept_of_it(certify: str | None) -> None:
    spec = make_spec(LEAST | ({"certify": certify} if certify else {}))
    assert make_spec(yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json")))) == spec
