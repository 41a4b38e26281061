"""Devices are listed with the memory that is free, also those that cannot be used now."""

import pytest
import torch

from benchmark.machine import devices
from benchmark.machine.checkup import Line


def _lines() -> dict[str, Line]:
    return {line.name: line for line in devices.devices().lines}


def test_little_memory_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "memory_limit", lambda: 8e9)
    for free, is_little in ((4e9, False), (0.5e9, True)):
        monkeypatch.setattr(devices, "free_memory", lambda free=free: free)
        line = _lines()["memory"]
        assert line.text.endswith("free, of 8.0 GB")
        assert bool(line.remedy) == is_little
        assert not line.is_wrong


def test_each_gpu_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def free(device: torch.device) -> tuple[int, int]:
        if device.index == 2:
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ...")
        return (70_000_000_000 if device.index == 0 else 10_000_000, 80_000_000_000)

    monkeypatch.setattr(devices, "hardware", lambda device: "H200")
    monkeypatch.setattr(devices, "is_fast", lambda device: device.type == "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    lines = _lines()
    assert lines["cpu"].text.endswith("no instructions for bfloat16")
    assert lines["cuda:0"] == Line("cuda:0", "H200, 70.0 GB free, of 80.0 GB; bfloat16 is fast")
    assert "nvidia-smi" in lines["cuda:1"].remedy
    assert lines["cuda:2"].text == "H200, cannot be used: CUDA error: out of memory"
    assert lines["cuda:2"].remedy
