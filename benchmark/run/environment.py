"""The device to compute on, and the environment that is noted beside results."""

import platform
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch

from benchmark.errors import UserError
from benchmark.spec.run_spec import Device


def resolve_device(device: Device) -> torch.device:
    """The torch device that an option names. Raises UserError for CUDA without a CUDA device."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here: use --device cpu or auto")
    return torch.device(device)


def environment(device: torch.device) -> dict[str, str]:
    """The versions of the software, and the hardware, that results are computed with here."""
    try:
        bestattack = version("bestattack")
    except PackageNotFoundError:
        bestattack = "not installed"
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "bestattack": bestattack,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": f"{device.type}: {hardware}",
        "threads": str(torch.get_num_threads()),
    }
