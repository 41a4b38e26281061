"""Models given by their code: a class or a function in a file, or in a module that is installed."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from attacks.messages import closest
from defenses.foreign.sources import Asked, Brought


class Python:
    """ "path/to/file.py:Factory" or "package.module:Factory", where Factory(**kwargs) gives an
    nn.Module from images to logits. Its code is run, and may import modules beside the file."""

    # A factory may load weights of its own.
    has_weights = True

    def identity(self, name: str) -> str:
        # The file of code is identified by its content, as `Recipe.code` says.
        return name.rpartition(":")[2]

    def bring(self, name: str, asked: Asked) -> Brought:
        with _beside(name):
            model = _imported(name)(**asked.kwargs)
        if not isinstance(model, nn.Module):
            raise TypeError(f"the factory gives a {type(model).__name__}, not an nn.Module")
        return Brought(model)


def module_name(spec: str) -> str:
    """What sys.modules calls the module of "path/to/file.py:name" or "package.module:name"."""
    source = spec.rpartition(":")[0]
    return f"external:{source}" if source.endswith(".py") else source


@contextmanager
def _beside(spec: str) -> Iterator[None]:
    """While the context lasts, modules in the folder of a file of code can be imported.

    Raises ValueError where the file imports a module from there, and another of that name is
    loaded: Python would give it that one.
    """
    source = Path(spec.rpartition(":")[0]).absolute()
    if source.suffix != ".py" or not source.is_file():
        yield
        return
    text = source.read_text(encoding="utf-8", errors="ignore")
    for name in sorted(set(re.findall(r"^\s*(?:import|from)\s+(\w+)", text, re.MULTILINE))):
        places = (source.with_name(f"{name}.py"), source.with_name(name) / "__init__.py")
        loaded = getattr(sys.modules.get(name), "__file__", None)
        for place in places:
            if place.is_file() and loaded and Path(loaded).resolve() != place.resolve():
                raise ValueError(
                    f"two modules are named {name!r}: {loaded}, which is loaded, and {place}; "
                    "rename one, or run them apart"
                )
    sys.path.insert(0, str(source.parent))
    try:
        yield
    finally:
        sys.path.remove(str(source.parent))


def _imported(spec: str) -> Any:
    """The object that "path/to/file.py:name" or "package.module:name" names. Raises ValueError
    where there is no such file or no such object."""
    source, _, name = spec.rpartition(":")
    alias = module_name(spec)
    if not source.endswith(".py"):
        module = importlib.import_module(alias)
    else:
        if not Path(source).is_file():
            raise ValueError("there is no such file")
        module_spec = importlib.util.spec_from_file_location(alias, source)
        assert module_spec is not None  # because of the .py
        assert module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[alias] = module  # where the file's own dataclasses look
        module_spec.loader.exec_module(module)
    if not hasattr(module, name):
        known = [known for known, value in vars(module).items() if callable(value)]
        close = closest(name, known)
        hint = f": did you mean {close!r}?" if close else ""
        raise ValueError(f"the file has no {name!r}{hint}")
    return getattr(module, name)
