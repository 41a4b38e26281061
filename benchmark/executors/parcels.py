"""Values as bytes, as they travel to workers and back.

They are pickled, and so carry code: they come from the process that asked for the work, or from its
workers, and never from a folder.
"""

import copyreg
import io
import sys
import sysconfig
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import is_parametrized

from benchmark.errors import UserError
from benchmark.executors.ray_with_token import ray

T = TypeVar("T")

cloudpickle: Any = ray.cloudpickle
_jit: Any = torch.jit

# How many values a process keeps loaded.
_LOADED = 16

# The modules of which it is known whether they are the user's.
_looked_at: set[str] = set()

# The references in what is packed, or unpacked, at the moment.
_refs: ContextVar[list[Any]] = ContextVar("refs")

# Modules that every process has, wherever they lie.
_EVERYWHERE = {"__main__", "attacks", "benchmark", "bestattack", "defenses", "leaderboard"}

# Where packages are installed, and the standard library.
_INSTALLED = ("site-packages", "dist-packages")
_STANDARD = sysconfig.get_path("stdlib")


@dataclass(frozen=True)
class Parcel:
    """A value as bytes, and references to what it holds of Ray's store, which Ray has to see."""

    body: bytes
    refs: "list[ray.ObjectRef[Parcel]]"


class Stored(Generic[T]):
    """A value in Ray's store."""

    def __init__(self, ref: "ray.ObjectRef[Parcel]") -> None:
        self.ref = ref

    def get(self) -> T:
        """The value, which a process loads once."""
        value: T = loaded(self.ref)
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        refs = _refs.get()
        refs.append(self.ref)
        return _stored, (len(refs) - 1,)


@lru_cache(maxsize=_LOADED)
def loaded(ref: "ray.ObjectRef[Parcel]") -> Any:
    """The value that a reference stands for."""
    return unpacked(ray.get(ref))


def packed(value: Any) -> Parcel:
    """A value as it travels, with the code of classes and functions that come from plugins or from
    files of code. Raises UserError where it cannot."""
    for name in sys.modules.keys() - _looked_at:
        _looked_at.add(name)
        if _is_of_user(name, sys.modules[name]):
            cloudpickle.register_pickle_by_value(sys.modules[name])
    body = io.BytesIO()
    refs: list[Any] = []
    before = _refs.set(refs)
    try:
        # torch's own format keeps tensors that share memory together.
        torch.save(value, body, pickle_module=_Pickling)
    except Exception as error:
        kind = type(value).__name__
        raise UserError(
            f"a {kind} cannot be sent to workers ({type(error).__name__}: {error}): leave out "
            "workers"
        ) from error
    finally:
        _refs.reset(before)
    return Parcel(body.getvalue(), refs)


def unpacked(parcel: Parcel) -> Any:
    """The value that `packed` made a parcel of, in this process or in that which works for it. What
    was on a GPU is on that of this process."""
    before = _refs.set(parcel.refs)
    try:
        return torch.load(io.BytesIO(parcel.body), map_location=_placed, weights_only=False)
    finally:
        _refs.reset(before)


def _stored(place: int) -> Stored[Any]:
    return Stored(_refs.get()[place])


def _placed(storage: Any, location: str) -> Any:
    """Where the memory of a tensor goes: to the GPU that this process computes on, if it was on
    one."""
    return storage.cuda() if location.startswith("cuda") else None


def _is_of_user(name: str, module: ModuleType) -> bool:
    """Whether a module is code of the user, which workers may not have, or have as it is before
    anything in it was changed: it lies where neither Python nor packages are installed."""
    file = getattr(module, "__file__", None)
    if name.partition(".")[0] in _EVERYWHERE or not isinstance(file, str):
        return False
    path = Path(file)
    return not (path.is_relative_to(_STANDARD) or set(path.parts) & set(_INSTALLED))


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Packs modules with parametrisations too, which refuse to be pickled."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, nn.Module) and is_parametrized(obj):
            return _parametrised, (type(obj).__bases__[0],), vars(obj), None, None, _restore
        return super().reducer_override(obj)


class _Pickling:
    """What torch asks of a module that pickles."""

    Pickler = _Pickler


def _parametrised(plain: type[nn.Module]) -> nn.Module:
    return plain.__new__(plain)


def _restore(module: nn.Module, state: dict[str, Any]) -> None:
    """Give a module back what it holds, and make its parametrised tensors again."""
    vars(module).update(state)
    parametrize._inject_new_class(module)
    for name in state["_modules"]["parametrizations"]:
        parametrize._inject_property(module, name)


def _reduce_script(model: torch.jit.ScriptModule) -> tuple[Any, tuple[bytes]]:
    """TorchScript as the bytes of its own format: it has no other."""
    body = io.BytesIO()
    torch.jit.save(model, body)
    return _script, (body.getvalue(),)


def _script(body: bytes) -> torch.jit.ScriptModule:
    model: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(body))
    return model


copyreg.pickle(_jit.RecursiveScriptModule, _reduce_script)
