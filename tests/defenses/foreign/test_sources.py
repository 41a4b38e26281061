"""Small networks from each source give the logits of the torch networks that they were made of."""

import json
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses import External
from defenses.foreign.extras import installed
from defenses.foreign.torchvision_source import import_torchvision

# torch's exporter imports it where it is installed, also where it does not import.
if installed("torchvision"):
    import_torchvision()

SHAPE, CLASSES = (3, 16, 16), 5
X = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """Convolutions, batch norm, a residual sum and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.last = nn.MaxPool2d(2), nn.Linear(8 * 64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.pool(torch.relu(self.second(x) + x))
        logits: Tensor = self.last(x.view(x.shape[0], -1))
        return logits


class Attention(nn.Module):
    """Patches, a class token, a transformer's layer and its last token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1)
        logits: Tensor = self.last(self.layer(tokens)[:, 0])
        return logits


def _smooth() -> nn.Module:
    """Activations and normalisations that newer operators are for, and global pooling."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.GELU(), nn.GroupNorm(2, 8), nn.SiLU(), nn.Hardswish(),
        nn.AvgPool2d(2), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, CLASSES),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual, "attention": Attention, "smooth": _smooth,
}  # fmt: skip


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.uniform_(-0.1, 0.1)  # type: ignore[operator,union-attr]
    # A transformer's layer is fused where nothing needs gradients, which torch exports nowhere.
    return network


def _built(**options: Any) -> nn.Module:
    return External(**options).build(SHAPE, CLASSES).eval()


def _agree(model: nn.Module, network: nn.Module, tolerance: float = 1e-5) -> None:
    """The same logits, for any number of images, and gradients."""
    for count in (1, 6):
        torch.testing.assert_close(model(X[:count]), network(X[:count]), rtol=0, atol=tolerance)
    slopes = []
    for function in (model, network):
        x = X.clone().requires_grad_()
        slopes.append(torch.autograd.grad(function(x).square().sum(), x)[0])
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-4)


def _refusal(**options: Any) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        _built(**options)
    return str(error.value)


def _export(network: nn.Module, path: Path, opset: int, free: bool) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx2torch")
    x = X[: 2 if free else 1]
    if opset < 18:
        axes = {"dynamic_axes": {"x": {0: "n"}}} if free else {}
        torch.onnx.export(
            network, (x,), path, opset_version=opset, dynamo=False, input_names=["x"], **axes
        )
        return
    pytest.importorskip("onnxscript")
    shapes = ({0: torch.export.Dim("n")},) if free else None
    torch.onnx.export(
        network, (x,), path, opset_version=opset, dynamo=True, dynamic_shapes=shapes,
        external_data=False, verbose=False,
    )  # fmt: skip


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 21, 23])
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx(name: str, opset: int, free: bool, tmp_path: Path) -> None:
    if name == "attention" and opset < 14:
        pytest.skip("torch exports no attention to so early a version")
    network = _network(name)
    _export(network, tmp_path / "net.onnx", opset, free)
    _agree(_built(onnx=str(tmp_path / "net.onnx")), network)


def test_onnx_for_flat_images_and_for_channels_last(tmp_path: Path) -> None:
    flat = nn.Linear(3 * 16 * 16, CLASSES).eval().requires_grad_(False)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat = flat

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.flat(x.permute(0, 3, 1, 2).flatten(1))
            return logits

    pytest.importorskip("onnxruntime")
    for name, module, x in (("a", flat, X.flatten(1)), ("b", Last().eval(), X.movedim(1, -1))):
        path = tmp_path / f"{name}.onnx"
        torch.onnx.export(module, (x[:1].contiguous(),), path, opset_version=13, dynamo=False)
        _agree(_built(onnx=str(path)), nn.Sequential(nn.Flatten(), flat))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_onnx_in_another_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx2torch")
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, CLASSES)).to(dtype).eval()
    path = tmp_path / "net.onnx"
    torch.onnx.export(network, (X[:1].to(dtype),), path, opset_version=13, dynamo=False)
    logits = _built(onnx=str(path))(X)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits, network(X.to(dtype)))


class Mixed(nn.Module):
    """Small differences in float32 and, behind a cast, weights in float16."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Linear(3 * 16 * 16, CLASSES).half()

    def forward(self, x: Tensor) -> Tensor:
        near = 1000 * (x - 0.5)
        logits: Tensor = self.flat(near.half().flatten(1)).float()
        return logits


def test_onnx_in_mixed_precision_takes_images_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx2torch")
    torch.manual_seed(0)
    network, path = Mixed().eval(), tmp_path / "net.onnx"
    torch.onnx.export(network, (X[:1],), path, opset_version=13, dynamo=False)
    x = 0.5 + 1e-5 * X  # as float16, all of it is a half
    logits = _built(onnx=str(path))(x)
    assert logits.unique().numel() > CLASSES
    torch.testing.assert_close(logits, network(x), rtol=0.05, atol=0.01)


def test_a_network_that_is_another_function_on_normalised_images_is_refused(
    tmp_path: Path,
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx2torch")
    kinds = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 4, 4])
        for name in "xy"
    ]
    scale = onnx.helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [0.1])
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], output_dtype=3),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale"], ["y"]),
    ]
    graph = onnx.helper.make_graph(nodes, "graph", kinds[:1], kinds[1:], [scale])
    opsets = [onnx.helper.make_opsetid("", 21)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "q.onnx"
    )
    assert "another function" in _refusal(onnx=str(tmp_path / "q.onnx"))


def test_an_output_of_several_is_named(tmp_path: Path) -> None:
    network = _network("residual")

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.network(x)
            return logits.softmax(1), logits

    pytest.importorskip("onnxruntime")
    path = tmp_path / "two.onnx"
    names = ["probabilities", "scores"]
    torch.onnx.export(
        Two().eval(), (X[:1],), path, opset_version=13, dynamo=False, output_names=names
    )
    _agree(_built(onnx=str(path), output="scores"), network)
    assert "no output 'logits'" in _refusal(onnx=str(path), output="logits")
    assert "output=" in _refusal(onnx=str(path))


def test_a_network_that_is_converted_to_another_function_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _export(_network("residual"), tmp_path / "net.onnx", 13, True)
    from defenses.foreign.onnx_graphs.onnx_file import OnnxFile

    run = OnnxFile.run
    monkeypatch.setattr(OnnxFile, "run", lambda self, x: [1.1 * y for y in run(self, x)])
    assert "is another function when it is converted: output" in _refusal(
        onnx=str(tmp_path / "net.onnx")
    )


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_programs(name: str, free: bool, tmp_path: Path) -> None:
    network = _network(name)
    shapes = ({0: torch.export.Dim("n")},) if free else None
    program = torch.export.export(network, (X[: 2 if free else 1],), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    model = _built(exported=str(tmp_path / "net.pt2"))
    _agree(model, network)
    assert getattr(model, "note", "") == (
        "" if free else "it takes 1 image at once, as it was exported"
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_torchscript(name: str, tmp_path: Path) -> None:
    network = _network(name)
    torch.jit.trace(network, X[:2], check_trace=False).save(str(tmp_path / "net.ts"))
    _agree(_built(script=str(tmp_path / "net.ts")), network)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["exported", "script"])
def test_programs_in_another_precision(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, CLASSES)).to(dtype).eval()
    x, path = X[:2].to(dtype), tmp_path / "net"
    if kind == "exported":
        shapes = ({0: torch.export.Dim("n")},)
        torch.export.save(torch.export.export(network, (x,), dynamic_shapes=shapes), path)
    else:
        torch.jit.trace(network, x, check_trace=False).save(str(path))
    model = _built(**{kind: str(path)}, mean=(0.25,), std=(0.5,))
    expected = network(((X - 0.25) / 0.5).to(dtype)).float()
    torch.testing.assert_close(model(X).float(), expected, rtol=0.02, atol=0.02)


def test_frozen_torchscript(tmp_path: Path) -> None:
    network = _network("residual")
    torch.jit.freeze(torch.jit.trace(network, X[:2])).save(str(tmp_path / "net.ts"))
    _agree(_built(script=str(tmp_path / "net.ts")), network)


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **options).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    given = {"timm": "vit_tiny_patch16_224", "kwargs": options}
    given["weights"] = tmp_path / "w.pt"
    model = _built(**given, mean=(0.5,) * 3, std=(0.25,) * 3)
    torch.testing.assert_close(model(X), network((X - 0.5) / 0.25), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="give the mean and std that these weights"):
        External(**given).check_weights()
    with pytest.raises(ValueError, match="give weights, pretrained for the library's"):
        External(timm="vit_tiny_patch16_224").check_weights()
    assert "timm has no model 'vit_tiny_patch99'" in _refusal(timm="vit_tiny_patch99")


@pytest.mark.skipif(not installed("torchvision"), reason="torchvision is not installed")
def test_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = import_torchvision().models.squeezenet1_1(num_classes=CLASSES).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    model = External(
        torchvision="squeezenet1_1", weights=tmp_path / "w.pt", mean=(0.0,), std=(1.0,)
    ).build((3, 32, 32), CLASSES)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), network(x))
    assert "torchvision has no classifier 'squeezenet'" in _refusal(torchvision="squeezenet")


def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=CLASSES,
    )  # fmt: skip
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "vit")
    processor = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    model = _built(transformers=str(tmp_path / "vit"))
    expected = network((X - 0.5) / 0.25).logits
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-5)
    processor |= {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [63.75] * 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    torch.testing.assert_close(
        _built(transformers=str(tmp_path / "vit"))(X), expected, rtol=0, atol=1e-4
    )
    assert "give pretrained to fetch it" in _refusal(transformers="no/such")


def test_what_a_processor_does_is_taken_or_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 48]}
    network = transformers.MobileViTForImageClassification(
        transformers.MobileViTConfig(num_labels=CLASSES, image_size=32, **size)
    ).eval()
    network.save_pretrained(tmp_path / "net")
    transformers.MobileViTImageProcessor().save_pretrained(tmp_path / "net")  # blue comes first
    given = {"transformers": str(tmp_path / "net")}
    with pytest.raises(ValueError, match="more than scale and move each channel: give the mean"):
        External(**given).build((3, 32, 32), CLASSES)
    model = External(**given, mean=(0.0,), std=(1.0,)).build((3, 32, 32), CLASSES).eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), network(x).logits)


def test_transformers_of_series_and_sound(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"d_model": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16}
    series = transformers.PatchTSTForClassification(
        transformers.PatchTSTConfig(
            num_input_channels=2, context_length=32, patch_length=8, patch_stride=8,
            num_targets=CLASSES, use_cls_token=True, **small,
        )
    ).eval()  # fmt: skip
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    size |= {"intermediate_size": 16, "num_labels": CLASSES}
    sound = transformers.ASTForAudioClassification(
        transformers.ASTConfig(
            num_mel_bins=16, max_length=32, patch_size=8, frequency_stride=8, time_stride=8, **size
        )
    ).eval()
    for name, network, shape in (("series", series, (32, 2)), ("sound", sound, (32, 16))):
        network.save_pretrained(tmp_path / name)
        if name == "sound":
            facts = {"feature_extractor_type": "ASTFeatureExtractor", "mean": -4.2}
            (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(facts))
        capfd.readouterr()
        model = External(transformers=str(tmp_path / name)).build(shape, CLASSES).eval()
        assert capfd.readouterr() == ("", "")
        x = torch.rand(3, *shape)
        outputs = network(x)
        expected = outputs.logits if name == "sound" else outputs.prediction_logits
        torch.testing.assert_close(model(x), expected)
        assert ("feature extractor" in getattr(model, "note", "")) == (name == "sound")
    text = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=50, **size)
    )
    text.save_pretrained(tmp_path / "text")
    assert "takes the numbers of words" in _refusal(transformers=str(tmp_path / "text"))


def test_robustbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package, which does not install beside every torch."""
    network = _network("residual")
    package, utils = types.ModuleType("robustbench"), types.ModuleType("robustbench.utils")
    package.__file__, package.__path__ = str(tmp_path / "robustbench" / "__init__.py"), []  # type: ignore[attr-defined]
    asked: list[tuple[str, ...]] = []

    def load_model(*names: str) -> nn.Module:
        asked.append(names)
        return network

    utils.load_model = load_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "robustbench", package)
    monkeypatch.setitem(sys.modules, "robustbench.utils", utils)
    source = "defenses.foreign.robustbench_source"
    monkeypatch.setattr(f"{source}.need", lambda *_: None)
    monkeypatch.setattr(f"{source}.installed", lambda _: False)
    info = tmp_path / "robustbench" / "model_info" / "cifar10" / "Linf"
    info.mkdir(parents=True)
    facts = {"clean_acc": "89.69", "autoattack_acc": "59.53", "eps": "8/255"}
    (info / "Some.json").write_text(json.dumps(facts))
    given = {"robustbench": "Some/cifar10/Linf", "kwargs": {"model_dir": str(tmp_path)}}
    assert "is missing: give pretrained to fetch it" in _refusal(**given)
    file = tmp_path / "cifar10" / "Linf" / "Some.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    model = _built(**given)
    _agree(model, network)
    assert asked == [("Some", str(tmp_path), "cifar10", "Linf")]
    assert model.note == (
        "RobustBench reports 89.69% natural and 59.53% robust accuracy under Linf eps 8/255"
    )
    assert "write it as NAME/DATASET/THREAT" in _refusal(robustbench="Some")


def test_what_a_model_expects_and_returns(tmp_path: Path) -> None:
    code = tmp_path / "nets.py"
    code.write_text(
        "import torch\n"
        "class Bytes(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        z = (x - 100).flatten(1)[:, :7]\n"
        "        return {'features': x, 'scores': z}\n"
        "class One(torch.nn.Module):\n"
        "    def forward(self, x): return x.flatten(1).sum(1) - 1\n"
    )
    model = External(
        python=f"{code}:Bytes", range=(0, 255), output="scores", classes=(6, 0, 3)
    ).build(SHAPE, 3)
    expected = (255 * X - 100).flatten(1)[:, [6, 0, 3]]
    torch.testing.assert_close(model(X), expected)
    model = External(python=f"{code}:One", binary=True).build(SHAPE, 2)
    assert torch.equal(model(X)[:, 1], X.flatten(1).sum(1) - 1)
    assert torch.equal(model(X)[:, 0], torch.zeros(6))
    with pytest.raises(ValueError, match="give binary where it is one logit"):
        External(python=f"{code}:One").build(SHAPE, 2)
    with pytest.raises(ValueError, match=r"say by classes=\.\.\. which"):
        External(python=f"{code}:Bytes", output="scores").build(SHAPE, CLASSES)


class Evil:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("unpickled").touch, ())


@pytest.mark.parametrize("kind", ["onnx", "exported", "script"])
def test_files_that_cannot_be_used_get_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "onnx":
        pytest.importorskip("onnx2torch")
        pytest.importorskip("onnxruntime")
    path = tmp_path / "model"
    assert "there is no such file" in _refusal(**{kind: str(path)})
    for content in (b"", b"nothing of the kind", pickle.dumps(Evil())):
        path.write_bytes(content)
        assert str(path) in _refusal(**{kind: str(path)})
    torch.save(Evil(), path)
    assert str(path) in _refusal(**{kind: str(path)})
    assert not (tmp_path / "unpickled").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defenses.foreign.extras.installed", lambda package: False)
    assert "needs timm: pip install 'bestattack[timm]'" in _refusal(timm="resnet18")
    assert "needs onnx, onnx2torch, onnxruntime: pip install" in _refusal(onnx="x.onnx")


def test_one_source_is_named() -> None:
    for options in ({"onnx": "a", "timm": "b"}, {"script": "a", "layers": "ReLU()"}):
        assert "name 2 models: keep one" in _refusal(**options)
    assert "pretrained is for weights of a library" in _refusal(onnx="a", pretrained=True)
