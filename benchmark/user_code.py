"""The user's own source code: what a plugin's or a foreign model's results depend on.

Ours is not in it: attacks, recipes and the judge declare versions. The standard library is not
either, nor torch, whose version is in every key.
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

# Each module's source as it was when first asked for: an edit while a run goes on does not change
# the code that runs.
_sources: WeakKeyDictionary[ModuleType, bytes] = WeakKeyDictionary()


def identify_code(modules: Iterable[str]) -> dict[str, Any]:
    """What tells the code of some modules from any other, empty where all of it is ours.

    `files` is a hash of the content of the modules' files and of the local files that they import,
    directly or not. `packages` has the version of each installed package that these import. Names
    and places of files are not in it, so that a folder can be moved.
    """
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
    """The file of a module, loaded or not; None where there is no such module or it has no file."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None and name not in sys.modules:
        # A parent that is missing or is no package makes find_spec raise.
        with suppress(ImportError, ValueError, AttributeError):
            spec = importlib.util.find_spec(name)
            file = spec.origin if spec is not None and spec.has_location else None
    return Path(file) if file else None


def _is_installed(path: Path) -> bool:
    return not _INSTALLED.isdisjoint(path.parts)


@cache
def _version_of(package: str) -> str:
    distributions = packages_distributions().get(package, ())
    return ", ".join(f"{name} {version(name)}" for name in sorted(set(distributions)))


def _source_of(name: str, path: Path) -> bytes:
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
    """The modules that a module's source imports, anywhere in it, and the packages around them."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a compiled extension
        return
    module = sys.modules.get(name)
    around = str(getattr(module, "__package__", None) or name.rpartition(".")[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for imported in node.names:
                yield from _with_parents(imported.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = around.split(".")[: len(around.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield from _with_parents(base)
            # What is imported from a package may be a module of it.
            yield from (f"{base}.{imported.name}" for imported in node.names)


def _with_parents(name: str) -> Iterator[str]:
    words = name.split(".")
    return (".".join(words[:count]) for count in range(1, len(words) + 1))
