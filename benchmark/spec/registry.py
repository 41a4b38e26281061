"""The registries, which find attacks, defenses, data sets and suites by name.

Built-in entries are "module:attribute" strings, and load when they are first asked for. Installed
packages add entries through the entry point groups `bestattack.attacks`, `bestattack.defenses` and
`bestattack.datasets`. A local file, called a plugin, adds entries through dictionaries named
ATTACKS, DEFENSES and DATASETS.
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
from benchmark.user_code import identify_code
from defenses.recipes.adversarial import TRAINED_BY

# The forms of what follows "HEAD:" in a composed name: the name of another registered attack, or
# the name of an attack in a library.
BASE, NAME = "BASE", "NAME"


class Registry:
    """The entries of one kind, which are found by name and loaded when they are asked for.

    kind, plural  what an entry and several entries are called, in messages and in the names of
                  entry point groups.
    builtin       the built-in entries, by name.
    """

    def __init__(self, kind: str, plural: str, builtin: dict[str, Any]) -> None:
        self.kind = kind
        self.plural = plural
        self._builtin = builtin
        self._local: dict[str, Any] = {}

    @property
    def group(self) -> str:
        """The entry point group through which installed packages add entries."""
        return f"bestattack.{self.plural}"

    def describe(self) -> dict[str, str]:
        """One line about each entry, by its name, with ":BASE" or ":NAME" where that must follow.

        For an entry that does not load, the line says so, and there is a warning.
        """
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
            hint = did_you_mean(name, entries, self._otherwise())
            raise UserError(f"unknown {self.kind} {name!r}: {hint}")
        source, entry = entries[name]
        try:
            return entry.load() if isinstance(entry, EntryPoint) else _load(entry)
        except Exception as error:
            raise UserError(
                f"{self.kind} {name!r} from {source} does not load: {described(error)}"
            ) from error

    def _otherwise(self) -> str:
        """What to do about a name that is like no other."""
        shown = f"'bestattack list {self.plural}' shows all"
        if self.kind == "suite" or self._local:
            return shown
        return f"did you forget --plugin FILE.py? {shown}"

    def is_built_in(self, name: str) -> bool:
        """Whether an entry comes with this program."""
        return name in self._builtin

    def versions(self) -> dict[str, int]:
        """The declared versions of the built-in entries, by name."""
        entries = {name: _load(entry) for name, entry in self._builtin.items()}
        return {
            name: entry.version
            for name, entry in sorted(entries.items())
            if hasattr(entry, "version")
        }

    def name_of(self, cls: type) -> str | None:
        """The name under which a class is registered; None if it is not."""
        for name, (_, entry) in self._entries().items():
            if isinstance(entry, EntryPoint):
                registered = entry.value == f"{cls.__module__}:{cls.__qualname__}"
            elif isinstance(entry, str):
                # Load the entry only if its name allows that it is the class.
                registered = entry.endswith(f":{cls.__name__}") and _load(entry) is cls
            else:
                registered = entry is cls
            if registered:
                return name
        return None

    def add(self, name: str, entry: Any, source: str) -> None:
        """Add one entry of the local file `source`. Raises UserError where its name is taken."""
        taken = self._entries().get(name)
        if taken is not None and taken[0] != source:
            raise UserError(self._clash(name, taken[0], source))
        self._local[name] = (source, entry)

    def _entries(self) -> dict[str, tuple[str, Any]]:
        """All entries by name, each with where it is from, as messages put it."""
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
    """The form of what must follow the name of an entry and a colon.

    It is BASE for a wrapper around another attack, NAME for the attacks of a library, and empty for
    an entry whose name stands by itself.
    """
    if not dataclasses.is_dataclass(entry):
        return ""
    fields = {field.name for field in dataclasses.fields(entry)}
    if "base" in fields:
        return BASE
    return NAME if {"attack", "options"} <= fields else ""


def _load(entry: Any) -> Any:
    """The object of an entry, which may be the text "module:attribute" or the object itself."""
    if not isinstance(entry, str):
        return entry
    module, _, attribute = entry.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _about(entry: Any) -> str:
    """One line about an entry: the opening paragraph of its docstring."""
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
        "ddn": "attacks.searches.ddn:DDN",
        "boundary": "attacks.searches.boundary:Boundary",
        "rays": "attacks.searches.rays:RayS",
        "square": "attacks.searches.square:Square",
        "strong": "attacks.strong.strong:Strong",
        "robin": "attacks.wrappers.robin:RoBinEvaluation",
        "best-arm": "attacks.wrappers.arms:BestArm",
        "top-2": "attacks.wrappers.arms:Top2",
        "softmax": "attacks.wrappers.arms:SoftmaxAttack",
        "highest-arm": "attacks.wrappers.arms:HighestArm",
        "average-gradient": "attacks.wrappers.arms:AverageGradient",
        "softmax-top-2": "attacks.wrappers.arms:SoftmaxTop2",
        "hierarchical": "attacks.wrappers.stages:Hierarchical",
        "targeted": "attacks.wrappers.targeted:Targeted",
        "smoothed": "attacks.wrappers.smoothed:Smoothed",
        "bpda": "attacks.wrappers.smoothed:BPDA",
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
        "lp-robust": "defenses:LPRobust",
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
        "cifar100": "benchmark.data.photographs:cifar100",
        "svhn": "benchmark.data.photographs:svhn",
        "tiny-imagenet": "benchmark.data.photographs:tiny_imagenet",
    },
)
SUITES = Registry("suite", "suites", dict(suites.SUITES))


def describe_library(name: str) -> dict[str, str]:
    """The usable attacks of "foolbox" or "torchattacks": by name, a line with family and norms.

    Raises UserError where the library is not installed.
    """
    adapter = importlib.import_module(f"attacks.libraries.{name}")
    try:
        return {f"{name}:{attack}": about for attack, about in adapter.available().items()}
    except ValueError as error:
        raise UserError(str(error)) from error


@contextmanager
def only_plugins(paths: Sequence[Path]) -> Iterator[None]:
    """Have these plugins alone while the context lasts, without those that were loaded before it.

    Raises UserError as `load_plugin` does.
    """
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
    """Load several plugins, in their order, as `load_plugin` does."""
    for path in paths:
        load_plugin(path)


def load_plugin(path: Path) -> None:
    """Run a local Python file, and add the entries of its ATTACKS, DEFENSES and DATASETS.

    Raises UserError where the file is missing, fails, or adds nothing.
    """
    path = path.resolve()
    if not path.is_file():
        raise UserError(f"plugin {path} is not a file")
    name = f"bestattack_plugin_{path.stem}"
    # Two files with the same name become two modules; a file that is loaded again replaces its own.
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
    identify_code([name])  # before the file can be edited, while models are trained
    adds_entries = False
    for registry in (ATTACKS, DEFENSES, DATASETS):
        table = registry.plural.upper()
        entries = getattr(module, table, {})
        if not isinstance(entries, dict):
            raise UserError(f"plugin {path}: {table} must be a dictionary from names to entries")
        for key, entry in entries.items():
            registry.add(key, entry, str(path))
            adds_entries = True
    if not adds_entries:
        raise UserError(f"plugin {path} adds nothing: define ATTACKS, DEFENSES or DATASETS in it")
