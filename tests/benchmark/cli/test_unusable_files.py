"""Files of models and of data that cannot be used get one line each, and leave nothing behind."""

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from defenses.foreign.extras import installed
from defenses.foreign.torchvision_source import import_torchvision
from tests.conftest import Cli
from tests.malice import Malice

DIGITS = "digits"


OWNED = Malice(Path("unpickled"))


def _code(body: str) -> Callable[[], None]:
    return lambda: _write("net.py", f"import torch\nfrom torch import nn\n{body}\n")


def _write(name: str, content: str | bytes) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


def _image(name: str, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    image = pytest.importorskip("PIL.Image")
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    image.new(mode, size).save(name)


def _images(odd: Callable[[], None]) -> Callable[[], None]:
    def make() -> None:
        for name in ("photos/a/1.png", "photos/b/1.png"):
            _image(name)
        odd()

    return make


def _arrays(**arrays: Any) -> Callable[[], None]:
    return lambda: np.savez("x.npz", **arrays)


def _onnx(module: nn.Module, cut: int | None = None) -> Callable[[], None]:
    def make() -> None:
        _need_onnx()
        torch.onnx.export(module.eval(), (torch.rand(1, 1, 8, 8),), "net.onnx", dynamo=False)
        if cut is not None:
            _write("net.onnx", Path("net.onnx").read_bytes()[:cut])

    return make


def _need_onnx() -> None:
    """Skips the test where the packages are not installed. Nothing is imported before torchvision,
    which does not import beside every torch as it is."""
    for package in ("onnx", "onnx2torch", "onnxruntime"):
        if not installed(package):
            pytest.skip(f"{package} is not installed")
    if installed("torchvision"):
        import_torchvision()


def _unknown_operator() -> None:
    _need_onnx()
    onnx = pytest.importorskip("onnx")
    kinds = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 1, 8, 8]), ("y", [1, 10]))
    ]
    node = onnx.helper.make_node("Sorcery", ["x"], ["y"], domain="ours")
    graph = onnx.helper.make_graph([node], "graph", kinds[:1], kinds[1:])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ours", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), "net.onnx")


def _all(*makes: Callable[[], object]) -> Callable[[], None]:
    def make() -> None:
        for part in makes:
            part()

    return make


def _linear(*shape: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(*shape))


def _network(body: str) -> Callable[[], None]:
    return _code(f"class Net(nn.Module):\n    def forward(self, x): {body}")


X, Y = np.zeros((6, 8, 8), np.uint8), np.arange(6) % 2

# What makes the files, the data, the model, and a part of the line.
MODELS: dict[str, tuple[Callable[[], None], str, str]] = {
    "no file": (lambda: None, "onnx=net.onnx", "there is no such file"),
    "a truncated ONNX file": (_onnx(_linear(64, 10), 900), "onnx=net.onnx", "net.onnx: "),
    "an unknown operator": (_unknown_operator, "onnx=net.onnx", "Sorcery"),
    "a network for other images": (_onnx(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))),
                                   "onnx=net.onnx", "(1, 3) for an image"),
    "another size": (_code("def Net(): return nn.Sequential(nn.Flatten(), nn.Linear(9, 10))"),
                     "python=net.py:Net", "shapes cannot be multiplied"),
    "a pickle": (lambda: torch.save(OWNED, "net.ts"), "script=net.ts", "net.ts: "),
    "a bare pickle": (lambda: _write("net.pt2", pickle.dumps(OWNED)), "exported=net.pt2",
                      "net.pt2: "),
    "a pickle as weights": (_all(_code("def Net(): return nn.Linear(8, 2)"),
                                 lambda: torch.save(OWNED, "w.pt")),
                            "python=net.py:Net/weights=w.pt/mean=0/std=1", "w.pt"),
    "damaged weights": (_all(_code("def Net(): return nn.Linear(8, 2)"),
                             lambda: _write("w.safetensors", b"\x10" * 50)),
                        "python=net.py:Net/weights=w.safetensors/mean=0/std=1", "w.safetensors"),
    "weights of another network": (
        _all(_code("def Net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))"),
             lambda: torch.save(nn.Linear(3, 3).state_dict(), "w.pt")),
        "python=net.py:Net/weights=w.pt/mean=0/std=1", "does not fit"),
    "code that fails": (_code("raise RuntimeError('no')"), "python=net.py:Net", "no"),
    "no such name": (_code(""), "python=net.py:Net", "Net"),
    "no logits": (_network("return {'a': 1}"), "python=net.py:Net", "a dict with 'a'"),
    "other classes": (_network("return x.flatten(1)[:, :7]"), "python=net.py:Net",
                      "(1, 7) for an image"),
    "an empty program": (lambda: _write("net.pt2", b""), "exported=net.pt2", "net.pt2: "),
    "packed text": (lambda: _write("net.onnx", gzip.compress(b"nothing")), "onnx=net.onnx",
                    "net.onnx: "),
}  # fmt: skip
DATA: dict[str, tuple[Callable[[], None], str, str]] = {
    "no labels": (_arrays(x=X), "npz=x.npz/scale=255", "has images and no labels"),
    "too few labels": (_arrays(x=X, y=Y[:4]), "npz=x.npz/scale=255", "6, 8, 8) images and 4"),
    "no scale": (_arrays(x=X + 9, y=Y), "npz=x.npz", "add scale=255"),
    "NaN in images": (_arrays(x=np.full((6, 4), np.nan), y=Y), "npz=x.npz", "hold NaN"),
    "objects": (lambda: np.savez("x.npz", x=np.array([OWNED] * 6), y=Y), "npz=x.npz",
                "may run code"),
    "a truncated archive": (
        _all(_arrays(x=X, y=Y), lambda: _write("x.npz", Path("x.npz").read_bytes()[:200])),
        "npz=x.npz/scale=255", "is damaged"),
    "an unreadable image": (_images(lambda: _write("photos/a/2.png", b"no image")),
                            "folder=photos", "photos/a/2.png cannot be read"),
    "a truncated image": (
        _images(lambda: _write("photos/a/2.png", Path("photos/a/1.png").read_bytes()[:45])),
        "folder=photos", "photos/a/2.png cannot be read"),
    "mixed sizes": (_images(lambda: _image("photos/a/2.png", (9, 8))), "folder=photos",
                    "add size=8"),
    "many bits": (_images(lambda: _image("photos/a/2.png", mode="I;16")), "folder=photos",
                  "more than 8 bits"),
    "an empty class": (_images(lambda: Path("photos/c").mkdir()), "folder=photos",
                       "holds no images"),
    "no classes": (lambda: _image("photos/1.png"), "folder=photos", "has no folders"),
    "a missing label column": (lambda: _write("t.csv", "a,b\n1,0\n2,1\n"),
                               "csv=t.csv/label=kind", "kind"),
    "NaN in a column": (lambda: _write("t.csv", "a,b,kind\n1,0.5,x\n2,,y\n3,0.5,x\n"),
                        "csv=t.csv/label=kind", "b"),
    "text that is no table": (lambda: _write("t.csv", b"\xff\xfe\x00\x01"), "csv=t.csv",
                              "t.csv"),
    "an empty table": (lambda: _write("t.csv", ""), "csv=t.csv", "t.csv"),
    "no Parquet": (lambda: _write("t.parquet", "a,b\n"), "parquet=t.parquet", "t.parquet"),
}  # fmt: skip


def _refused(cli: Cli, home: Path, data: str, defense: str, line: str) -> None:
    before = {path for path in home.rglob("*") if "__pycache__" not in path.parts}
    ended = cli(
        "run", "--quiet", "--data", data, "--defense", defense, "--eps", 0.1, "--attack", "pgd",
        "--out", "run",
    )  # fmt: skip
    assert ended.status == 1, ended
    assert line in ended.err
    assert ended.err.count("\n") == 1
    assert not ended.out
    after = {path for path in home.rglob("*") if "__pycache__" not in path.parts}
    # The folder of a run that was begun says what was asked for, at most.
    assert {path.name for path in after - before} <= {"run", ".lock"}


@pytest.mark.parametrize("kind", MODELS)
def test_models(kind: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, model, line = MODELS[kind]
    monkeypatch.chdir(tmp_path)
    make()
    _refused(cli, tmp_path, DIGITS, f"external/{model}", line)


@pytest.mark.parametrize("kind", DATA)
def test_data(kind: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, data, line = DATA[kind]
    monkeypatch.chdir(tmp_path)
    if kind == "no Parquet":
        pytest.importorskip("pyarrow")
    make()
    _refused(cli, tmp_path, data, "vanilla/epochs=0", line)
