"""Where models made elsewhere come from: a class for each kind of source."""

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from defenses.foreign.extras import need
from defenses.networks.architectures import Shape


@dataclass(frozen=True)
class Asked:
    """What is asked of a source.

    shape       of the images.
    classes     how many outputs the model should have, where the source can choose; None where it
                is to keep those that it has.
    kwargs      what a library is given beside that.
    pretrained  whether the library may provide weights, which it may fetch.
    run_code    whether code that comes with the model may run.
    """

    shape: Shape
    classes: int | None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    run_code: bool = False


@dataclass(frozen=True)
class Brought:
    """What a source brings.

    mean, std  the normalisation that the model is used with, of images in [0, 1]; None where the
               source does not know.
    output     where the logits are in what the model returns, as in `Reading`.
    note       what readers of a table must know of it.
    unclear    why the normalisation that it is used with cannot be told, so that the user has to.
    """

    model: nn.Module
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    output: int | str | None = None
    note: str = ""
    unclear: str = ""


class Source(Protocol):
    """A kind of source. `bring` raises ValueError, in one line, for what cannot be had.

    identity     what tells one model of this kind from another, beside its weights.
    has_weights  whether what it brings has weights that were trained; None: only if `pretrained`.
    """

    has_weights: bool | None

    def identity(self, name: str) -> str: ...

    def bring(self, name: str, asked: Asked) -> Brought: ...


class OfFile:
    """What sources of networks in files have in common."""

    has_weights: bool | None = True

    def identity(self, name: str) -> str:
        path = Path(name)
        if not path.is_file():
            raise ValueError("there is no such file")
        return hashlib.sha256(path.read_bytes()).hexdigest()


class OfLibrary:
    """What sources of a library's models have in common; `package` is that and its extra."""

    package: str
    has_weights: bool | None = None

    def identity(self, name: str) -> str:
        need(self.package, self.package)
        return f"{name} {version(self.package)}"


# The kinds, by the option of `external` that names a model of each.
_KINDS = {
    "python": "python_source:Python",
    "onnx": "onnx_source:Onnx",
    "exported": "exported_source:Exported",
    "script": "exported_source:Script",
    "timm": "timm_source:Timm",
    "torchvision": "torchvision_source:TorchVision",
    "transformers": "transformers_source:Transformers",
    "robustbench": "robustbench_source:RobustBench",
}
KINDS = tuple(_KINDS)


def source(kind: str) -> Source:
    """The source of a kind."""
    module, _, name = _KINDS[kind].partition(":")
    make: Callable[[], Source] = getattr(
        importlib.import_module(f"defenses.foreign.{module}"), name
    )
    return make()
