"""Networks in ONNX give the logits of the torch networks that they were exported from."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.defenses.foreign.small_networks import (
    CLASSES,
    NETWORKS,
    X,
    agree,
    built,
    refusal,
    small_network,
)


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
    network = small_network(name)
    _export(network, tmp_path / "net.onnx", opset, free)
    agree(built(onnx=str(tmp_path / "net.onnx")), network)


def test_onnx_for_a_batch_of_several_takes_any_number(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = small_network("residual")
    path = tmp_path / "net.onnx"
    torch.onnx.export(network, (X[:3],), path, opset_version=13, dynamo=False)
    model = built(onnx=str(path))
    agree(model, network)
    assert not hasattr(model, "note")


def test_an_output_of_several_is_named_or_counted(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small_network("residual")

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.network(x)
            return 2 * logits, logits

    two, path = Two().eval(), tmp_path / "net.onnx"
    torch.onnx.export(
        two, (X[:1],), path, opset_version=13, dynamo=False, output_names=["double", "plain"]
    )
    for output in (1, "plain"):
        agree(built(onnx=str(path), output=output), two.network)


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
        agree(built(onnx=str(path)), nn.Sequential(nn.Flatten(), flat))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_onnx_in_another_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx2torch")
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, CLASSES)).to(dtype).eval()
    path = tmp_path / "net.onnx"
    torch.onnx.export(network, (X[:1].to(dtype),), path, opset_version=13, dynamo=False)
    logits = built(onnx=str(path))(X)
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
    logits = built(onnx=str(path))(x)
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
    assert "another function" in refusal(onnx=str(tmp_path / "q.onnx"))


def test_an_output_of_several_is_named(tmp_path: Path) -> None:
    network = small_network("residual")

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
    agree(built(onnx=str(path), output="scores"), network)
    assert "no output 'logits'" in refusal(onnx=str(path), output="logits")
    assert "output=" in refusal(onnx=str(path))


def test_a_network_that_is_converted_to_another_function_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _export(small_network("residual"), tmp_path / "net.onnx", 13, True)
    from defenses.foreign.onnx_graphs.onnx_file import OnnxFile

    run = OnnxFile.run
    monkeypatch.setattr(OnnxFile, "run", lambda self, x: [1.1 * y for y in run(self, x)])
    assert "is another function when it is converted: output" in refusal(
        onnx=str(tmp_path / "net.onnx")
    )
