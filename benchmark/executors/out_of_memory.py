"""Memory that runs out."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no more memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # torch has no class of its own for it on the CPU.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error)
