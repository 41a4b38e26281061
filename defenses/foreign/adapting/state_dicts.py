"""State dicts in files, and how they are brought to fit a model."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# What the names of tensors begin with in DataParallel, in a module that holds a `model`, and in an
# nn.Sequential after a normalisation.
_WRAPPERS = ("module.", "model.", "1.")


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without running code from it."""
    if not path.is_file():
        raise ValueError("there is no such file")
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


def unwrapped(state: dict[str, Tensor], known: set[str]) -> dict[str, Tensor]:
    """The state dict without the prefixes of modules around the network, if no name is known."""
    for prefix in _WRAPPERS * 2:
        if known.isdisjoint(state) and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def head_size(model: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """The number of outputs for which a state dict was made, where it fits a model but for their
    number; None where it fits, or does otherwise not."""
    known = model.state_dict()
    if known.keys() != state.keys():
        return None
    differing = [name for name in known if known[name].shape != state[name].shape]
    if any(
        not state[name].dim() or known[name].shape[1:] != state[name].shape[1:]
        for name in differing
    ):
        return None
    sizes = {len(state[name]) for name in differing}
    return sizes.pop() if len(sizes) == 1 else None
