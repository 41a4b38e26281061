"""The device to compute on, and the environment that is noted beside results."""

import platform
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch

from benchmark.errors import UserError
from benchmark.spec.run_spec import Device, check_device


def resolve_device(device: Device) -> torch.device:
    """The torch device that an option names. Raises UserError where there is none of that name."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(check_device(device))
        torch.empty(0, device=resolved).cpu()  # which one without memory refuses
    except ValueError as error:
        raise UserError(str(error)) from error
    except Exception as error:  # what torch raises depends on the kind of device
        what = "CUDA device" if device == "cuda" else f"device {device}"
        raise UserError(f"there is no {what} here: give cpu or auto as the device") from error
    return resolved


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
