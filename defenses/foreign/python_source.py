"""Models given by their code: a class or a function in a file, or in a module that is installed."""

import importlib
import importlib.util
import sys
from typing import Any

from torch import nn

from defenses.foreign.sources import Asked, Brought


class Python:
    """ "path/to/file.py:Factory" or "package.module:Factory", where Factory(**kwargs) gives an
    nn.Module from images to logits. Its code is run."""

    # A factory may load weights of its own.
    has_weights = True

    def identity(self, name: str) -> str:
        # The file of code is identified by its content, as `Recipe.code` says.
        return name.rpartition(":")[2]

    def bring(self, name: str, asked: Asked) -> Brought:
        model = import_factory(name)(**asked.kwargs)
        if not isinstance(model, nn.Module):
            raise TypeError(f"the factory gives a {type(model).__name__}, not an nn.Module")
        return Brought(model)


def module_name(spec: str) -> str:
    """What sys.modules calls the module of "path/to/file.py:name" or "package.module:name"."""
    source = spec.rpartition(":")[0]
    return f"external:{source}" if source.endswith(".py") else source


def import_factory(spec: str) -> Any:
    """Import the object that "path/to/file.py:name" or "package.module:name" names."""
    source, _, name = spec.rpartition(":")
    alias = module_name(spec)
    if not source.endswith(".py"):
        return getattr(importlib.import_module(alias), name)
    module_spec = importlib.util.spec_from_file_location(alias, source)
    assert module_spec is not None  # because of the .py
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[alias] = module  # where the file's own dataclasses look
    module_spec.loader.exec_module(module)
    return getattr(module, name)
