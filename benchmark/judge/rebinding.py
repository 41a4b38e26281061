"""What a deep copy leaves pointing at the original: functions that hold parts of a model.

Python copies no functions. So lambdas among the attributes of a copied model, hooks, decorated and
bound methods still reach the original's modules, and would measure or change these.
"""

import copy
import functools
import types
import weakref
from typing import Any

from torch import Tensor, nn


def rebind(duplicate: nn.Module, memo: dict[int, Any]) -> None:
    """Make all that the modules of a copy hold reach the copy instead of the original.

    memo  of the deep copy: by the id of each object that was copied, its copy.
    """
    rebinding = _Rebinding(memo)
    for module in duplicate.modules():
        attributes = vars(module)
        for name, value in list(attributes.items()):
            if name not in ("_parameters", "_buffers", "_modules"):
                attributes[name] = rebinding.of(value)


class _Rebinding:
    """What stands for each object in a copy, which `memo` knows of those that were copied."""

    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo
        self._copies = {id(duplicate) for duplicate in memo.values()}
        self._seen: set[int] = set()
        self._cells: dict[int, types.CellType] = {}

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
        defaults = tuple(map(self.of, function.__defaults__ or ()))
        before = (*(function.__closure__ or ()), *(function.__defaults__ or ()))
        if all(new is old for new, old in zip((*cells, *defaults), before, strict=True)):
            return function
        rebound = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, defaults or None,
            tuple(cells),
        )  # fmt: skip
        words = function.__kwdefaults__
        rebound.__kwdefaults__ = words and {name: self.of(word) for name, word in words.items()}
        rebound.__doc__ = function.__doc__
        rebound.__dict__.update(function.__dict__)
        self._memo[id(function)] = rebound
        return rebound

    def _cell(self, cell: types.CellType) -> types.CellType:
        if id(cell) in self._cells:  # which several functions share
            return self._cells[id(cell)]
        self._cells[id(cell)] = self._new_cell(cell)
        return self._cells[id(cell)]

    def _new_cell(self, cell: types.CellType) -> types.CellType:
        try:
            content = cell.cell_contents
        except ValueError:  # it is empty
            return cell
        if isinstance(content, int | float | str) and not isinstance(content, bool):
            return types.CellType(content)  # a number that the function may count up
        if isinstance(content, list | dict | set) and id(content) not in self._memo:
            copy.deepcopy(content, self._memo)
            self._copies = {id(duplicate) for duplicate in self._memo.values()}
            self._inside(self._memo[id(content)])
        inside = self.of(content)
        return cell if inside is content else types.CellType(inside)
