"""Packages are tried where they do no harm, and each that does not import has its reason."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from benchmark.machine import software
from benchmark.machine.checkup import Line
from benchmark.machine.software import PACKAGES, Package, packages
from benchmark.machine.trials import Trial, try_imports

ROOT = Path(__file__).parents[3]


def test_a_module_may_do_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in {
        "noisy": 'print(\'["noisy", "wrong", false]\', flush=True)',
        "raising": "raise RuntimeError('operator\\nthat is not there')",
        "leaving": "raise SystemExit(3)",
        "crashing": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "sound": "",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    names = ["noisy", "raising", "leaving", "crashing", "sound"]
    trials = try_imports(names, 120)
    assert trials == {
        "noisy": Trial(),
        "raising": Trial("RuntimeError: operator that is not there"),
        "leaving": Trial("SystemExit: 3"),
        "crashing": Trial("it ends Python (SIGSEGV)"),
        "sound": Trial(),
    }
    assert not set(names) & set(sys.modules)


def test_no_longer_than_asked_for() -> None:
    assert try_imports(["json", "csv"], 0.01) == {
        name: Trial(is_late=True) for name in ("json", "csv")
    }
    assert try_imports([], 0.0) == {}


def _lines(trials: dict[str, Trial]) -> dict[str, Line]:
    return {line.name: line for line in packages(trials).lines}


def test_what_does_not_import_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Package, "version", "1.0")
    monkeypatch.setattr(software.torch, "__version__", "2.6.0+cu124")
    assert not any(line.remedy for line in _lines({}).values())
    lines = _lines(
        {
            "torchvision": Trial("RuntimeError: operator torchvision::nms does not exist", True),
            "timm": Trial("ImportError: no"),
            "foolbox": Trial("ImportError: no"),
            "ray": Trial(is_late=True),
        }
    )
    assert (
        "operator torchvision::nms does not exist; bestattack loads it" in lines["torchvision"].text
    )
    assert "whl/cu124" in lines["torchvision"].remedy
    assert "timm" in lines["timm"].remedy
    # Only what bestattack itself needs makes runs go wrong.
    assert [name for name, line in lines.items() if line.is_wrong] == ["foolbox"]
    assert lines["ray"].text == "1.0, not tried"
    assert "again" in lines["not tried"].remedy


def test_what_is_not_installed_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Package, "version", "")
    lines = _lines({})
    assert lines["pillow"].text == "not installed: pip install 'bestattack[huggingface]'"
    assert not lines["pillow"].remedy
    wrong = [name for name, line in lines.items() if line.is_wrong]
    assert wrong == ["foolbox", "torchattacks"]


def test_a_gpu_that_torch_does_not_find_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remedy() -> str:
        (line,) = (line for line in software.software().lines if line.name == "torch")
        return line.remedy

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(software.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(software.torch.version, "cuda", None)
    monkeypatch.setattr(software, "_DRIVER", tmp_path / "version")
    assert remedy() == ""
    (tmp_path / "version").touch()
    assert "Install a build for CUDA" in remedy()
    monkeypatch.setattr(software.torch.version, "cuda", "12.6")
    assert "driver" in remedy()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as the user wants it
    assert remedy() == ""


def test_packages_are_those_of_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}

    extras = project["optional-dependencies"]
    named = {
        name
        for extra in extras
        if extra not in ("browser", "dev", "docs")
        for name in names(extras[extra])
    }
    assert {package.name for package in PACKAGES if package.extra} == named
    for package in PACKAGES:
        assert package.name in names(extras.get(package.extra, project["dependencies"]))
