"""Docstrings: their examples print what they say, and they become legible pages."""

import doctest
import importlib
import importlib.util
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PACKAGES = ("attacks", "benchmark", "defenses", "leaderboard")


def _modules() -> list[str]:
    """The modules of ours that have examples."""
    files = [ROOT / "bestattack.py"]
    files += [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in files if _shows(file)]
    return [".".join(part for part in each if part != "__init__") for each in parts]


def _shows(file: Path) -> bool:
    return ">>> " in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", _modules())
def test_examples_in_docstrings_hold(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if str(missing.name).partition(".")[0] in PACKAGES:
            raise
        pytest.skip(f"needs {missing.name}")
    lines: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    # Each begins with the module's own names and with the same random numbers.
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        torch.manual_seed(0)
        runner.run(test, out=lines.append)
    tried = runner.summarize(verbose=False)
    assert tried.attempted, f"no example of {name} was found"
    assert not tried.failed, "".join(lines)
    assert not any(tmp_path.iterdir()), "examples leave no files"


def test_docstrings_become_legible_pages() -> None:
    pytest.importorskip("griffe")
    place = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "docstrings.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    docstring = """
Images (n, *shape) and `x_y`.

steps      how many,
           in all.
norm, eps  of the threat.

Differs:
- One,
  at length.
- Two.

>>> 1 + 1
2
"""
    assert module.to_markdown(docstring) == (
        "Images (n, \\*shape) and `x_y`.\n\n"
        "`steps`\n:   how many, in all.\n\n"
        "`norm`, `eps`\n:   of the threat.\n\n"
        "Differs:\n\n- One,\n  at length.\n- Two.\n\n"
        "```pycon\n>>> 1 + 1\n2\n```"
    )
