"""What must be the same on all hosts of a run, because results depend on it."""

import platform
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

# The packages whose code carries out units of work.
_PACKAGES = ("attacks", "benchmark", "defenses")

# The libraries whose attacks and models they may be given.
_LIBRARIES = ("foolbox", "onnx2torch", "timm", "torchattacks", "transformers")


@cache
def versions() -> dict[str, str]:
    """The versions of Python and of what computes, and a digest of our own code, in this
    process."""
    root = Path(__file__).parents[2]
    digest = sha256()
    for path in sorted(path for name in _PACKAGES for path in (root / name).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        **{name: _version(name) for name in _LIBRARIES},
        "bestattack": digest.hexdigest()[:12],
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def differing(theirs: dict[str, str], ours: dict[str, str]) -> str:
    """What another host has otherwise, in words; empty where all is the same."""
    return ", ".join(
        f"another version of {name}" if name == "bestattack" else f"{name} {other} and not {mine}"
        for name, mine in ours.items()
        if (other := theirs.get(name)) != mine
    )
