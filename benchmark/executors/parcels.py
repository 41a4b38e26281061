"""Values as bytes, as they travel to workers and back.

They are pickled, and so carry code: they come from the process that asked for the work, or from its
workers, and never from a folder.
"""

import copyreg
import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmark.errors import UserError
from benchmark.executors.ray_with_token import ray

cloudpickle: Any = ray.cloudpickle
_jit: Any = torch.jit

# What modules of plugins and of files of code are called, which no import finds.
_UNIMPORTABLE = ("bestattack_plugin_", "external:")

# Where packages are installed, which all hosts have.
_INSTALLED = {"site-packages", "dist-packages"}


def packed(value: Any) -> bytes:
    """A value as bytes, with the code of classes and functions that come from plugins or from files
    of code. Raises UserError where it cannot be."""
    for module in _modules_of_users():
        cloudpickle.register_pickle_by_value(module)
    body = io.BytesIO()
    try:
        # torch's own format keeps tensors that share memory together.
        torch.save(value, body, pickle_module=cloudpickle)
    except Exception as error:
        kind = type(value).__name__
        raise UserError(
            f"a {kind} cannot be sent to workers ({type(error).__name__}: {error}): leave out "
            "workers"
        ) from error
    return body.getvalue()


def unpacked(body: bytes) -> Any:
    """The value in bytes that `packed` made, in this process or in that which works for it."""
    return torch.load(io.BytesIO(body), weights_only=False)


def _modules_of_users() -> list[ModuleType]:
    """The modules of plugins and of files of code, and those that lie beside them."""
    loaded = {
        name: module
        for name, module in list(sys.modules.items())
        if isinstance(getattr(module, "__file__", None), str)
    }
    of_users = [module for name, module in loaded.items() if name.startswith(_UNIMPORTABLE)]
    folders = {_folder_of(module) for module in of_users}
    return [
        module
        for name, module in loaded.items()
        if module in of_users
        or (name != "__main__" and _folder_of(module) in folders and not _is_installed(module))
    ]


def _folder_of(module: ModuleType) -> Path:
    return Path(str(module.__file__)).resolve().parent


def _is_installed(module: ModuleType) -> bool:
    return not _INSTALLED.isdisjoint(Path(str(module.__file__)).parts)


def _reduce_script(model: torch.jit.ScriptModule) -> tuple[Any, tuple[bytes]]:
    """TorchScript as the bytes of its own format: it has no other."""
    body = io.BytesIO()
    torch.jit.save(model, body)
    return _script, (body.getvalue(),)


def _script(body: bytes) -> torch.jit.ScriptModule:
    model: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(body))
    return model


copyreg.pickle(_jit.RecursiveScriptModule, _reduce_script)
