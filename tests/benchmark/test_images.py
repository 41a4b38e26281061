"""Many images stay as they are stored: what is read of them is what a tensor would hold."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmark import images
from benchmark.data import dataset, given
from benchmark.data.dataset import Dataset, Split, fingerprint
from benchmark.data.files import DataError
from benchmark.data.sets import load_dataset
from benchmark.data.sources import arrays
from benchmark.direct.evaluate import evaluate
from benchmark.errors import UserError
from benchmark.images import Images, Rows
from benchmark.report.report import Report
from benchmark.run import geometry

N, SHAPE = 40, (3, 6, 6)
BYTES = np.random.default_rng(0).integers(0, 256, (N, *SHAPE), np.uint8)
LABELS = np.arange(N) % 2
WHOLE = torch.from_numpy(np.divide(BYTES, 255, dtype=np.float32))


@pytest.fixture
def few_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set is small enough to be kept as a tensor."""
    for module in (images, given):
        monkeypatch.setattr(module, "MOST_BYTES", 0)
    for module in (dataset, geometry, given):
        monkeypatch.setattr(module, "BLOCK", 7)


def _read(rows: Rows) -> Tensor:
    return WHOLE[torch.from_numpy(rows)]


MANY = Images(_read, np.arange(N), SHAPE)


@pytest.mark.parametrize(
    "rows",
    [
        slice(5),
        slice(None, None, 3),
        slice(50, 60),
        torch.tensor([7, 0, 7]),
        np.array([3, 1]),
        torch.arange(N) % 3 == 0,
        [4, 5],
        2,
        torch.tensor(6),
    ],
)
def test_rows_are_those_of_a_tensor(rows: object) -> None:
    assert MANY[rows].equal(WHOLE[rows])  # type: ignore[index]
    if not isinstance(rows, int) and rows is not None and np.ndim(rows) > 0:  # type: ignore[arg-type]
        assert MANY.only(rows)[:].equal(WHOLE[rows])  # type: ignore[index]
        assert MANY.only(rows).only(slice(1))[:].equal(WHOLE[rows][:1])  # type: ignore[index]


def test_all_of_them_are_those_of_a_tensor() -> None:
    assert len(MANY) == N
    assert MANY.shape == WHOLE.shape
    assert torch.cat(list(MANY.split(7))).equal(WHOLE)
    assert MANY.to(torch.float64).equal(WHOLE.double())
    assert MANY.changed(lambda x: 1 - x)[3:5].equal(1 - WHOLE[3:5])
    assert fingerprint(MANY) == fingerprint(WHOLE)


def test_only_what_is_asked_for_is_read() -> None:
    seen: list[int] = []

    def read(rows: Rows) -> Tensor:
        seen.extend(rows.tolist())
        return _read(rows)

    watched = Images(read, np.arange(N), SHAPE).only(slice(10, None)).changed(torch.sqrt)
    data = Dataset("noise", ("0", "1"), SHAPE, lambda part: Split(watched, torch.arange(30) % 2))
    first = data.first("test", 4)
    assert not seen
    assert first.x[1:].shape == (3, *SHAPE)
    assert seen == [11, 12, 13]


def test_images_outside_of_the_range_are_refused_when_they_are_read() -> None:
    data = Dataset(
        "noise", ("0", "1"), SHAPE, lambda part: Split(MANY.changed(lambda x: 2 * x), LABELS_OF)
    )
    with pytest.raises(DataError, match="the test images are not float32 in"):
        data.fingerprint("test")


LABELS_OF = torch.from_numpy(LABELS)
FORMS = ["", "/pair=1-0", "/binarize", "/smooth=3/gamma=0.5", "/train=10", "/scramble=50"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["npz", "npy", "folder"])
def test_data_from_files_is_the_same_as_if_it_were_small(
    kind: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = _written(kind, tmp_path) + form
    small = load_dataset(name)
    assert isinstance(small.test.x, Tensor)
    for module in (images, given, arrays):
        monkeypatch.setattr(module, "MOST_BYTES", 0)
    for module in (arrays, dataset):
        monkeypatch.setattr(module, "BLOCK", 7)
    large = load_dataset(name)
    for part in ("train", "test"):
        few, many = small.split(part), large.split(part)  # type: ignore[arg-type]
        assert isinstance(many.x, Images)
        assert many.x[:].equal(few.x[:])
        assert many.y.equal(few.y)
        assert large.fingerprint(part) == small.fingerprint(part)  # type: ignore[arg-type]


def _written(kind: str, home: Path) -> str:
    """The name of the images as a data set of that kind, once they are written."""
    if kind == "folder":
        image = pytest.importorskip("PIL.Image")
        for row in range(N):
            path = home / "pictures" / "ab"[LABELS[row]] / f"{row:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(BYTES[row].transpose(1, 2, 0)).save(path)
        return f"folder={home / 'pictures'}/split=0.5"
    np.save(home / "y.npy", LABELS)
    if kind == "npy":
        np.save(home / "x.npy", BYTES)
        return f"npy={home / 'x.npy'}/labels=y.npy/scale=255/split=0.5"
    np.savez(home / "x.npz", x=BYTES, y=LABELS)
    return f"npz={home / 'x.npz'}/scale=255/split=0.5"


def _model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[3].bias -= model(WHOLE).mean(0)  # about as many images of either class
    return model


def _outcome(report: Report) -> list[object]:
    (adversarial,) = report.adversarial.values()
    return [
        report.natural,
        report.best_attack,
        adversarial.index.tolist(),
        adversarial.points.tolist(),
    ]


HOW = {
    "plain": {"eps": 0.05},
    "by feature": {"eps": np.linspace(0.01, 0.1, 6)},
    "bounds": {"eps": 0.05, "bounds": (-0.5, 1.5)},
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.usefixtures("few_fit")
def test_evaluate_finds_the_same(how: dict[str, object]) -> None:
    model = _model()
    y = model(WHOLE).argmax(1)
    options = {"norm": "linf", "attacks": ["pgd/steps=3/random_start=false"], "block": 16, **how}
    known = evaluate(model, WHOLE, y, **options)  # type: ignore[arg-type]
    assert 0 < known.best_attack < 1
    for x, more in ((MANY, {}), (BYTES, {"scale": 255}), (torch.from_numpy(BYTES), {"scale": 255})):
        report = evaluate(model, x, y, **options, **more)  # type: ignore[arg-type]
        assert _outcome(report) == _outcome(known)
    report = evaluate(model, Split(MANY, y), **options)  # type: ignore[arg-type]
    assert _outcome(report) == _outcome(known)


def test_images_outside_of_the_bounds_are_refused() -> None:
    with pytest.raises(UserError, match=r"images must lie in \[0, 1\]"):
        evaluate(_model(), MANY.changed(lambda x: 2 * x), LABELS, norm="linf", eps=0.1)
    with pytest.raises(UserError, match="leave y out"):
        evaluate(_model(), Split(MANY, LABELS_OF), LABELS, norm="linf", eps=0.1)
