"""Small networks from each source give the logits of the torch networks that they were made of."""

import json
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from defenses import External
from defenses.foreign.extras import installed
from defenses.foreign.torchvision_source import import_torchvision
from tests.defenses.foreign.small_networks import (
    CLASSES,
    NETWORKS,
    SHAPE,
    X,
    agree,
    built,
    refusal,
    small_network,
)
from tests.malice import Malice


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_exported_programs(name: str, free: bool, tmp_path: Path) -> None:
    network = small_network(name)
    shapes = ({0: torch.export.Dim("n")},) if free else None
    program = torch.export.export(network, (X[: 2 if free else 1],), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    model = built(exported=str(tmp_path / "net.pt2"))
    agree(model, network)
    assert getattr(model, "note", "") == (
        "" if free else "it takes 1 image at once, as it was exported"
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_torchscript(name: str, tmp_path: Path) -> None:
    network = small_network(name)
    torch.jit.trace(network, X[:2], check_trace=False).save(str(tmp_path / "net.ts"))
    agree(built(script=str(tmp_path / "net.ts")), network)


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
    model = built(**{kind: str(path)}, mean=(0.25,), std=(0.5,))
    expected = network(((X - 0.25) / 0.5).to(dtype)).float()
    torch.testing.assert_close(model(X).float(), expected, rtol=0.02, atol=0.02)


def test_frozen_torchscript(tmp_path: Path) -> None:
    network = small_network("residual")
    torch.jit.freeze(torch.jit.trace(network, X[:2])).save(str(tmp_path / "net.ts"))
    agree(built(script=str(tmp_path / "net.ts")), network)


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **options).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    given = {"timm": "vit_tiny_patch16_224", "kwargs": options}
    given["weights"] = tmp_path / "w.pt"
    model = built(**given, mean=(0.5,) * 3, std=(0.25,) * 3)
    torch.testing.assert_close(model(X), network((X - 0.5) / 0.25), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="give the mean and std that these weights"):
        External(**given).check_weights()
    with pytest.raises(ValueError, match="give weights, pretrained for the library's"):
        External(timm="vit_tiny_patch16_224").check_weights()
    assert "timm has no model 'vit_tiny_patch99'" in refusal(timm="vit_tiny_patch99")


@pytest.mark.skipif(not installed("torchvision"), reason="torchvision is not installed")
def test_weights_of_more_classes_than_the_data_has(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", num_classes=17).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    given = {"timm": "resnet10t", "weights": tmp_path / "w.pt", "mean": (0.0,), "std": (1.0,)}
    chosen = (16, 2, 0, 5, 9)
    torch.testing.assert_close(built(**given, classes=chosen)(X), network(X)[:, chosen])
    assert "is of 17 classes: say by classes=..." in refusal(**given)
    assert "did you mean 'resnet10t'?" in refusal(timm="resnet10x", pretrained=True)


def test_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = import_torchvision().models.squeezenet1_1(num_classes=CLASSES).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    model = External(
        torchvision="squeezenet1_1", weights=tmp_path / "w.pt", mean=(0.0,), std=(1.0,)
    ).build((3, 32, 32), CLASSES)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), network(x))
    assert "torchvision has no classifier 'squeezenet'" in refusal(torchvision="squeezenet")


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
    model = built(transformers=str(tmp_path / "vit"))
    expected = network((X - 0.5) / 0.25).logits
    torch.testing.assert_close(model(X), expected, rtol=0, atol=1e-5)
    processor |= {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [63.75] * 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    torch.testing.assert_close(
        built(transformers=str(tmp_path / "vit"))(X), expected, rtol=0, atol=1e-4
    )
    assert "give pretrained to fetch it" in refusal(transformers="no/such")


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
    assert "takes the numbers of words" in refusal(transformers=str(tmp_path / "text"))


def test_robustbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package, which does not install beside every torch."""
    network = small_network("residual")
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
    assert "is missing: give pretrained to fetch it" in refusal(**given)
    file = tmp_path / "cifar10" / "Linf" / "Some.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    model = built(**given)
    agree(model, network)
    assert asked == [("Some", str(tmp_path), "cifar10", "Linf")]
    assert model.note == (
        "RobustBench reports 89.69% natural and 59.53% robust accuracy under Linf eps 8/255"
    )
    assert "write it as NAME/DATASET/THREAT" in refusal(robustbench="Some")


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


@pytest.mark.parametrize("kind", ["onnx", "exported", "script"])
def test_files_that_cannot_be_used_get_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "onnx":
        pytest.importorskip("onnx2torch")
        pytest.importorskip("onnxruntime")
    path = tmp_path / "model"
    assert "there is no such file" in refusal(**{kind: str(path)})
    for content in (b"", b"nothing of the kind", pickle.dumps(Malice(tmp_path / "unpickled"))):
        path.write_bytes(content)
        assert str(path) in refusal(**{kind: str(path)})
    if kind != "onnx":
        torch.save(nn.Linear(2, 2).state_dict(), path)
        assert "holds weights, not a program" in refusal(**{kind: str(path)})
    torch.save(Malice(tmp_path / "unpickled"), path)
    assert str(path) in refusal(**{kind: str(path)})
    assert not (tmp_path / "unpickled").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defenses.foreign.extras.installed", lambda package: False)
    assert "needs timm: pip install 'bestattack[timm]'" in refusal(timm="resnet18")
    assert "needs onnx, onnx2torch, onnxruntime: pip install" in refusal(onnx="x.onnx")


def test_one_source_is_named() -> None:
    for options in ({"onnx": "a", "timm": "b"}, {"script": "a", "layers": "ReLU()"}):
        assert "name 2 models: keep one" in refusal(**options)
    assert "pretrained is for weights of a library" in refusal(onnx="a", pretrained=True)
