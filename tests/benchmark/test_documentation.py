"""The examples in README and CONTRIBUTING run as they stand."""

import re
from pathlib import Path

import pytest
import yaml

from attacks import ThreatModel
from benchmark.spec.components import Component
from benchmark.spec.lineup import choose
from benchmark.spec.registry import SUITES
from benchmark.studies.sweep.sweep_runs import check_point
from benchmark.studies.sweep.sweep_spec import make_sweep
from tests.benchmark.conftest import Cli

ROOT = Path(__file__).parents[2]


def _python(document: str, word: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    return block


@pytest.mark.parametrize(
    ("document", "word", "arguments"),
    [
        ("README.md", "DEFENSES", ["--defense", "quantised/levels=8/epochs=2"]),
        ("CONTRIBUTING.md", "Smoothed", ["--defense", "smoothed/epochs=1/steps=2"]),
        (
            "CONTRIBUTING.md",
            "Calibrated",
            ["--defense", "vanilla/epochs=1", "--defense", "calibrated/source=vanilla/epochs=1"],
        ),
        ("CONTRIBUTING.md", "OneStep", ["--defense", "vanilla/epochs=1", "--attack", "one-step"]),
        (
            "CONTRIBUTING.md",
            "FromNoise",
            ["--defense", "vanilla/epochs=1", "--attack", "from-noise:pgd"],
        ),
        ("CONTRIBUTING.md", "DATASETS", ["--defense", "vanilla/epochs=1", "--data", "stripes"]),
    ],
)
def test_plugin_examples_run(
    document: str, word: str, arguments: list[str], tmp_path: Path, cli: Cli
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(_python(document, word))
    common = ["--eps", "0.5", "--samples", "20", "--attack", "pgd/steps=2"]
    ended = cli("run", *common, *arguments, "--plugin", plugin, "--out", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert "best-attack" in ended.out
    # What the README says of its own example.
    assert ("zero-gradient" in ended.out) == (document == "README.md")
    assert cli("verify", tmp_path / "run").status == 0


def test_the_study_of_the_readme_is_valid() -> None:
    text = (ROOT / "README.md").read_text().partition("<!-- study example -->")[2]
    found = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert found
    points = make_sweep(yaml.safe_load(found[1])).points()
    assert len(points) == 6
    for spec in points.values():
        check_point(spec, None)


def test_attacks_and_suites_in_the_readme_are_known() -> None:
    """Each name and option of the table of names, and all suites but no other."""
    text = (ROOT / "README.md").read_text().partition("## Naming attacks")[2].partition("\n## ")[0]
    names, suites = text.split("| `--suite` |")
    rows = re.findall(r"^\| (`.*?) \|", names, re.MULTILINE)
    attacks = [attack for row in rows for attack in re.findall(r"`(.*?)`", row)]
    assert len(attacks) == 8
    lineup = choose(None, [Component.model_validate(a) for a in attacks], ThreatModel("l2", 1.0))
    assert len(lineup.entries) == 8 + 2
    listed = re.findall(r"^\| (`.*?) \|", suites, re.MULTILINE)
    assert {name for row in listed for name in re.findall(r"`(.*?)`", row)} == set(SUITES._builtin)


def test_the_readme_plugin_is_short() -> None:
    lines = _python("README.md", "DEFENSES").strip().splitlines()
    assert len([line for line in lines if line.strip()]) <= 20
