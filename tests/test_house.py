"""The layout of the code, read off its imports: rooms, their direction, and their size."""

import ast
import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each package may import from itself and from those after it.
PACKAGES = ("leaderboard", "benchmark", "defenses", "attacks")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
MOST_FILES, MOST_LINES = 12, 60


def _imported(name: str) -> Iterator[str]:
    """The modules of ours that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            # A name that is imported from a package may be a module of it.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for imported in names:
            parts = imported.split(".")
            if parts[0] in PACKAGES:
                found = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
                yield next(m for m in found if m in MODULES or f"{m}.__init__" in MODULES)


def _module(name: str) -> str:
    """A package's own code is in its __init__."""
    return name if name in MODULES else f"{name}.__init__"


def _room(module: str) -> str:
    """The folder of a module; a module that lies in a package's own folder is its own room."""
    package, *folders, _ = module.split(".")
    return f"{package}.{folders[0]}" if folders else module


IMPORTS = {name: {_module(found) for found in _imported(name)} - {name} for name in MODULES}


def _cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle of a graph, empty where there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if cycle := visit(other, [*path, node]):
                return cycle
        done.add(node)
        return []

    return next((cycle for node in sorted(graph) if (cycle := visit(node, []))), [])


def test_packages_import_in_one_direction() -> None:
    against = [
        (name, other)
        for name, others in IMPORTS.items()
        for other in others
        if PACKAGES.index(other.split(".")[0]) < PACKAGES.index(name.split(".")[0])
    ]
    assert against == []


def test_no_module_imports_itself_through_others() -> None:
    assert _cycle(IMPORTS) == []


def test_no_room_imports_itself_through_others() -> None:
    rooms = defaultdict(set)
    for name, others in IMPORTS.items():
        if name.count(".") > 1 or not name.endswith("__init__"):
            rooms[_room(name)] |= {_room(other) for other in others} - {_room(name)}
    # The face of a package shows what is in its rooms.
    faces = {f"{package}.__init__" for package in PACKAGES}
    assert _cycle({room: others - faces for room, others in rooms.items()}) == []


def test_no_folder_holds_two_things() -> None:
    counts = {
        str(folder.relative_to(ROOT)): len(list(folder.glob("*.py")))
        for folder in {path.parent for path in MODULES.values()}
    }
    assert {folder: n for folder, n in counts.items() if n > MOST_FILES} == {}


def test_a_file_is_found_by_its_name_alone() -> None:
    stems = sorted((path.stem, name) for name, path in MODULES.items() if path.stem != "__init__")
    twins = [
        [name for _, name in group]
        for _, same in itertools.groupby(stems, key=lambda pair: pair[0])
        if len(group := list(same)) > 1
    ]
    assert twins == []


@pytest.mark.parametrize("package", [*PACKAGES, "bestattack"])
def test_functions_fit_on_a_screen(package: str) -> None:
    files = {name: path for name, path in MODULES.items() if name.startswith(f"{package}.")}
    files = files or {package: ROOT / f"{package}.py"}
    long = [
        f"{name}:{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for name, path in files.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MOST_LINES
    ]
    assert long == []
