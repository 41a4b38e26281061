"""Variants that change images, training labels or their number, against values by hand."""

import math

import pytest
import torch
from torch import Tensor

from benchmark.data.dataset import Dataset, Split
from benchmark.data.sets import load_dataset
from benchmark.data.transforms import TRANSFORMS, binarize, edge, gamma, saturate, scale, smooth
from benchmark.data.variants import VARIANTS
from tests.benchmark.conftest import Cli
from tests.benchmark.data.splits import refusal, same

GREY = (torch.arange(256) / 255).view(1, 1, 16, 16)
GREYS = Dataset("greys", ("a",), (1, 16, 16), lambda part: Split(GREY, torch.tensor([0])))
VALUED = {"smooth": "3", "saturate": "16", "gamma": "0.7", "scale": "0.8"}
NAMES = [
    f"{transform.name}={VALUED[transform.name]}" if transform.name in VALUED else transform.name
    for transform in TRANSFORMS
]


def image(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)[None, None]


def colours() -> Dataset:
    """A data set of colour images, 12 and 5."""
    x = torch.rand(12, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    y = torch.arange(12) % 3
    splits = {"train": Split(x, y), "test": Split(x[:5], y[:5])}
    return Dataset("theirs", ("a", "b", "c"), (3, 6, 5), splits.__getitem__)


def varied(dataset: Dataset, name: str) -> Dataset:
    key, _, value = name.partition("=")
    return VARIANTS[key](dataset, value)


# Values


def test_binarize_rounds_a_half_up() -> None:
    assert torch.equal(binarize(image([0, 0.49999997, 0.5, 1])), image([0, 0, 1, 1]))


def test_smooth_is_the_larger_of_image_and_mean() -> None:
    x = image([0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0.5])
    # At the edge the mean is over 6 pixels, in the corner over 4.
    square = image(
        [0, 0, 0, 0],
        [0, 1 / 9, 1 / 9, 1 / 6],
        [0, 1 / 9, 1, 1.5 / 6],
        [0, 1 / 6, 1.5 / 6, 0.5],
    )
    assert torch.equal(smooth(x, 3, 3), square)
    # A window of 2 reaches down and right: 1 is seen from its place and from above and left of it.
    even = image(
        [0, 0, 0, 0],
        [0, 0.25, 0.25, 0],
        [0, 0.25, 1, 0.25],
        [0, 0, 0.25, 0.5],
    )
    assert torch.equal(smooth(x, 2, 2), even)
    column = image(
        [0, 0, 0, 0],
        [0, 0, 1 / 3, 0],
        [0, 0, 1, 0.5 / 3],
        [0, 0, 0.5, 0.5],
    )
    assert torch.equal(smooth(x, 3, 1), column)
    assert torch.equal(smooth(image([0, 1]), 5, 5), image([0.5, 1]))


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (1, [0, 0.375, 0.5, 0.53125, 1]),
        (2, [0, 0.25, 0.5, 0.625, 1]),
        (4, [0, 0.5 - math.sqrt(0.5) / 2, 0.5, 0.75, 1]),
        (math.inf, [0, 0, 0.5, 1, 1]),
    ],
)
def test_saturate(level: float, expected: list[float]) -> None:
    assert torch.equal(saturate(image([0, 0.25, 0.5, 0.625, 1]), level), image(expected))


def test_gamma_and_scale() -> None:
    x = image([0, 0.25, 0.5, 1])
    assert torch.equal(gamma(x, 0.5), image([0, 0.5, math.sqrt(0.5), 1]))
    assert torch.equal(gamma(x, 2), image([0, 0.0625, 0.25, 1]))
    assert torch.equal(scale(x, 0.5), image([0.25, 0.375, 0.5, 0.75]))


def test_edge_finds_the_border_of_a_square() -> None:
    x = torch.zeros(1, 2, 20, 20)
    x[0, 1, 5:15, 5:15] = 1
    found = edge(x)
    assert not found[0, 0].any()
    lines = found[0, 1]
    assert set(lines.unique().tolist()) == {0, 1}
    # One closed line along the border: not inside, not far outside, crossed twice in the middle.
    assert not lines[7:13, 7:13].any()
    assert lines[4:16, 4:16].sum() == lines.sum()
    assert lines[10].sum() == lines[:, 10].sum() == 2
    assert torch.equal(lines, lines.T)


@pytest.mark.parametrize("name", ["saturate=2", "gamma=1", "scale=1", "smooth=1"])
def test_identities_keep_every_bit_of_every_grey(name: str) -> None:
    assert torch.equal(varied(GREYS, name).test.x, GREY)


@pytest.mark.parametrize("name", [*NAMES, "saturate=inf", "saturate=0.5", "smooth=4", "gamma=3"])
def test_images_stay_images_of_their_labels(name: str) -> None:
    base = colours()
    changed = varied(base, name)
    assert (changed.name, changed.labels, changed.shape) == (
        f"theirs/{name}", base.labels, base.shape,
    )  # fmt: skip
    # `train` and `test` refuse what is not float32 in [0, 1] of that shape.
    for before, after in ((base.train, changed.train), (base.test, changed.test)):
        assert torch.equal(before.y, after.y)
        assert not torch.equal(before.x, after.x)
        # Each image and channel for itself.
        one = Split(before.x[2:3, 1:2], before.y[2:3])
        alone = varied(Dataset("one", base.labels, (1, 6, 5), lambda part, one=one: one), name)
        assert torch.equal(alone.test.x[0, 0], after.x[2, 1])


@pytest.mark.parametrize("name", NAMES)
def test_greys_stay_in_range(name: str) -> None:
    found = varied(GREYS, name).test.x
    assert ((found >= 0) & (found <= 1)).all()


def test_as_many_images_as_there_are_blocks_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_dataset("digits/smooth=3").test
    monkeypatch.setattr("benchmark.data.transforms._BLOCK", 17)
    assert same(load_dataset("digits/smooth=3").test, whole)


# Names


def test_variants_are_read_from_left_to_right() -> None:
    x = load_dataset("digits").test.x
    first = load_dataset("digits/binarize/scale=0.5").test.x
    assert torch.equal(first, scale(binarize(x), 0.5))
    assert first.unique().tolist() == [0.25, 0.75]
    assert load_dataset("digits/scale=0.5/binarize").test.x.unique().tolist() == [0, 1]
    pair = load_dataset("digits/pair=4-9")
    kept = load_dataset("digits/pair=4-9/gamma=2/train=10")
    assert torch.equal(kept.train.x, gamma(pair.train.x[:10], 2))
    assert torch.equal(kept.train.y, pair.train.y[:10])
    assert len(kept.test.y) == len(pair.test.y)
    # The first ten, of which a pair is kept: another set.
    assert len(load_dataset("digits/train=10/pair=4-9").train.y) < 10


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("saturate=4.0", "saturate=4"),
        ("saturate=1e2", "saturate=100"),
        ("saturate=Infinity", "saturate=inf"),
        ("saturate=1.50", "saturate=1.5"),
        ("smooth=03", "smooth=3"),
        ("smooth=3x3", "smooth=3"),
        ("smooth=3x01", "smooth=3x1"),
        ("scale=1.0", "scale=1"),
        ("gamma=0.70", "gamma=0.7"),
        ("scramble=050", "scramble=50"),
        ("scramble=2.5", "scramble=2.5"),
        ("train=1e2", "train=100"),
        ("binarize", "binarize"),
    ],
)
def test_names_are_made_alike(name: str, full: str) -> None:
    assert load_dataset(f"digits/{name}").name == f"digits/{full}"


def test_variants_are_listed_with_what_they_do(cli: Cli) -> None:
    ended = cli("list", "datasets")
    assert (ended.status, ended.err) == (0, "")
    lines = ended.out.rpartition("\n\n")[2].splitlines()
    assert max(map(len, lines)) <= 100
    listed = [line.split()[0] for line in lines[1:] if not line.startswith(" ")]
    assert listed == [variant.form for variant in VARIANTS.values()]
    assert all(variant.about.endswith(".") for variant in VARIANTS.values())


# Training labels and their number


@pytest.mark.parametrize("percent", [0, 25, 50, 100])
def test_scramble_changes_nine_tenths_of_what_it_draws(percent: int) -> None:
    n = 40000
    ten = tuple("0123456789")
    base = Split(torch.rand(n, 1, 1, 1), torch.arange(n) % 10)
    many = Dataset("many", ten, (1, 1, 1), lambda part: base)
    scrambled = varied(many, f"scramble={percent}")
    assert same(scrambled.test, base)
    assert torch.equal(scrambled.train.x, base.x)
    changed = scrambled.train.y != base.y
    # Six standard deviations of the count, at most.
    drawn = n * percent / 100
    assert abs(int(changed.sum()) - 0.9 * drawn) <= 6 * math.sqrt(0.09 * drawn)
    for places in (changed, ~changed):  # wherever, and to whichever of the others
        if places.any() and 0 < percent < 100:
            assert abs(places.nonzero().double().mean() / n - 0.5) < 0.02
    if percent:
        shift = (scrambled.train.y - base.y)[changed] % 10
        counts = shift.bincount(minlength=10)[1:]
        assert (counts - counts.double().mean()).abs().max() < 0.15 * counts.double().mean()
    assert same(varied(many, f"scramble={percent}").train, scrambled.train)


def test_scrambled_labels_are_the_same_everywhere() -> None:
    base, scrambled = load_dataset("digits"), load_dataset("digits/scramble=1")
    places = (scrambled.train.y != base.train.y).nonzero()[:, 0]
    assert places.tolist() == [120, 569, 611, 668, 720, 741, 743, 896, 1357, 1360]
    assert scrambled.train.y[places].tolist() == [8, 3, 1, 8, 7, 9, 7, 3, 8, 0]
    assert same(scrambled.test, base.test)


@pytest.mark.parametrize("count", [1, 100, 1442])
def test_train_keeps_the_first_images(count: int) -> None:
    base, fewer = load_dataset("digits"), load_dataset(f"digits/train={count}")
    assert same(fewer.train, base.first("train", count))
    assert same(fewer.test, base.test)
    # The rest is not kept alive.
    assert fewer.train.x.untyped_storage().nbytes() == count * 64 * 4


# Refusals


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("binarize=1", "binarize takes no value, not '1'"),
        ("edge=2", "edge takes no value, not '2'"),
        ("smooth", "smooth needs a size or rows x columns, as in smooth=3 or smooth=3x1, not ''"),
        ("smooth=0", "not '0'"),
        ("smooth=2.5", "not '2.5'"),
        ("smooth=3x", "not '3x'"),
        ("smooth=3x1x1", "not '3x1x1'"),
        ("saturate=0", "saturate needs a number above 0, or inf, as in saturate=16, not '0'"),
        ("saturate=-inf", "not '-inf'"),
        ("saturate=many", "not 'many'"),
        ("gamma=0", "gamma needs a number above 0, as in gamma=0.7, not '0'"),
        ("gamma=inf", "not 'inf'"),
        ("scale=1.1", "scale needs a number above 0, up to 1, as in scale=0.8, not '1.1'"),
        ("scale=0", "not '0'"),
        ("scramble=101", "scramble needs a percentage, as in scramble=50, not '101'"),
        ("scramble=-1", "not '-1'"),
        ("scramble", "not ''"),
        ("train=0", "train needs an integer of at least 1, as in train=1000, not '0'"),
        ("train=1.5", "not '1.5'"),
        ("train=inf", "not 'inf'"),
        ("binarise", "unknown variant 'binarise': did you mean 'binarize'?"),
    ],
)
def test_values_that_make_no_sense_are_refused(name: str, told: str) -> None:
    message = refusal(lambda: load_dataset(f"digits/{name}"))
    assert told in message
    assert message.startswith("digits")


def test_more_training_images_than_there_are_is_refused() -> None:
    fewer = load_dataset("digits/train=1443")
    assert refusal(lambda: fewer.train) == "digits has 1442 training images, not 1443"
    assert len(fewer.test.y) == 355
