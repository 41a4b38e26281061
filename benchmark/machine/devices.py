"""The devices that torch can compute on, and the memory that is free."""

import platform

import torch

from benchmark.direct.inspection import in_bytes
from benchmark.environment import hardware
from benchmark.executors.resources import free_memory, memory_limit
from benchmark.machine.checkup import Line, Section
from defenses.training.bfloat16 import is_fast

# With less memory, in bytes, an ordinary run has to attack few images at once.
_LITTLE = 1e9


def devices() -> Section:
    """The processor and each GPU, with the memory that is free, and whether bfloat16 is fast."""
    gpus = [_gpu(torch.device("cuda", number)) for number in range(torch.cuda.device_count())]
    return Section("Devices", [_cpu(), _memory(), *gpus])


def _cpu() -> Line:
    abilities = torch.backends.cpu.get_cpu_capability()
    return Line("cpu", f"{platform.machine()}, {abilities}; {_bfloat16(torch.device('cpu'))}")


def _memory() -> Line:
    free = free_memory()
    text = f"{in_bytes(int(free))} free, of {in_bytes(int(memory_limit()))}"
    remedy = (
        "End other programs, or give --block 32: few images fit in it." if free < _LITTLE else ""
    )
    return Line("memory", text, remedy)


def _gpu(device: torch.device) -> Line:
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        remedy = "See with nvidia-smi what uses it, or give --device cpu."
        return Line(str(device), f"{hardware(device)}, cannot be used: {first}", remedy)
    remedy = "See with nvidia-smi what fills it: few images fit in it." if free < _LITTLE else ""
    text = f"{in_bytes(free)} free, of {in_bytes(total)}; {_bfloat16(device)}"
    return Line(str(device), f"{hardware(device)}, {text}", remedy)


def _bfloat16(device: torch.device) -> str:
    return "bfloat16 is fast" if is_fast(device) else "no instructions for bfloat16"
