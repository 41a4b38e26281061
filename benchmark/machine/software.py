"""The versions of what bestattack computes with, and whether what it may use can be imported."""

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import benchmark
from benchmark.environment import environment
from benchmark.machine.checkup import Line, Section
from benchmark.machine.trials import Trial


@dataclass(frozen=True)
class Package:
    """A package that attacks, models or data may need.

    module  what it is imported as.
    extra   the extra of bestattack that installs it; empty where bestattack itself does.
    called  its name for pip, where that is another than the module's.
    """

    module: str
    extra: str = ""
    called: str = ""

    @property
    def name(self) -> str:
        """Its name for pip."""
        return self.called or self.module

    @property
    def version(self) -> str:
        """Its version; empty where it is not installed."""
        try:
            return version(self.name)
        except PackageNotFoundError:
            return ""


# torchvision is first, since others import it.
PACKAGES = (
    Package("torchvision", "torchvision"),
    Package("foolbox"),
    Package("torchattacks"),
    Package("onnx", "onnx"),
    Package("onnx2torch", "onnx"),
    Package("onnxruntime", "onnx"),
    Package("timm", "timm"),
    Package("transformers", "transformers"),
    Package("robustbench", "robustbench"),
    Package("datasets", "huggingface"),
    Package("PIL", "huggingface", "pillow"),
    Package("pyarrow", "parquet"),
    Package("ray", "ray"),
)

# Is there where a GPU of NVIDIA has a driver.
_DRIVER = Path("/proc/driver/nvidia/version")


def software() -> Section:
    """What runs this command, and where it lies."""
    versions = environment(torch.device("cpu"))
    home = Path(benchmark.__file__).parents[1]
    return Section(
        "Software",
        [
            Line("bestattack", f"{versions['bestattack']}, in {home}"),
            Line("Python", f"{versions['python']} on {platform.system()}, in {sys.prefix}"),
            _torch(),
            Line("numpy", versions["numpy"]),
        ],
    )


def _torch() -> Line:
    """Which build of torch it is, and whether that finds the GPU that is there."""
    cuda, rocm = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else "CPUs alone"
    text = f"{torch.__version__}, a build for {build}"
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.cuda.is_available() or is_hidden or not _DRIVER.exists():
        return Line("torch", text)
    if cuda:
        remedy = "Update the driver of the GPU, or install a build of torch for an older CUDA."
    else:
        remedy = "Install a build for CUDA: https://pytorch.org/get-started/locally says how."
    return Line("torch", f"{text}, which does not find the GPU of this machine", remedy)


def packages(trials: Mapping[str, Trial]) -> Section:
    """The libraries of attacks and the extras: whether they are installed, and import.

    trials  what came of importing them, by module; nothing is said of what is not among them.
    """
    lines = [_package(package, trials.get(package.module, Trial())) for package in PACKAGES]
    late = sum(trial.is_late for trial in trials.values())
    if late:
        remedy = "Run bestattack doctor again when this machine is less busy."
        lines.append(Line("not tried", f"{late} packages, whose import takes too long now", remedy))
    return Section("Libraries and extras", lines)


def _package(package: Package, trial: Trial) -> Line:
    name, found, is_needed = package.name, package.version, not package.extra
    install = f"pip install {name}" if is_needed else f"pip install 'bestattack[{package.extra}]'"
    if not found and is_needed:
        return Line(name, "missing", f"bestattack needs it: {install}", is_wrong=True)
    if not found:
        return Line(name, f"not installed: {install}")
    if not trial.error:
        return Line(name, found + ", not tried" * trial.is_late)
    text = f"{found}, does not import: {trial.error}"
    if trial.is_replaced:
        text += "; bestattack loads it without its operators, which only detectors need"
    if package.module == "torchvision":
        return Line(name, text, _matching_torchvision())
    remedy = f"pip install --force-reinstall {name}, or pip uninstall {name} to go without it."
    if is_needed:
        remedy = f"pip install --force-reinstall --no-deps {name}=={found}"
    return Line(name, text, remedy, is_needed)


def _matching_torchvision() -> str:
    """How to get the torchvision that was built for the torch that is there."""
    build = torch.__version__.partition("+")[2]
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return (
        "It must be the build that belongs to this torch: pip uninstall -y torchvision, and then "
        f"pip install torchvision torch=={torch.__version__}{index}"
    )
