"""Values as bytes, as they travel to workers and back.

They are pickled, and so carry code: they come from the process that asked for the work, or from its
workers, and never from a folder.
"""

import copyreg
import io
import os
import sys
from types import ModuleType
from typing import Any

import torch

from benchmark.errors import UserError
from benchmark.executors.ray_with_token import ray

cloudpickle: Any = ray.cloudpickle
_jit: Any = torch.jit

# What modules of plugins and of files of code are called, which no import finds.
_UNIMPORTABLE = ("bestattack_plugin_", "external:")

# Where packages are installed.
_INSTALLED = ("site-packages", "dist-packages")


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
    loaded = list(sys.modules.items())
    of_users = [module for name, module in loaded if name.startswith(_UNIMPORTABLE)]
    folders = {_folder_of(module) for module in of_users} - {""}
    if folders:
        of_users += [
            module
            for name, module in loaded
            if name != "__main__" and module not in of_users and _folder_of(module) in folders
        ]
    return of_users


def _folder_of(module: ModuleType) -> str:
    """The folder of a module's file; empty where it has none, or is installed, as all hosts have
    it."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or any(f"{os.sep}{name}{os.sep}" in file for name in _INSTALLED):
        return ""
    return os.path.dirname(file)


def _reduce_script(model: torch.jit.ScriptModule) -> tuple[Any, tuple[bytes]]:
    """TorchScript as the bytes of its own format: it has no other."""
    body = io.BytesIO()
    torch.jit.save(model, body)
    return _script, (body.getvalue(),)


def _script(body: bytes) -> torch.jit.ScriptModule:
    model: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(body))
    return model


copyreg.pickle(_jit.RecursiveScriptModule, _reduce_script)
