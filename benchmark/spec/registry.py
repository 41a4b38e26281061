"""Attacks, defenses, data sets and suites by name: built in, installed, or from a local file.

Built-in entries are "module:attribute" strings and load when first asked for. Installed packages
add theirs through the entry point groups `bestattack.attacks`, `bestattack.defenses` and
`bestattack.datasets`; a local file through dictionaries named ATTACKS, DEFENSES and DATASETS.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from attacks.messages import described
from benchmark.errors import UserError, did_you_mean
from benchmark.spec import suites
from defenses.recipes.adversarial import TRAINED_BY

# What follows "HEAD:" in a composed name: a registered base, or the name of a foreign attack.
BASE, NAME = "BASE", "NAME"


class Registry:
    """Entries of one kind, found by name and loaded lazily."""

    def __init__(self, kind: str, plural: str, builtin: dict[str, Any]) -> None:
        self.kind = kind
        self.plural = plural
        self._builtin = builtin
        self._local: dict[str, Any] = {}

    @property
    def group(self) -> str:
        """The entry point group that installed packages add to."""
        return f"bestattack.{self.plural}"

    def describe(self) -> dict[str, str]:
        """Every name, with what is to follow it, and one line about it; an entry that does not load
        warns and says so."""
        lines = {}
        for name, (source, _) in sorted(self._entries().items()):
            try:
                entry = self.get(name)
                about, form = _about(entry), rest_of(entry)
            except UserError as error:
                warnings.warn(str(error), stacklevel=2)
                about, form = "does not load", ""
            shown = f"{name}:{form}" if form else name
            lines[shown] = about if source == "built in" else f"{about} ({source})"
        return lines

    def get(self, name: str) -> Any:
        """The object behind a name. Raises UserError where it is unknown or does not load."""
        entries = self._entries()
        if name not in entries:
            hint = did_you_mean(name, entries, f"'bestattack list {self.plural}' shows all")
            raise UserError(f"unknown {self.kind} {name!r}: {hint}")
        source, entry = entries[name]
        try:
            return entry.load() if isinstance(entry, EntryPoint) else _load(entry)
        except Exception as error:
            raise UserError(
                f"{self.kind} {name!r} from {source} does not load: {described(error)}"
            ) from error

    def name_of(self, cls: type) -> str | None:
        """The name that a class is registered under; None where it has none."""
        for name, (_, entry) in self._entries().items():
            if isinstance(entry, EntryPoint):
                registered = entry.value == f"{cls.__module__}:{cls.__qualname__}"
            elif isinstance(entry, str):
                # Only what ends in the name of the class is worth loading.
                registered = entry.endswith(f":{cls.__name__}") and _load(entry) is cls
            else:
                registered = entry is cls
            if registered:
                return name
        return None

    def add(self, name: str, entry: Any, source: str) -> None:
        """Add one entry of a local file. Raises UserError where the name is taken."""
        taken = self._entries().get(name)
        if taken is not None and taken[0] != source:
            raise UserError(self._clash(name, taken[0], source))
        self._local[name] = (source, entry)

    def _entries(self) -> dict[str, tuple[str, Any]]:
        entries: dict[str, tuple[str, Any]] = {
            name: ("built in", entry) for name, entry in self._builtin.items()
        }
        for point in entry_points(group=self.group):
            source = f"package {point.dist.name}" if point.dist else point.value
            if point.name in entries:
                raise UserError(self._clash(point.name, entries[point.name][0], source))
            entries[point.name] = (source, point)
        return entries | self._local

    def _clash(self, name: str, first: str, second: str) -> str:
        return f"{self.kind} {name!r} is {first} and also from {second}: rename or remove one"


def rest_of(entry: Any) -> str:
    """What must follow an entry's name after a colon: BASE where it wraps a base, NAME where it is
    a library's attacks, nothing otherwise."""
    if not dataclasses.is_dataclass(entry):
        return ""
    fields = {field.name for field in dataclasses.fields(entry)}
    if "base" in fields:
        return BASE
    return NAME if {"attack", "options"} <= fields else ""


def _load(entry: Any) -> Any:
    if not isinstance(entry, str):
        return entry
    module, _, attribute = entry.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _about(entry: Any) -> str:
    if isinstance(entry, suites.Suite):
        return str(entry)
    return (inspect.getdoc(entry) or "").partition("\n\n")[0].replace("\n", " ")


ATTACKS = Registry(
    "attack",
    "attacks",
    {
        "pgd": "attacks.searches.pgd:PGD",
        "apgd": "attacks.searches.apgd:APGD",
        "cw": "attacks.searches.carlini_wagner:CarliniWagner",
        "boundary": "attacks.searches.boundary:Boundary",
        "square": "attacks.searches.square:Square",
        "strong": "attacks.searches.strong:Strong",
        "robin": "attacks.wrappers.robin:RoBinEvaluation",
        "best-arm": "attacks.wrappers.arms:BestArm",
        "top-2": "attacks.wrappers.arms:Top2",
        "softmax": "attacks.wrappers.arms:SoftmaxAttack",
        "highest-arm": "attacks.wrappers.arms:HighestArm",
        "average-gradient": "attacks.wrappers.arms:AverageGradient",
        "softmax-top-2": "attacks.wrappers.arms:SoftmaxTop2",
        "hierarchical": "attacks.wrappers.stages:Hierarchical",
        "targeted": "attacks.wrappers.targeted:Targeted",
        "transfer": "attacks.wrappers.transfer:Transfer",
        "seeded": "attacks.wrappers.transfer:Seeded",
        "foolbox": "attacks.libraries.foolbox:Foolbox",
        "torchattacks": "attacks.libraries.torchattacks:TorchAttacks",
    },
)
DEFENSES = Registry(
    "defense",
    "defenses",
    {
        "vanilla": "defenses:Vanilla",
        **TRAINED_BY,
        "robin": "defenses:RoBin",
        "one-vs-one": "defenses:OneVsOne",
        "hierarchical": "defenses:TwoStage",
        "ensemble": "defenses:Ensemble",
        "nbr": "defenses:NBR",
        "fractal": "defenses:Fractal",
        "best-fractal": "defenses:BestFractal",
        "gnb": "defenses:GNB",
        "mrf": "defenses:MRF",
        "belief": "defenses:Belief",
        "external": "defenses:External",
        "l2nnn": "defenses:L2NNN",
        "hybrid": "defenses:Hybrid",
    },
)
DATASETS = Registry(
    "data set",
    "datasets",
    {
        "digits": "benchmark.data.sets:digits",
        "mnist": "benchmark.data.sets:mnist",
        "fashion-mnist": "benchmark.data.sets:fashion_mnist",
        "cifar10": "benchmark.data.sets:cifar10",
    },
)
SUITES = Registry("suite", "suites", dict(suites.SUITES))


def describe_library(name: str) -> dict[str, str]:
    """Every attack of "foolbox" or "torchattacks" that can be used, with its family and norms.

    Raises UserError where the library is not installed.
    """
    adapter = importlib.import_module(f"attacks.libraries.{name}")
    try:
        return {f"{name}:{attack}": about for attack, about in adapter.available().items()}
    except ValueError as error:
        raise UserError(str(error)) from error


@contextmanager
def only_plugins(paths: Sequence[Path]) -> Iterator[None]:
    """These local files alone in place of those that were loaded before, for a while. Raises
    UserError as `load_plugin` does."""
    before = {registry: registry._local for registry in (ATTACKS, DEFENSES, DATASETS)}
    try:
        for registry in before:
            registry._local = {}
        load_plugins(paths)
        yield
    finally:
        for registry, local in before.items():
            registry._local = local


def load_plugins(paths: Iterable[Path]) -> None:
    """`load_plugin` for each of some files, in their order."""
    for path in paths:
        load_plugin(path)


def load_plugin(path: Path) -> None:
    """Run a local Python file and add what its ATTACKS, DEFENSES and DATASETS name.

    Raises UserError where the file is missing, fails, or adds nothing.
    """
    path = path.resolve()
    if not path.is_file():
        raise UserError(f"plugin {path} is not a file")
    name = f"bestattack_plugin_{path.stem}"
    # Two files of one name are two modules; that of the same file is replaced.
    while getattr(sys.modules.get(name), "__file__", str(path)) != str(path):
        name += "_"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"plugin {path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"plugin {path} fails: {described(error)}") from error
    found = False
    for registry in (ATTACKS, DEFENSES, DATASETS):
        table = registry.plural.upper()
        entries = getattr(module, table, {})
        if not isinstance(entries, dict):
            raise UserError(f"plugin {path}: {table} must be a dictionary from names to entries")
        for key, entry in entries.items():
            registry.add(key, entry, str(path))
            found = True
    if not found:
        raise UserError(f"plugin {path} adds nothing: define ATTACKS, DEFENSES or DATASETS in it")
