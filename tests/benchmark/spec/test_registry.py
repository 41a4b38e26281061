"""Names: built in, from a local file, and from installed packages."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from benchmark.errors import UserError
from benchmark.keys import identify_attack
from benchmark.spec import registry
from benchmark.spec.registry import ATTACKS, DATASETS, DEFENSES, SUITES, Registry, load_plugin
from tests.benchmark.conftest import Cli

ROOT = Path(__file__).resolve().parents[3]

PLUGIN = '''
from dataclasses import dataclass

from attacks import PGD
from benchmark.data.sets import digits
from defenses import Vanilla


@dataclass(frozen=True)
class Mine(PGD):
    """An attack of mine."""


@dataclass(frozen=True, kw_only=True)
class Wall(Vanilla):
    """A defense of mine."""


def photos(root):
    """A data set of mine."""
    return digits(root)
'''
TABLES = """
ATTACKS = {"mine": Mine}
DEFENSES = {"wall": Wall}
DATASETS = {"photos": photos}
"""


def _file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that packages have these entry points: name=value."""

    def pretend(**points: str) -> None:
        def found(group: str) -> Sequence[EntryPoint]:
            return [EntryPoint(name, value, group) for name, value in points.items()]

        monkeypatch.setattr(registry, "entry_points", found)

    return pretend


def _listed(out: str) -> dict[str, str]:
    """Names and what is said of them, without the variants that follow data sets."""
    return dict(line.split(maxsplit=1) for line in out.partition("\n\n")[0].splitlines())


def test_an_entry_is_imported_when_it_is_asked_for_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _file(tmp_path / "lazy_entry.py", "thing = 'here'\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = Registry("attack", "attacks", {"lazy": "lazy_entry:thing", "other": [1]})

    assert names.get("other") == [1]
    with pytest.raises(UserError):
        names.get("unknown")
    assert "lazy_entry" not in sys.modules

    assert names.get("lazy") == "here"
    assert "lazy_entry" in sys.modules


@pytest.mark.parametrize(
    ("names", "word", "line"),
    [
        (ATTACKS, "pdg", "unknown attack 'pdg': did you mean 'pgd'?"),
        (DEFENSES, "vanila", "unknown defense 'vanila': did you mean 'vanilla'?"),
        (DATASETS, "mnsit", "unknown data set 'mnsit': did you mean 'mnist'?"),
        (SUITES, "quik", "unknown suite 'quik': did you mean 'quick'?"),
        (
            ATTACKS,
            "?",
            "unknown attack '?': did you forget --plugin FILE.py? "
            "'bestattack list attacks' shows all",
        ),
    ],
)
def test_an_unknown_name_gets_did_you_mean(names: Registry, word: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        names.get(word)
    assert str(error.value) == line


def test_all_that_is_built_in_loads(recwarn: pytest.WarningsRecorder) -> None:
    for names in (ATTACKS, DEFENSES, DATASETS, SUITES):
        lines = names.describe()
        assert [line.partition(":")[0] for line in lines] == sorted(names._builtin)
        assert "does not load" not in lines.values()
        assert all(lines.values())
    assert not recwarn.list


def test_the_list_shows_what_must_follow_a_name(cli: Cli) -> None:
    lines = _listed(cli("list", "attacks").out)
    assert {"pgd", "best-arm:BASE", "targeted:BASE", "foolbox:NAME"} <= set(lines)
    assert not {"best-arm", "foolbox", "pgd:BASE"} & set(lines)


def test_suites_are_listed_with_their_attacks_in_lines_that_can_be_read(cli: Cli) -> None:
    lines = cli("list", "suites").out.splitlines()
    assert max(map(len, lines)) <= 100
    text = " ".join(line.strip() for line in lines)
    for name, suite in SUITES._builtin.items():
        assert any(line.startswith(f"{name} ") for line in lines)
        for attack in suite.attacks:
            assert (attack if isinstance(attack, str) else attack["name"]) in text


@pytest.mark.parametrize("table", ["ATTACKS = {'pgd': 1}", "ATTACKS = {'other': 1, 'cw': 2}"])
def test_a_local_file_that_takes_a_built_in_name_is_an_error(tmp_path: Path, table: str) -> None:
    path = _file(tmp_path / "mine.py", table)
    with pytest.raises(UserError, match=r"^attack '(pgd|cw)' is built in and also from .*mine\.py"):
        load_plugin(path)


def test_two_local_files_that_take_one_name_are_an_error(tmp_path: Path) -> None:
    first = _file(tmp_path / "first.py", PLUGIN + TABLES)
    load_plugin(first)
    load_plugin(first)  # the same one again is not a clash
    second = _file(tmp_path / "second.py", PLUGIN + TABLES)
    with pytest.raises(UserError, match=r"attack 'mine' is .*first\.py and also from .*second\.py"):
        load_plugin(second)


def test_a_package_that_takes_a_built_in_name_is_an_error(
    installed: Callable[..., None], cli: Cli
) -> None:
    installed(pgd="somewhere:PGD")
    line = "attack 'pgd' is built in and also from somewhere:PGD: rename or remove one"
    with pytest.raises(UserError) as error:
        ATTACKS.get("cw")
    assert str(error.value) == line
    ended = cli("list", "attacks")
    assert (ended.status, ended.err) == (1, f"bestattack: {line}\n")


def test_a_local_file_that_takes_the_name_of_a_package_is_an_error(
    tmp_path: Path, installed: Callable[..., None]
) -> None:
    installed(mine="somewhere:Mine")
    with pytest.raises(UserError, match="attack 'mine' is somewhere:Mine and also from"):
        load_plugin(_file(tmp_path / "file.py", PLUGIN + TABLES))


@pytest.mark.filterwarnings("always")
def test_a_broken_package_is_a_warning_in_the_list_and_an_error_when_asked_for(
    installed: Callable[..., None], cli: Cli
) -> None:
    installed(broken="no_such_module_anywhere:Thing")
    reason = (
        "attack 'broken' from no_such_module_anywhere:Thing does not load: "
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    )
    ended = cli("list", "attacks")
    assert (ended.status, ended.err) == (0, f"warning: {reason}\n")
    lines = _listed(ended.out)
    assert lines["broken"] == "does not load (no_such_module_anywhere:Thing)"
    assert lines["pgd"].startswith("Projected gradient descent")

    ended = cli("run", "--eps", 1, "--defense", "vanilla", "--attack", "broken", "--out", "unused")
    assert (ended.status, ended.out, ended.err) == (1, "", f"bestattack: {reason}\n")


def test_a_local_file_adds_attacks_defenses_and_data_sets(tmp_path: Path, cli: Cli) -> None:
    path = _file(tmp_path / "mine.py", PLUGIN + TABLES)
    for kind, name, about in (
        ("attacks", "mine", "An attack of mine."),
        ("defenses", "wall", "A defense of mine."),
        ("datasets", "photos", "A data set of mine."),
    ):
        ended = cli("list", kind, "--plugin", path)
        assert (ended.status, ended.err) == (0, "")
        assert _listed(ended.out)[name] == f"{about} ({path})"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("p.py", "raise ValueError('two\\nlines')", "plugin {} fails: ValueError: two lines"),
        ("p.py", "def (", "plugin {} fails: SyntaxError: invalid syntax (p.py, line 1)"),
        (
            "p.py",
            "attacks = {}",
            "plugin {} adds nothing: define ATTACKS, DEFENSES or DATASETS in it",
        ),
        (
            "p.py",
            "ATTACKS = ['mine']",
            "plugin {}: ATTACKS must be a dictionary from names to entries",
        ),
        ("p.txt", "", "plugin {} is not a Python file: its name must end in .py"),
        ("p.py", None, "plugin {} is not a file"),
    ],
)
def test_a_local_file_that_cannot_be_used_gets_one_line(
    tmp_path: Path, cli: Cli, name: str, text: str | None, line: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    ended = cli("list", "attacks", "--plugin", path)
    assert (ended.status, ended.out, ended.err) == (1, "", f"bestattack: {line.format(path)}\n")


def test_two_local_files_of_one_name_keep_their_own_source(tmp_path: Path) -> None:
    texts = [PLUGIN + f"ATTACKS = {{'{name}': Mine}}\n" for name in ("one", "two")]
    for number, text in enumerate(texts):
        load_plugin(_file(tmp_path / str(number) / "same.py", text))
    first = identify_attack(ATTACKS.get("one")(), {})

    changed = _file(tmp_path / "0" / "same.py", texts[0] + "# changed\n")
    # What runs is the file as it was, until it is loaded again.
    assert identify_attack(ATTACKS.get("one")(), {}) == first
    load_plugin(changed)
    assert identify_attack(ATTACKS.get("one")(), {})["code"] != first["code"]


PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "bestattack-example"
version = "1.0"

[tool.setuptools]
py-modules = ["bestattack_example"]

[project.entry-points."bestattack.attacks"]
mine = "bestattack_example:Mine"
broken = "bestattack_example:Missing"

[project.entry-points."bestattack.defenses"]
wall = "bestattack_example:Wall"

[project.entry-points."bestattack.datasets"]
photos = "bestattack_example:photos"
"""


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip is not installed")
def test_an_installed_package_is_listed_and_run(tmp_path: Path) -> None:
    _file(tmp_path / "source" / "pyproject.toml", PYPROJECT)
    _file(tmp_path / "source" / "bestattack_example.py", PLUGIN)
    _call(
        {},
        *("pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"),
        *("--no-build-isolation", "--target", tmp_path / "site", tmp_path / "source"),
    )
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}

    listed = _call(path, "bestattack", "list", "attacks")
    lines = _listed(listed.stdout)
    assert lines["mine"] == "An attack of mine. (package bestattack-example)"
    assert lines["broken"] == "does not load (package bestattack-example)"
    assert listed.stderr.startswith(
        "warning: attack 'broken' from package bestattack-example does not load: AttributeError"
    )

    folder = tmp_path / "run"
    ran = _call(
        path,
        *("bestattack", "run", "--quiet", "--data", "photos", "--samples", 16, "--eps", 0.5),
        *("--defense", "wall/epochs=1", "--attack", "mine/steps=2", "--out", folder, "--wide"),
    )
    header = [word.strip() for word in ran.stdout.splitlines()[1].split("|")]
    assert header[1:4] == ["defense", "natural", "mine/steps=2"]
    said = "digits test images (stratified by class, seed 0), L2 eps 0.5"
    assert said in (folder / "table.md").read_text()


def _call(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended


@pytest.mark.parametrize(
    ("library", "line"),
    [("foolbox", "foolbox:DDNAttack"), ("torchattacks", "torchattacks:FAB")],
)
def test_the_attacks_of_a_library_are_listed(library: str, line: str, cli: Cli) -> None:
    assert line in _listed(cli("list", library).out)
