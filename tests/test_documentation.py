"""The guide says what is true: its examples run, and its commands, specs, names and links exist."""

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from torch import nn
from typer.main import get_command

from attacks.working import due
from benchmark.cli.main import Kind
from benchmark.data.sets import load_dataset
from benchmark.data.sources.kinds import SOURCES
from benchmark.data.variants import VARIANTS
from benchmark.report.flags import FLAGS
from benchmark.spec.components import SAVED, configure, read_component
from benchmark.spec.learned_suite import LEARNED
from benchmark.spec.lineup import choose
from benchmark.spec.registry import ATTACKS, DATASETS, DEFENSES, SUITES
from benchmark.spec.run_spec import RunSpec, make_spec, make_threat
from benchmark.spec.source_names import is_source, read_source
from benchmark.studies.sweep.sweep_runs import check_point
from benchmark.studies.sweep.sweep_spec import Measure, Reported, make_sweep
from defenses import ARCHITECTURES
from defenses.recipes.methods import METHODS
from defenses.recipes.schedules import SCHEDULES
from leaderboard.cli import app
from tests.conftest import Cli

ROOT = Path(__file__).parents[1]
GUIDE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = ("attacks", "defenses", "benchmark", "leaderboard")

# The mark of an example that is a plugin, with what it is run with.
PLUGIN = "plugin: "
# Files of the reader's that commands name.
READERS_OWN = {"spec.yaml", "mine.yaml", "robustness.yaml", "my-study.yaml", "about.yaml"}

_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Fence:
    """A block of code on a page, and what a comment before it says."""

    page: Path
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _fences(*languages: str) -> list[Fence]:
    found = []
    for page in GUIDE:
        text = page.read_text()
        for match in _FENCE.finditer(text):
            if match["language"] in languages:
                line = text.count("\n", 0, match.start("text"))
                mark = match["mark"] or ""
                found.append(Fence(page, line, match["language"], match["text"], mark))
    return found


PYTHON = _fences("python")
PLUGINS = [fence for fence in PYTHON if fence.mark.startswith(PLUGIN)]


def test_every_block_is_of_a_language_that_is_checked() -> None:
    opened = {
        language for page in GUIDE for language in re.findall(r"^ *```(.*)", page.read_text(), re.M)
    }
    assert opened == {"", "python", "sh", "yaml", "toml", "text"}


@pytest.mark.parametrize("fence", PLUGINS, ids=str)
def test_plugin_examples_run(fence: Fence, tmp_path: Path, cli: Cli) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(fence.text)
    common = ["--eps", "0.5", "--samples", "20", "--attack", "pgd/steps=2"]
    arguments = shlex.split(fence.mark.removeprefix(PLUGIN))
    ended = cli("run", *common, *arguments, "--plugin", plugin, "--out", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert "best-attack" in ended.out
    # What the guide says of its example.
    assert ("zero-gradient" in ended.out) == ("Quantised" in fence.text)
    assert cli("verify", tmp_path / "run").status == 0


def test_the_plugin_of_the_readme_is_short_and_that_of_the_guide() -> None:
    short, *rest = (fence for fence in PLUGINS if "Quantised" in fence.text)
    assert short.page.name == "README.md"
    assert len([line for line in short.text.splitlines() if line.strip()]) <= 20
    assert [fence.text for fence in rest] == [short.text]


def test_the_readme_is_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize(
    "page", sorted({f.page for f in PYTHON if f not in PLUGINS}), ids=lambda page: page.name
)
def test_python_examples_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of a page in turn, where `model`, `other_model`, `x` and `y` are what it says."""
    monkeypatch.chdir(tmp_path)
    test = load_dataset("digits").test
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    names = {"model": network, "other_model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}
    names |= {"x": test.x[:20], "y": test.y[:20]}
    torch.manual_seed(0)
    for fence in PYTHON:
        if fence.page == page and fence not in PLUGINS:
            exec(compile(fence.text, str(fence), "exec"), names)
    assert not any(tmp_path.iterdir())


def _each_command() -> Iterator[Any]:
    for fence in _fences("sh"):
        for line in fence.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield pytest.param(words, id=f"{fence}:{' '.join(words[:4])}")


@pytest.mark.parametrize("words", list(_each_command()))
def test_commands_exist_with_their_options_and_names(words: list[str]) -> None:
    program, *words = words
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif program != "export":
        assert program == "bestattack"
        _check_names(_parsed(words))


def _parsed(words: list[str]) -> dict[str, Any]:
    """What a command line gives to the function behind it; raises a usage error as typer does."""
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    params: dict[str, Any] = command.make_context(command.name, words).params
    return params


def _check_names(params: dict[str, Any]) -> None:
    if params.get("onnx"):  # files that are the reader's own
        return
    for spec in [params.get("spec"), *(params.get("specs") or [])]:
        # A ready study goes by its name.
        if spec is not None and Path(spec).suffix and Path(spec).parts[0] != "runs":
            assert Path(spec).name in READERS_OWN or (ROOT / spec).is_file(), spec
    if params.get("plugin") or not {"out", "data_root"} <= set(params):
        return
    defenses = params.get("defense") or []
    for name in [defenses] if isinstance(defenses, str) else defenses:
        # Rows of a run go by their labels.
        if not name.startswith(SAVED) and "folder" not in params:
            configure(DEFENSES, read_component(name, "the defense"))
    attacks = [read_component(name, "an attack") for name in params.get("attack") or []]
    threat = make_threat(params.get("norm") or "l2", params.get("eps") or 1.0)
    suite = params.get("suite") or ""
    choose(None if suite.startswith(LEARNED) else suite or None, attacks, threat)
    data = params.get("data")
    if isinstance(data, str) and is_source(data):
        # The file is the reader's own, but not its kind and what is asked of it.
        parts = read_source(data)
        known = {*SOURCES[parts.kind].keys, *VARIANTS}
        assert {word.partition("=")[0] for word in parts.words} <= known
    elif isinstance(data, str):
        load_dataset(data)


@pytest.mark.parametrize("fence", _fences("yaml"), ids=str)
def test_specs_are_valid(fence: Fence) -> None:
    values = yaml.safe_load(fence.text)
    if "steps" in values:  # a workflow
        for step in values["steps"]:
            program, *words = shlex.split(step.get("run", "make"))
            if program == "bestattack":
                _check_names(_parsed(words))
    elif "over" in values:
        for spec in make_sweep(values).points().values():
            check_point(spec, None)
    elif "reported" in values:
        Reported.model_validate(values["reported"])
    elif set(values) <= set(RunSpec.model_fields):
        # Parts of a spec, where the others do not matter.
        needed = {"eps": 1.0, "defenses": ["vanilla"], "suite": "quick"}
        spec = make_spec(needed | values)
        for defense in spec.defenses:
            configure(DEFENSES, defense)
        choose(spec.suite, spec.attacks, spec.threat, {one.label for one in spec.defenses})
    else:  # lines on rows, for a submission
        assert all(isinstance(line, str) for line in values.values())


@pytest.mark.parametrize("fence", _fences("toml"), ids=str)
def test_entry_points_are_of_groups_that_are_read(fence: Fence) -> None:
    groups = tomllib.loads(fence.text)["project"]["entry-points"]
    assert set(groups) <= {registry.group for registry in (ATTACKS, DEFENSES, DATASETS)}


@pytest.mark.parametrize("page", [*GUIDE, ROOT / "leaderboard" / "README.md"], ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text())
    for link in _LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target.read_text()), link
        # The site has the guide alone.
        if page.is_relative_to(ROOT / "docs"):
            assert target.is_relative_to(ROOT / "docs"), link


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", text), re.M)
    words = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {word.strip().replace(" ", "-") for word in words} | set(
        re.findall(r"^::: (\S+)$", text, re.M)
    )


# A dotted name of ours in backticks, without the call or the path behind it.
_NAME = re.compile(rf"`((?:{'|'.join((*PACKAGES, 'bestattack'))})(?:\.\w+)+)(?=[`(\[= ])")


def _names() -> Iterator[Any]:
    for page in [*GUIDE, ROOT / "leaderboard" / "README.md"]:
        for name in sorted(set(_NAME.findall(page.read_text())) - {"bestattack.py"}):
            yield pytest.param(name, id=f"{page.relative_to(ROOT)}:{name}")


def _resolve(name: str) -> Any:
    """What a dotted name leads to: a module as far as there is one, and then attributes."""
    found, *rest = name.split(".")
    thing: Any = importlib.import_module(found)
    for word in rest:
        found = f"{found}.{word}"
        if not hasattr(thing, word):
            importlib.import_module(found)  # which makes a module an attribute of its package
        thing = getattr(thing, word)
    return thing


@pytest.mark.parametrize("name", list(_names()))
def test_dotted_names_exist(name: str) -> None:
    # Entry points of plugins are in groups of our name, which are no modules.
    if name not in {registry.group for registry in (ATTACKS, DEFENSES, DATASETS)}:
        _resolve(name)


def test_a_dotted_name_that_leads_nowhere_is_noticed() -> None:
    assert _resolve("attacks.working.due") is due
    with pytest.raises(ImportError):
        _resolve("attacks.problem.due")
    assert _NAME.findall("`attacks.problem.due(step)`, `attacks.PGD`") == [
        "attacks.problem.due",
        "attacks.PGD",
    ]


def _first_column(page: str, title: str) -> list[str]:
    """What stands as code in the first column of all tables of a page that is titled so."""
    found = []
    for table in re.findall(r"^\|.*(?:\n\|.*)*", (ROOT / "docs" / page).read_text(), re.M):
        head, _, *rows = (row.strip("|").split("|")[0].strip() for row in table.splitlines())
        if head == title:
            found += [code for row in rows for code in re.findall(r"`([^`]*)`", row)]
    return found


def _same(written: list[str], known: Any) -> None:
    assert sorted(written) == sorted(known)


def test_tables_name_all_that_there_is_and_nothing_else() -> None:
    attacks = [name.partition(":")[0] for name in _first_column("attacks.md", "`--attack`")]
    _same(attacks, ATTACKS._builtin)
    _same(_first_column("attacks.md", "`--suite`"), SUITES._builtin)
    _same(_first_column("defenses.md", "`--defense`"), DEFENSES._builtin)
    _same(_first_column("defenses.md", "`arch`"), ARCHITECTURES)
    _same(_first_column("defenses.md", "`schedule`"), SCHEDULES)
    _same(_first_column("data.md", "`--data`"), DATASETS._builtin)
    _same(_first_column("flags.md", "flag"), FLAGS)
    _same(_first_column("evaluating.md", "setting"), RunSpec.model_fields)
    _same(_first_column("studies.md", "measure"), get_args(Measure))
    studies: Any = get_command(app)
    _same(_first_column("studies.md", "study"), studies.commands["study"].commands)
    variants = [name.split("/")[1].split("=")[0] for name in _first_column("data.md", "variant")]
    _same(variants, VARIANTS)


def test_methods_of_adversarial_training_are_named() -> None:
    (named,) = re.findall(r"methods are (.*?);", (ROOT / "docs" / "defenses.md").read_text())
    _same(re.findall("`(.*?)`", named), METHODS)


def test_attacks_and_data_in_tables_can_be_configured() -> None:
    names = _first_column("attacks.md", "write")
    assert len(names) == 8
    components = [read_component(name, "an attack") for name in names]
    choose(None, components, make_threat("l2", 1.0), {"vanilla"})
    for name in _first_column("data.md", "variant"):
        load_dataset(name)


def test_all_that_can_be_listed_is_named() -> None:
    for page in ("README.md", "docs/evaluating.md"):
        text = (ROOT / page).read_text()
        assert all(kind.value in text for kind in Kind)


def test_the_rooms_are_those_that_there_are() -> None:
    rooms = {
        f"{file.parent.relative_to(ROOT)}/"
        for package in PACKAGES
        for file in (ROOT / package).glob("*/*.py")
    }
    assert set(_first_column("inside.md", "room")) - {"attacks/"} == rooms
