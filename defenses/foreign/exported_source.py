"""Programs that torch itself wrote: by `torch.export`, and TorchScript."""

import logging
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from defenses.foreign.adapting.in_parts import InParts, exported_size, said
from defenses.foreign.sources import Asked, Brought, OfFile

# Files in an archive of TorchScript, or of torch.export as later and earlier versions of torch
# write it.
_OF_PROGRAMS = {"constants.pkl", "archive_format", "serialized_exported_program.json"}

# What readers of a table must know of TorchScript.
_UNSEEN = "its operations cannot be seen, so that attacks do not smooth them"


class Exported(OfFile):
    """A .pt2 file of `torch.export.save`. Nothing in it but tensors is unpickled."""

    def bring(self, name: str, asked: Asked) -> Brought:
        del asked
        _check(name)
        with _tensors_alone(), warnings.catch_warnings():
            # What of torch's own will change, which is no news to those who have a file.
            warnings.simplefilter("ignore")
            module = torch.export.load(name).module()
        size = exported_size(module)
        if size is None:
            return Brought(Program(module))
        return Brought(InParts(Program(module), size), note=said(size))


class Program(nn.Module):
    """An exported program, which has no modes: torch refuses to change that of its module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        for part in module.modules():
            part.training = False

    def train(self, mode: bool = True) -> Self:
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


class Script(OfFile):
    """A TorchScript file of `torch.jit.save`."""

    def bring(self, name: str, asked: Asked) -> Brought:
        del asked
        _check(name)
        with warnings.catch_warnings():
            # TorchScript is no longer developed: that is no news to those who have a file of it.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            return Brought(torch.jit.load(name, map_location="cpu"), note=_UNSEEN)


def _check(name: str) -> None:
    """Raises ValueError where a file is none that torch wrote, or holds weights alone."""
    if not Path(name).is_file():
        raise ValueError("there is no such file")
    if not zipfile.is_zipfile(name):
        raise ValueError("is no whole file of torch.export.save or torch.jit.save")
    with zipfile.ZipFile(name) as archive:
        inside = {Path(file).name for file in archive.namelist()}
    if inside.isdisjoint(_OF_PROGRAMS):
        raise ValueError(
            f"holds weights, not a program: name the network, as in python=FILE.py:NETWORK, and "
            f"give weights={name}"
        )


@contextmanager
def _tensors_alone() -> Iterator[None]:
    """A context in which `torch.load` unpickles tensors alone: `torch.export.load` falls back to
    unpickling anything, which can run code."""
    load, level = torch.load, logging.root.manager.disable

    def safely(*args: Any, **options: Any) -> Any:
        return load(*args, **options | {"weights_only": True})

    torch.load = safely
    logging.disable()  # torch prints its traceback for a damaged file
    try:
        yield
    finally:
        torch.load = load
        logging.disable(level)
