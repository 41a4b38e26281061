"""What is installed: all files that code reads, and nothing that is the repository's alone."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("attacks", "benchmark", "defenses", "leaderboard")
# What the board has published; see docs/leaderboard.md.
OF_THE_REPOSITORY = ("leaderboard/rows", "leaderboard/site", "leaderboard/README.md")

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def _files(package: str) -> set[str]:
    found = (path for path in (ROOT / package).rglob("*") if path.is_file())
    names = {
        path.relative_to(ROOT).as_posix() for path in found if path.suffix not in (".py", ".pyc")
    }
    return {name for name in names if not name.startswith(OF_THE_REPOSITORY)}


def test_every_file_beside_the_code_is_installed() -> None:
    installed = set()
    for package, patterns in SETTINGS["package-data"].items():
        home = ROOT / package.replace(".", "/")
        for pattern in patterns:
            matched = {path.relative_to(ROOT).as_posix() for path in home.glob(pattern)}
            assert matched, f"{package} has no {pattern}"
            installed |= matched
    assert installed == set.union(*map(_files, PACKAGES))


def test_every_package_is_installed() -> None:
    included = SETTINGS["packages"]["find"]["include"]
    assert included == [f"{package}*" for package in PACKAGES]
    homes = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert all((home / "__init__.py").is_file() for home in homes)
