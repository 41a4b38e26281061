"""Copies of tensors that take no memory until one of them is written to.

A model of a hundred million parameters is copied for every block that an attack works on, so that
no attack can change how it is judged. Torch can let such copies share memory: whoever writes first,
be it through `.data`, an alias or a device pointer, is given memory of its own before.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def share(memo: dict[int, Any], tensors: Iterable[Tensor]) -> None:
    """Let a deep copy with the memo `memo` share the memory of some tensors until it is written to.

    Tensors that torch cannot share so, such as those in a memory map or of a subclass, stay for the
    deep copy to copy.
    """
    # By `copy.deepcopy`, torch copies parameters one by one, and other tensors by their storages,
    # which several may have in common.
    storages: dict[int, Any] = memo.setdefault("torch", {})  # type: ignore[call-overload]
    for tensor in tensors:
        kind = type(tensor)
        if kind not in (Tensor, nn.Parameter) or id(tensor) in memo or tensor.is_quantized:
            continue
        try:
            clone = torch._lazy_clone(tensor.detach())
            if kind is nn.Parameter:
                memo[id(tensor)] = nn.Parameter(clone, tensor.requires_grad)
            else:
                storages.setdefault(tensor.untyped_storage()._cdata, clone.untyped_storage())
        except (RuntimeError, NotImplementedError):
            continue
