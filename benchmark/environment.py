"""The device to compute on, and the environment that is noted beside results."""

import platform
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch

from benchmark.errors import UserError

Device = str  # "auto", or what torch calls a device


def check_device(device: Device) -> Device:
    """The name of a device. Raises ValueError, in one line, where torch knows no such name."""
    if device != "auto":
        try:
            torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:1") from error
    return device


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
    return {
        "bestattack": own_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": f"{device.type}: {hardware(device)}",
        "threads": str(torch.get_num_threads()),
    }


def own_version() -> str:
    """The version of bestattack; "not installed" for a checkout that is not."""
    try:
        return version("bestattack")
    except PackageNotFoundError:
        return "not installed"


def hardware(device: torch.device) -> str:
    """What a device is called by its maker."""
    if device.type != "cuda":
        return platform.machine()
    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "of workers"
