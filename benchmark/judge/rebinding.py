"""What a deep copy leaves pointing at the original: functions that hold parts of a model.

Python copies no functions. So lambdas among the attributes of a copied model, hooks, decorated and
bound methods still reach the original's modules, and would measure or change these.
"""

import copy
import functools
import random
import types
import weakref
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What a function may hold and change.
_COPIED = (
    nn.Module, Tensor, list, dict, set, deque, bytearray, np.ndarray, torch.Generator,
    np.random.Generator, np.random.RandomState, random.Random,
)  # fmt: skip

# The content of a cell that has none.
_EMPTY = object()

# The attribute of a copy for `held_by`.
_HELD = "_modules_of_functions"


def rebind(duplicate: nn.Module, memo: dict[int, Any]) -> None:
    """Make all that the modules of a copy hold reach the copy instead of the original.

    memo  of the deep copy: by the id of each object that was copied, its copy.
    """
    rebinding = _Rebinding(memo)
    rebinding.attributes_of(duplicate)
    if rebinding.held:
        duplicate.__dict__[_HELD] = rebinding.held


def held_by(duplicate: nn.Module) -> list[nn.Module]:
    """The modules of a copy that functions among its attributes hold, and it does not register."""
    held: list[nn.Module] = vars(duplicate).get(_HELD, [])
    return held


def content_of(cell: types.CellType) -> Any:
    """What a cell of a closure holds."""
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY


class _Rebinding:
    """What stands for each object in a copy, which `memo` knows of those that were copied."""

    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo
        self._copies = {id(duplicate) for duplicate in memo.values()}
        self._seen: set[int] = set()
        self._cells: dict[int, types.CellType] = {}
        self.held: list[nn.Module] = []

    def attributes_of(self, module: nn.Module) -> None:
        """Let the attributes of a copied module and its submodules hold copies."""
        for part in module.modules():
            attributes = vars(part)
            for name, value in list(attributes.items()):
                if name not in ("_parameters", "_buffers", "_modules", _HELD):
                    attributes[name] = self.of(value)

    def of(self, value: Any) -> Any:
        """The value, or what stands for it."""
        if id(value) in self._memo and not isinstance(value, type | types.ModuleType):
            return self._memo[id(value)]
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self.of(value.__self__))
        if isinstance(value, functools.partial):
            words = {name: self.of(word) for name, word in value.keywords.items()}
            return type(value)(self.of(value.func), *map(self.of, value.args), **words)
        if isinstance(value, weakref.ref):
            target = value()
            return value if target is None else weakref.ref(self.of(target))
        if type(value) is tuple:
            return tuple(map(self.of, value))
        self._inside(value)
        return value

    def _inside(self, value: Any) -> None:
        """Look into a container or an object that was copied; others are the user's."""
        if id(value) in self._seen or id(value) not in self._copies:
            return
        self._seen.add(id(value))
        if isinstance(value, nn.Module | Tensor):
            return
        if isinstance(value, list):
            value[:] = map(self.of, value)
        elif isinstance(value, dict):
            value.update({key: self.of(part) for key, part in value.items()})
        elif hasattr(value, "__dict__"):
            vars(value).update({name: self.of(part) for name, part in vars(value).items()})

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        """A function whose closure and defaults hold what copies replaced. What else it can change,
        such as a list that it fills, is copied."""
        self._memo[id(function)] = function  # one that holds itself ends here
        cells = [self._cell(cell) for cell in function.__closure__ or ()]
        defaults = tuple(map(self._held, function.__defaults__ or ()))
        words = {name: self._held(word) for name, word in (function.__kwdefaults__ or {}).items()}
        own = {name: self._held(value) for name, value in vars(function).items()}
        after = (*cells, *defaults, *words.values(), *own.values())
        before = (
            *(function.__closure__ or ()), *(function.__defaults__ or ()),
            *(function.__kwdefaults__ or {}).values(), *vars(function).values(),
        )  # fmt: skip
        if all(new is old for new, old in zip(after, before, strict=True)):
            return function
        # A function that holds itself, as one with attributes of its own may.
        itself = [cell for cell in cells if content_of(cell) is function]
        own_cell = types.CellType(function)
        cells = [own_cell if cell in itself else cell for cell in cells]
        rebound = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, defaults or None,
            tuple(cells),
        )  # fmt: skip
        own_cell.cell_contents = rebound
        rebound.__kwdefaults__ = words or None
        rebound.__doc__ = function.__doc__
        rebound.__dict__.update(own)
        self._memo[id(function)] = rebound
        return rebound

    def _cell(self, cell: types.CellType) -> types.CellType:
        if id(cell) in self._cells:  # which several functions share
            return self._cells[id(cell)]
        self._cells[id(cell)] = self._new_cell(cell)
        return self._cells[id(cell)]

    def _new_cell(self, cell: types.CellType) -> types.CellType:
        content = content_of(cell)
        if content is _EMPTY:
            return cell
        if content is None or isinstance(content, int | float | str):
            return types.CellType(content)  # which the function may replace
        inside = self._held(content)
        return cell if inside is content else types.CellType(inside)

    def _held(self, content: Any) -> Any:
        """What stands for something that a function holds, which is copied where that can change
        it and it was not copied with the model."""
        if isinstance(content, _COPIED) and id(content) not in self._memo:
            self._copy(content)
        return self.of(content)

    def _copy(self, content: Any) -> None:
        """Put a copy of what a function holds into the memo."""
        if isinstance(content, Tensor) and not content.is_leaf:
            self._memo[id(content)] = content.detach().clone()
        elif isinstance(content, torch.Generator):
            self._memo[id(content)] = content.clone_state()
        else:
            copy.deepcopy(content, self._memo)
        self._copies = {id(duplicate) for duplicate in self._memo.values()}
        duplicate = self._memo[id(content)]
        if isinstance(duplicate, nn.Module):
            self.held.append(duplicate)
            self.attributes_of(duplicate)
        else:
            self._inside(duplicate)
