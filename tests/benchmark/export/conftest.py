"""A small run whose labels hold whatever LaTeX, YAML and XML do not take as it is."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from benchmark.cli.main import main

ODD = "50% of R&D_#1 {a} ~^ \\ <ε--ü> @x | `中`"
STARRED = "[a]* $5"
SPEC = {
    "data": "digits",
    "samples": 40,
    "eps": 0.5,
    "defenses": [{"label": ODD, "name": "vanilla", "epochs": 1}, "l2nnn/epochs=1"],
    "attacks": [
        {"label": STARRED, "name": "pgd", "steps": 2},
        "targeted:cw/steps=2/classes=1",
        "foolbox:L2PGD/steps=2",
    ],
}
LABELS = [STARRED, "targeted:cw/steps=2/classes=1", "foolbox:L2PGD/steps=2"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run, which no test changes."""
    home = tmp_path_factory.mktemp("export")
    spec = home / "asked.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    with pytest.MonkeyPatch.context() as patch:
        words = ["run", str(spec), "--out", str(home / "run"), "--quiet"]
        patch.setattr(sys, "argv", ["bestattack", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return home / "run"


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "run"))
