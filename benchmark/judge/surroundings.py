"""The surroundings in which models are judged, and which the caller finds again as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from attacks.generators import kept

# Where torch keeps the hooks that are called for every module.
_HOOKS = tuple(
    name
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks",
                 "_global_backward_pre_hooks")
    if hasattr(nn.modules.module, name)
)  # fmt: skip


@contextmanager
def full_precision() -> Iterator[None]:
    """Turn TF32 off on CUDA while the context lasts.

    Its mantissa of 10 bits would stop attacks at points that are not broken.
    """
    cudnn = torch.backends.cudnn
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)


@contextmanager
def _settings_kept() -> Iterator[None]:
    """The default dtype and device, the number of threads, hooks of all modules, and whether
    algorithms are deterministic, put back after the context as they were."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    device, anomaly = torch.get_default_device(), torch.is_anomaly_enabled()
    hooks = {name: dict(getattr(nn.modules.module, name)) for name in _HOOKS}
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        torch.autograd.set_detect_anomaly(anomaly)
        for name, held in hooks.items():
            there = getattr(nn.modules.module, name)
            if dict(there) != held:
                there.clear()
                there.update(held)


@contextmanager
def undisturbed() -> Iterator[None]:
    """A context in which models are judged: in full precision, outside of the caller's modes, and
    without `torch.compile`, since compiled code is the same function, and compiling each copy of it
    would take minutes. All that is global stays as the caller had it, whatever models do to it."""
    with (
        full_precision(),
        kept(),
        _settings_kept(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        torch.compiler.set_stance("force_eager"),
    ):
        yield
