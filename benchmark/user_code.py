"""The identity of the user's own code, on which results of plugins and foreign models depend.

Our code is not part of it, because attacks, recipes and the judge declare versions. Neither is the
standard library, nor torch, whose version is in every key.
"""

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from benchmark.errors import UserError

_OURS = {"attacks", "benchmark", "bestattack", "defenses", "leaderboard"}

# Folders of installed packages, which are told apart by their versions.
_INSTALLED = {"site-packages", "dist-packages"}

# A local module may have the name of one of these, as `profile.py` has, so that the place decides.
_STANDARD = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]

# The source of each module when it was first asked for. An edit during a run does not change the
# code that runs, so it must not change the identity either.
_sources: WeakKeyDictionary[ModuleType, bytes] = WeakKeyDictionary()


def identify_code(modules: Iterable[str]) -> dict[str, Any]:
    """The identity of the code of some modules; empty if all of it is ours.

    files     a hash of the content of the modules' files, and of the local files that they import,
              directly or through others, each with the name that it is imported by.
    packages  the version of each installed package that they import.

    The places of files and the names of `modules` are not in it, so that a folder can be moved.
    Nothing is imported: a module may name others that the run never needs. Modules that code
    imports by names that it computes are not found.

    Raises UserError where two files are at hand for one imported module.
    """
    # Follow the imports, from module to module.
    waiting, seen = [("", name) for name in modules], set[str]()
    files = set[tuple[str, str]]()
    packages: dict[str, str] = {}
    while waiting:
        written, name = waiting.pop()
        package = name.partition(".")[0]
        if package in _OURS or package == "torch":
            continue
        # The modules of an installed package are not looked at one by one.
        place = _place_of(name if name in sys.modules else package)
        if place is None:
            continue
        if _is_installed(place):
            packages[package] = _version_of(package)
            continue
        if any(map(place.is_relative_to, _STANDARD)):
            continue
        path = _place_of(name)
        if path is None or not path.is_file():
            continue
        if written == package:
            _refuse_another(name, path)
        source = _source_of(name, path)
        files.add((written, sha256(source).hexdigest()))
        if name not in seen:
            seen.add(name)
            package_of = name if path.name == "__init__.py" else name.rpartition(".")[0]
            waiting += _imports(source, package_of)
    if not files and not packages:
        return {}
    digest = sha256(repr(sorted(files)).encode()).hexdigest()[:16]
    return {"files": digest, "packages": dict(sorted(packages.items()))}


def _place_of(name: str) -> Path | None:
    """The file of a module, loaded or not, or the folder of a package without a file; None if the
    module does not exist or is built in."""
    module = sys.modules.get(name)
    if module is not None:
        places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    else:
        spec = _spec_of(name)
        if spec is None:
            return None
        places = [spec.origin if spec.has_location else None]
        places += spec.submodule_search_locations or ()
    return next((Path(place) for place in places if place), None)


def _spec_of(name: str) -> ModuleSpec | None:
    """Where a module that is not loaded would come from, found without importing its package."""
    parent = name.rpartition(".")[0]
    if not parent:
        return find_spec(name)
    folders = _folders_of(parent)
    return None if folders is None else PathFinder.find_spec(name, folders)


def _folders_of(package: str) -> Sequence[str] | None:
    """The folders of a package's modules; None if it is none."""
    module = sys.modules.get(package)
    if module is not None:
        folders = getattr(module, "__path__", None)
        return None if folders is None else list(folders)
    spec = _spec_of(package)
    return None if spec is None else spec.submodule_search_locations


def _refuse_another(name: str, path: Path) -> None:
    """Raises UserError where a module is loaded, and would come from another file if it were not.

    So it is where two folders hold a module of one name: who imports it second gets the first.
    """
    spec = PathFinder.find_spec(name) if name in sys.modules else None
    if spec and spec.has_location and spec.origin and Path(spec.origin).resolve() != path.resolve():
        raise UserError(
            f"two modules are named {name!r}: {path}, which is loaded, and {spec.origin}; rename "
            "one, or run them apart"
        )


def _is_installed(path: Path) -> bool:
    return not _INSTALLED.isdisjoint(path.parts)


@cache
def _version_of(package: str) -> str:
    """The names and versions of the distributions that provide an installed package."""
    distributions = packages_distributions().get(package, ())
    return ", ".join(f"{name} {version(name)}" for name in sorted(set(distributions)))


def _source_of(name: str, path: Path) -> bytes:
    """The source of a module as it was when it was first asked for."""
    module = sys.modules.get(name)
    if module is None:
        return _read(path)
    if module not in _sources:
        _sources[module] = _read(path)
    return _sources[module]


def _read(path: Path) -> bytes:
    """The content of a file; empty if it cannot be read, as in a zip archive."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _imports(source: bytes, package: str) -> Iterator[tuple[str, str]]:
    """The modules that the source of a module in a package imports, and the packages that contain
    them: each as it is written there, with its full name."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a compiled extension
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for imported in node.names:
                yield from _with_parents("", imported.name)
        elif isinstance(node, ast.ImportFrom):
            prefix = ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                prefix = ".".join(parents)
                yield "." * node.level, prefix
            # A name that is imported from a package may be one of its modules.
            for imported in node.names:
                base = [node.module] if node.module else []
                yield from _with_parents(prefix, ".".join([*base, imported.name]))


def _with_parents(prefix: str, written: str) -> Iterator[tuple[str, str]]:
    """A module's name as it is written after a prefix, and its full name, after those of the
    packages that contain it."""
    words = written.split(".")
    for count in range(1, len(words) + 1):
        name = ".".join(words[:count])
        yield name, f"{prefix}.{name}" if prefix else name
