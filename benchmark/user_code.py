"""The identity of the user's own code, on which results of plugins and foreign models depend.

Our code is not part of it, because attacks, recipes and the judge declare versions. Neither is the
standard library, nor torch, whose version is in every key.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

_OURS = {"attacks", "benchmark", "bestattack", "defenses", "leaderboard"}
_KNOWN = _OURS | {"torch"} | sys.stdlib_module_names

# Folders of installed packages, which are told apart by their versions.
_INSTALLED = {"site-packages", "dist-packages"}

# The source of each module when it was first asked for. An edit during a run does not change the
# code that runs, so it must not change the identity either.
_sources: WeakKeyDictionary[ModuleType, bytes] = WeakKeyDictionary()


def identify_code(modules: Iterable[str]) -> dict[str, Any]:
    """The identity of the code of some modules; empty if all of it is ours.

    files     a hash of the content of the modules' files, and of the local files that they import,
              directly or through others.
    packages  the version of each installed package that they import.

    The names and places of files are not in it, so that a folder can be moved.
    """
    # Follow the imports, from module to module.
    waiting, seen = list(modules), set[str]()
    files: set[str] = set()
    packages: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        package = name.partition(".")[0]
        if name in seen or package in _KNOWN:
            continue
        seen.add(name)
        path = _file_of(name)
        if path is None:
            continue
        if _is_installed(path):
            packages[package] = _version_of(package)
            continue
        source = _source_of(name, path)
        files.add(sha256(source).hexdigest())
        waiting += _imports(name, source)
    if not files and not packages:
        return {}
    digest = sha256("".join(sorted(files)).encode()).hexdigest()[:16]
    return {"files": digest, "packages": dict(sorted(packages.items()))}


def _file_of(name: str) -> Path | None:
    """The file of a module, loaded or not; None if the module does not exist or has no file."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None and name not in sys.modules:
        # find_spec raises if a parent is missing or is not a package.
        with suppress(ImportError, ValueError, AttributeError):
            spec = importlib.util.find_spec(name)
            file = spec.origin if spec is not None and spec.has_location else None
    return Path(file) if file else None


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
    """The content of a file; of one that cannot be read, as in a zip archive, its name alone."""
    try:
        return path.read_bytes()
    except OSError:
        return str(path).encode()


def _imports(name: str, source: bytes) -> Iterator[str]:
    """The modules that the source of a module imports, and the packages that contain them."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a compiled extension
        return
    module = sys.modules.get(name)
    package = str(getattr(module, "__package__", None) or name.rpartition(".")[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for imported in node.names:
                yield from _with_parents(imported.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield from _with_parents(base)
            # A name that is imported from a package may be one of its modules.
            yield from (f"{base}.{imported.name}" for imported in node.names)


def _with_parents(name: str) -> Iterator[str]:
    """A module's name, after the names of the packages that contain it."""
    words = name.split(".")
    return (".".join(words[:count]) for count in range(1, len(words) + 1))
