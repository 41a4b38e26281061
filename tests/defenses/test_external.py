import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from defenses import MLP, External, Normalised, initialise

SHAPE = (1, 8, 8)

CODE = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Sizes:
    units: int = 4

class Net(nn.Module):
    def __init__(self, units=None, classes=10):
        super().__init__()
        units = units or Sizes().units
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, units), nn.Linear(units, classes))

    def forward(self, x):
        return self.body(x)

def number():
    return 3

def failing():
    raise RuntimeError("first line\\nsecond line")
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(CODE)
    return path


def built(**options: Any) -> nn.Module:
    return initialise(External(**options), SHAPE, 10, seed=0)


def refusal(**options: Any) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - each caller looks at the words
        built(**options)
    assert "\n" not in str(error.value)
    return str(error.value)


def logits_agree(one: nn.Module, other: nn.Module) -> bool:
    x = torch.rand(5, *SHAPE)
    return torch.equal(one(x), other(x))


@pytest.mark.parametrize("kind", ["safetensors", "plain", "nested", "model", "parallel"])
def test_weights_of_every_shape_are_found(kind: str, tmp_path: Path) -> None:
    model = MLP(SHAPE, 10)
    state = model.state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(state, path)
    else:
        content: dict[str, Any] = {
            "plain": state,
            "nested": {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
            "model": {"model": {f"module.{name}": value for name, value in state.items()}},
            "parallel": {f"module.{name}": value for name, value in state.items()},
        }
        torch.save(content[kind], path)
    assert logits_agree(built(model="mlp", weights=path), model)


def test_factories_from_a_file_and_a_module(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(p.numel() for p in built(model=f"{code}:Net").parameters()) == 65 * 4 + 50
    wide = built(model=f"{code}:Net", kwargs={"units": 6})
    assert sum(p.numel() for p in wide.parameters()) == 65 * 6 + 70
    monkeypatch.syspath_prepend(code.parent)
    assert logits_agree(built(model="net:Net"), built(model=f"{code}:Net"))


def test_normalisation_is_inside() -> None:
    plain = MLP((3, 8, 8), 10).eval()
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    x = torch.rand(4, 3, 8, 8)
    by_hand = torch.stack([(x[:, k] - mean[k]) / std[k] for k in range(3)], dim=1)
    torch.testing.assert_close(Normalised(plain, mean, std)(x), plain(by_hand))
    torch.testing.assert_close(Normalised(plain, [0.5], [0.5])(x), plain(2 * x - 1))
    outer = initialise(External(model="mlp", mean=mean, std=std), (3, 8, 8), 10, seed=0)
    inner = initialise(External(model="mlp"), (3, 8, 8), 10, seed=0)
    torch.testing.assert_close(outer(x), inner(by_hand))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


@pytest.mark.parametrize("way", ["torch", "pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(way: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", tmp_path / "w.pt"
    content = {"state_dict": {"a": torch.zeros(1)}, "x": Evil(trace)}
    if way == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    assert "could run code" in refusal(model="mlp", weights=path)
    assert not trace.exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(MLP(SHAPE, 10), tmp_path / "w.pt")
    assert "save model.state_dict() alone" in refusal(model="mlp", weights=tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_missing_and_damaged_weights_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert "FileNotFoundError" in refusal(model="mlp", weights=path)
    state = MLP(SHAPE, 10).state_dict()
    if name == "w.pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[:500])
    assert str(path) in refusal(model="mlp", weights=path)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "w.pt", MLP(SHAPE, 7)
    torch.save(other.state_dict(), path)
    assert "does not fit mlp: 2 wrong shape: 5.weight (7, 128) for (10, 128)" in refusal(
        model="mlp", weights=path
    )
    torch.save({"weight": torch.zeros(2)}, path)
    words = refusal(model="mlp", weights=path)
    assert "6 missing: 1.weight" in words
    assert "1 unexpected: weight" in words
    for content in ([1, 2], {"epoch": 1}, torch.zeros(3)):
        torch.save(content, path)
        assert "holds no state dict" in refusal(model="mlp", weights=path)


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("number", {}, "gives a int, not an nn.Module"),
        ("failing", {}, "RuntimeError: first line second line"),
        ("absent", {}, "no attribute 'absent'"),
        ("Net", {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("Net", {"classes": 2}, "gives (1, 2) for an image, not logits (1, 10)"),
    ],
)
def test_factories_that_give_no_classifier_are_refused(
    name: str, kwargs: dict[str, Any], words: str, code: Path
) -> None:
    assert words in refusal(model=f"{code}:{name}", kwargs=kwargs)


def test_other_refusals(tmp_path: Path) -> None:
    assert "FileNotFoundError" in refusal(model=f"{tmp_path}/none.py:Net")
    assert "ModuleNotFoundError" in refusal(model="no_such_package.models:Net")
    assert "unknown architecture 'resnet'" in refusal(model="resnet")
    assert "both mean and std" in refusal(model="mlp", mean=(0.5,))
    assert "std above 0" in refusal(model="mlp", mean=(0.5,), std=(0.0,))
    assert "3 means for 1 channels" in refusal(model="mlp", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert "model='mlp'" in refusal(arch="mlp")


def test_importing_defenses_needs_torch_and_numpy_alone() -> None:
    program = (
        "import sys, defenses; "
        "print([name for name in ('safetensors', 'sklearn', 'pandas', 'benchmark', 'foolbox') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
