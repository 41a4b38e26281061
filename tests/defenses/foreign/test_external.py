import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from defenses import MLP, External, Normalised, build_architecture, initialise
from defenses.networks.text import parse_layers
from tests.malice import Malice

SHAPE = (1, 8, 8)

LAYERS = "Conv2d(1, 4, 3, padding=1), BatchNorm2d(4), ReLU(), Flatten(), Linear(256, 10)"

CODE = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Sizes:
    units: int = 4

class Held(nn.Module):
    def __init__(self, name):
        super().__init__()
        setattr(self, name, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))

    def forward(self, x):
        return next(self.children())(x)

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


KINDS = ["safetensors", "plain", "nested", "model", "parallel", "held", "both"]


@pytest.mark.parametrize("kind", KINDS)
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
            "held": {f"model.{name}": value for name, value in state.items()},
            "both": {f"module.model.{name}": value for name, value in state.items()},
        }
        torch.save(content[kind], path)
    assert logits_agree(built(model="mlp", weights=path), model)


def test_factories_from_a_file_and_a_module(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(p.numel() for p in built(model=f"{code}:Net").parameters()) == 65 * 4 + 50
    wide = built(model=f"{code}:Net", kwargs={"units": 6})
    assert sum(p.numel() for p in wide.parameters()) == 65 * 6 + 70
    monkeypatch.syspath_prepend(code.parent)
    assert logits_agree(built(model="net:Net"), built(model=f"{code}:Net"))


def test_a_factory_is_not_widened(code: Path) -> None:
    with pytest.raises(ValueError, match="widen is of named architectures: leave it out"):
        External(model=f"{code}:Net", widen=2.0)


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


@pytest.mark.parametrize("name", ["module", "model"])
def test_a_networks_own_names_are_kept(name: str, code: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": f"{code}:Held", "kwargs": {"name": name}}
    model, path = built(**options), tmp_path / "w.pt"
    with torch.no_grad():
        next(model.parameters()).fill_(0.25)
    for state in (model.state_dict(), nn.DataParallel(model).state_dict()):
        torch.save(state, path)
        assert logits_agree(built(weights=path, **options), model)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("names", [("0.mean", "0.std", "1."), ("mean", "std", "model.")])
def test_a_normalisation_in_the_weights_must_be_given(
    names: tuple[str, str, str], prefix: str, tmp_path: Path
) -> None:
    inner, path = MLP(SHAPE, 10), tmp_path / "w.pt"
    state = {names[2] + name: value for name, value in inner.state_dict().items()}
    state |= {names[0]: torch.full((1, 1, 1, 1), 0.1307), names[1]: torch.tensor([0.3081])}
    torch.save({prefix + name: value for name, value in state.items()}, path)
    words = "holds a normalisation: give mean: [0.1307] and std: [0.3081]"
    assert words in refusal(model="mlp", weights=path)
    assert words in refusal(model="mlp", weights=path, mean=(0.5,), std=(0.3081,))
    found = built(model="mlp", weights=path, mean=(0.1307,), std=(0.3081,))
    assert logits_agree(found, Normalised(inner, [0.1307], [0.3081]))


def test_the_unused_block_of_published_wide_resnets_is_left_out(tmp_path: Path) -> None:
    model, path = build_architecture("wideresnet28", SHAPE, 10, widen=0.1).eval(), tmp_path / "w.pt"
    state = model.state_dict()
    unused = {f"sub_{name}": value for name, value in state.items() if name.startswith("block1.")}
    torch.save({f"module.{name}": value for name, value in {**state, **unused}.items()}, path)
    assert logits_agree(built(model="wideresnet28", widen=0.1, weights=path).eval(), model)
    torch.save({**state, "block4.weight": torch.zeros(1)}, path)
    assert "1 unexpected: block4.weight" in refusal(model="wideresnet28", widen=0.1, weights=path)


@pytest.mark.parametrize(
    "text",
    [
        LAYERS,
        f"nn.Sequential(\n  {LAYERS.replace('Conv', 'torch.nn.Conv')},\n)",
        LAYERS.replace(", padding=1", ",\n bias=True, padding=(1, 1)"),
        str(parse_layers(LAYERS)),
        " ".join(str(parse_layers(LAYERS)).split()),
    ],
)
def test_layers_are_the_network_that_they_say(text: str, tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 64, 10),
    ).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert logits_agree(built(layers=text, weights=tmp_path / "w.safetensors").eval(), model)


def test_what_print_shows_of_a_network_is_the_network() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.Sequential(nn.LeakyReLU(0.1))),
        nn.MaxPool2d(2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(144, 10), nn.Softmax(dim=1))),
    )
    assert repr(parse_layers(repr(model))) == repr(model)
    assert repr(parse_layers("Sequential(Sequential(ReLU()))")) == repr(
        nn.Sequential(nn.Sequential(nn.ReLU()))
    )


def test_layers_leave_what_they_are_given_as_it_was() -> None:
    model = parse_layers("ReLU(inplace=True), Sequential(LeakyReLU(0.1, True)), Dropout(0.1, True)")
    x = torch.randn(9)
    before = x.clone()
    model.eval()(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("", "no layers: write them as in Flatten(), Linear(784, 10)"),
        ("Flatten() Linear(64, 10)", "not a list of layers: invalid syntax"),
        ("(fc): Linear(64, 10)", "not a list of layers: invalid syntax"),
        ("Flatten(), Liner(64, 10)", "Liner is not a layer of torch.nn"),
        ("functional.relu(3)", "functional.relu is not a layer of torch.nn"),
        ("init.zeros_(3)", "init.zeros_ is not a layer of torch.nn"),
        ("Parameter(3)", "Parameter is not a layer of torch.nn"),
        ("Flatten(), Linear", "Linear is not a layer: write Name(arguments)"),
        ("Linear(8 * 8, 10)", "8 * 8 is not a literal: write numbers, or texts in quotes"),
        ("Conv2d(1, 4, 3, padding=same)", "same is not a literal"),
        ("Linear(64, *[10])", "*[10] is not a literal"),
        ("Linear(64)", "missing 1 required positional argument: 'out_features'"),
        ("Linear(64, -1)", "Linear(64, -1): Trying to create tensor with negative dimension"),
        ("Flatten(), Linear(32, 10)", "layers: RuntimeError: mat1 and mat2 shapes"),
        ("Flatten(), Linear(64, 9)", "layers: gives (1, 9) for an image, not logits (1, 10)"),
        ("(" * 500, "not a list of layers: too many nested parentheses"),
    ],
)
def test_layers_that_are_none_are_refused(layers: str, words: str) -> None:
    assert words in refusal(layers=layers)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "Linear({}, 10)",
        "Linear(64, 10, bias={})",
        "Sequential({})",
        "Flatten()) + ({}",
        "Flatten()), {}, (1",
        "Flatten())({}",
        "(lambda: {})()",
        "Identity([{} for _ in 'a'])",
    ],
)
def test_layers_run_no_other_code(text: str, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    evil = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    assert "is not a l" in refusal(layers=text.format(evil))
    assert not trace.exists()


def test_weights_that_do_not_fit_layers_are_refused(tmp_path: Path) -> None:
    torch.save({"1.weight": torch.zeros(10, 64)}, tmp_path / "w.pt")
    words = refusal(layers="Flatten(), Linear(64, 10)", weights=tmp_path / "w.pt")
    assert words.endswith("w.pt: does not fit layers: 1 missing: 1.bias")


@pytest.mark.parametrize("way", ["torch", "pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(way: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", tmp_path / "w.pt"
    content = {"state_dict": {"a": torch.zeros(1)}, "x": Malice(trace)}
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
    assert refusal(model="mlp", weights=path) == f"{path}: there is no such file"
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
    assert "is of 7 classes, and the data has 10" in refusal(model="mlp", weights=path)
    torch.save({"weight": torch.zeros(2)}, path)
    words = refusal(model="mlp", weights=path)
    assert "6 missing: 1.weight" in words
    assert "1 unexpected: weight" in words
    for content in ([1, 2], {"epoch": 1}, torch.zeros(3)):
        torch.save(content, path)
        assert "holds no state dict" in refusal(model="mlp", weights=path)


def test_weights_of_more_classes_than_the_data_has(tmp_path: Path) -> None:
    """As many outputs are built as the weights are for; `classes` says which count."""
    path, network = tmp_path / "w.pt", MLP(SHAPE, 30).eval()
    torch.save(network.state_dict(), path)
    chosen = (*range(3, 12), 29)
    model = External(model="mlp", weights=path, classes=chosen).build(SHAPE, 10).eval()
    x = torch.rand(4, *SHAPE)
    assert torch.equal(model(x), network(x)[:, chosen])
    with pytest.raises(ValueError, match="there is no class 30"):
        External(model="mlp", weights=path, classes=(*range(9), 30)).build(SHAPE, 10)


def test_code_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, slope in ((here, 1), (there, 2)):
        folder.mkdir()
        (folder / "our_slope.py").write_text(f"SLOPE = {slope}\n")
        (folder / "net.py").write_text(
            "from our_slope import SLOPE\nfrom torch import nn\n\n"
            "class Net(nn.Module):\n"
            "    def forward(self, x):\n        return SLOPE * x.flatten(1)[:, :10]\n"
        )
    before = list(sys.path)
    x = torch.rand(2, *SHAPE)
    model = External(python=f"{here}/net.py:Net").build(SHAPE, 10)
    assert torch.equal(model(x), x.flatten(1)[:, :10])
    # Python would give the second file the module of the first.
    words = refusal(python=f"{there}/net.py:Net")
    assert "two modules are named 'our_slope'" in words
    assert sys.path == before
    assert "the file has no 'Nett': did you mean 'Net'?" in refusal(python=f"{here}/net.py:Nett")
    del sys.modules["our_slope"]


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("number", {}, "gives a int, not an nn.Module"),
        ("failing", {}, "RuntimeError: first line second line"),
        ("absent", {}, "the file has no 'absent'"),
        ("Net", {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("Net", {"classes": 2}, "gives (1, 2) for an image, not logits (1, 10)"),
    ],
)
def test_factories_that_give_no_classifier_are_refused(
    name: str, kwargs: dict[str, Any], words: str, code: Path
) -> None:
    assert words in refusal(model=f"{code}:{name}", kwargs=kwargs)


def test_other_refusals(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(model=f"{tmp_path}/none.py:Net")
    assert "ModuleNotFoundError" in refusal(model="no_such_package.models:Net")
    assert "unknown architecture 'resnet'" in refusal(model="resnet")
    assert "both mean and std" in refusal(model="mlp", mean=(0.5,))
    assert "std above 0" in refusal(model="mlp", mean=(0.5,), std=(0.0,))
    assert "3 means for 1 channels" in refusal(model="mlp", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert "model='mlp'" in refusal(arch="mlp")
    assert "layers and model name 2 models" in refusal(layers=LAYERS, model="mlp")
    for others in ({"widen": 2.0}, {"kwargs": {"classes": 10}}):
        assert "leave out kwargs and widen" in refusal(layers=LAYERS, **others)


def test_importing_defenses_needs_torch_and_numpy_alone() -> None:
    program = (
        "import sys, defenses; "
        "print([name for name in ('safetensors', 'sklearn', 'pandas', 'benchmark', 'foolbox') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
