"""Models made elsewhere: any torch.nn.Module, with its own weights and normalisation."""

import importlib
import importlib.util
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from attacks.messages import reason
from defenses.networks.architectures import Shape, build_architecture
from defenses.networks.modes import evaluating
from defenses.networks.text import parse_layers
from defenses.recipes.recipe import Plain
from defenses.weights import misfit

# How many characters of foreign code's error are shown at most.
_LONGEST = 300

# What the names of tensors begin with in DataParallel, in a module that holds a `model`, and in an
# nn.Sequential after a normalisation.
_WRAPPERS = ("module.", "model.", "1.")


class Normalised(nn.Module):
    """A model whose images are normalised first, to (x - mean) / std per channel. So it takes
    images in [0, 1].

    mean and std hold one number per channel, or one for all. Raises ValueError where their lengths
    differ or std is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError("mean and std must be equally long, and std above 0")
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits


@dataclass(frozen=True, kw_only=True)
class External(Plain):
    """A model given by its code and weights. It is trained further, with cross-entropy on clean
    images, only if `epochs` says so.

    model      a name in ARCHITECTURES, "path/to/file.py:Factory" or "package.module:Factory", where
               Factory(**kwargs) gives an nn.Module from images to logits. Its code is run.
    layers     in place of model and kwargs, a plain sequential network as text: see parse_layers.
    weights    a .safetensors file, or a torch file that holds a state dict and nothing that needs
               code to load, possibly nested under "state_dict", "model_state_dict" or "model".
               Prefixes of names that DataParallel or a module around the network adds are removed.
    mean, std  of the input normalisation that the model expects: see Normalised. If the weights
               hold them too, they must be the same.

    Raises ValueError for options that exclude each other, and `build`, in one line, for code,
    layers or weights that cannot be used.
    """

    epochs: int = 0
    model: str = "default"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    layers: str | None = None
    weights: str | Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arch != "default":
            raise ValueError(f"external: write model={self.arch!r} in place of arch")
        if (self.mean is None) != (self.std is None):
            raise ValueError("external: give both mean and std, or neither")
        if self.model.endswith(".py"):
            raise ValueError(f"external: name the class or the function: {self.model}:Network")
        if ":" in self.model and self.widen != 1:
            raise ValueError("external: widen is of named architectures: leave it out")
        if self.layers is not None and (self.model != "default" or self.kwargs or self.widen != 1):
            raise ValueError("external: layers say all: leave out model, kwargs and widen")

    def settings(self) -> dict[str, Any]:
        settings = super().settings()
        # The weights are the network's, and the file of code is in `code`.
        del settings["weights"]
        return settings | {"model": self.model.rpartition(":")[2]}

    def check_weights(self) -> None:
        # A factory ("file.py:Factory") may load weights of its own; a named architecture has none.
        if not (self.epochs or self.weights or ":" in self.model):
            raise ValueError("give weights, or epochs to train")

    def rebuilding(self) -> Self:
        # The folder of a trained model has a copy of the weights; their own file may be gone.
        return replace(self, weights=None)

    def code(self) -> tuple[str, ...]:
        return (_module_name(self.model),) if ":" in self.model else ()

    def build(self, shape: Shape, classes: int) -> nn.Module:
        source = self.model if self.layers is None else "layers"
        with _foreign(source):
            model = self._network(shape, classes)
        if self.weights is not None:
            with _foreign(self.weights):
                state = self._fitting(_read_state(Path(self.weights)), set(model.state_dict()))
                if problem := misfit(model, state):
                    raise ValueError(f"does not fit {source}: {problem}")
                model.load_state_dict(state)
        if self.mean is not None and self.std is not None:
            if len(self.mean) not in (1, shape[0]):
                raise ValueError(f"external: {len(self.mean)} means for {shape[0]} channels")
            model = Normalised(model, self.mean, self.std)
        with _foreign(source), evaluating(model), torch.no_grad():
            outputs = model.cpu()(torch.zeros(1, *shape))
            if not isinstance(outputs, Tensor):
                raise ValueError(
                    f"gives {_kind(outputs)} for an image, not logits (1, {classes}): put it into "
                    "a module that returns its logits alone"
                )
            if outputs.shape != (1, classes):
                raise ValueError(
                    f"gives {tuple(outputs.shape)} for an image, not logits (1, {classes})"
                )
        return model

    def _network(self, shape: Shape, classes: int) -> nn.Module:
        """The network that `model` or `layers` names, with fresh weights."""
        if self.layers is not None:
            return parse_layers(self.layers)
        if ":" not in self.model:
            options = {"widen": self.widen, **self.kwargs}
            return build_architecture(self.model, shape, classes, **options)
        model = _import(self.model)(**self.kwargs)
        if not isinstance(model, nn.Module):
            raise TypeError(f"the factory gives a {type(model).__name__}, not an nn.Module")
        return model

    def _fitting(self, state: dict[str, Tensor], known: set[str]) -> dict[str, Tensor]:
        """What is left of a state dict for a model whose tensors have the `known` names."""
        state = _unwrapped(state, known)
        # A normalisation in the file must be the one that was given, which is not in the model yet.
        held = {}
        for name in sorted(state.keys() - known):
            if (option := name.split(".")[-1]) in ("mean", "std"):
                held[option] = state.pop(name).float().flatten()
        for option, value in held.items():
            given = getattr(self, option)
            if given is None or not torch.allclose(value, torch.tensor(given), atol=1e-4):
                wanted = [f"{key}: {[round(v, 5) for v in held[key].tolist()]}" for key in held]
                raise ValueError(f"holds a normalisation: give {' and '.join(wanted)}")
        state = _unwrapped(state, known)
        # The code of TRADES, and all that follows it, saves a block that no forward uses.
        unused = {name for name in state if name.startswith("sub_block1.")} - known
        return {name: value for name, value in state.items() if name not in unused}


def _kind(outputs: object) -> str:
    """What a model returned, in words."""
    held = f" with {', '.join(map(repr, outputs))}" if isinstance(outputs, Mapping) else ""
    return f"a {type(outputs).__name__}{held}"


def _unwrapped(state: dict[str, Tensor], known: set[str]) -> dict[str, Tensor]:
    """The state dict without the prefixes of modules around the network, if no name is known."""
    for prefix in _WRAPPERS * 2:
        if known.isdisjoint(state) and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without running code from it."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state: Any = load_file(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                "refused: it is damaged or holds more than tensors, and could run code; "
                "save model.state_dict() alone"
            ) from error
    if isinstance(state, Mapping):
        nested = (state.get(key) for key in ("state_dict", "model_state_dict", "model"))
        state = next((inner for inner in nested if isinstance(inner, Mapping)), state)
    tensors = isinstance(state, Mapping) and all(isinstance(v, Tensor) for v in state.values())
    if not tensors:
        raise ValueError("holds no state dict: save model.state_dict()")
    return dict(state)


def _module_name(spec: str) -> str:
    """What sys.modules calls the module of "path/to/file.py:name" or "package.module:name"."""
    source = spec.rpartition(":")[0]
    return f"external:{source}" if source.endswith(".py") else source


def _import(spec: str) -> Any:
    """Import the object that "path/to/file.py:name" or "package.module:name" names."""
    source, _, name = spec.rpartition(":")
    alias = _module_name(spec)
    if not source.endswith(".py"):
        return getattr(importlib.import_module(alias), name)
    module_spec = importlib.util.spec_from_file_location(alias, source)
    assert module_spec is not None  # because of the .py
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[alias] = module  # where the file's own dataclasses look
    module_spec.loader.exec_module(module)
    return getattr(module, name)


@contextmanager
def _foreign(name: object) -> Iterator[None]:
    """Whatever foreign code or files raise inside becomes a ValueError of one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{name}: {reason(error)[:_LONGEST]}") from error
