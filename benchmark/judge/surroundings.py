"""The surroundings in which models are judged, and which the caller finds again as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from attacks.generators import kept


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
def undisturbed() -> Iterator[None]:
    """A context in which models are judged: in full precision, outside of the caller's modes, and
    without `torch.compile`, since compiled code is the same function, and compiling each copy of it
    would take minutes. All that is global stays as the caller had it."""
    with (
        full_precision(),
        kept(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        torch.compiler.set_stance("force_eager"),
    ):
        yield
