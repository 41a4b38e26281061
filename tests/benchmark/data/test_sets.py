import pytest
import torch
from torch import Tensor

from benchmark.data.dataset import Dataset, Split, fingerprint
from benchmark.data.files import DataError
from benchmark.data.sets import load_dataset
from benchmark.data.variants import VARIANTS
from benchmark.errors import UserError
from benchmark.spec.run_spec import Part
from tests.benchmark.data.splits import refusal, rows, same

# Digits and the pair variant


def test_digits_is_split_without_overlap_and_by_class() -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    everything = rows(torch.tensor(images / 16).float(), torch.tensor(labels))
    digits = load_dataset("digits")
    train, test = digits.train, digits.test
    assert rows(train.x, train.y) + rows(test.x, test.y) == everything
    assert (len(train.x), len(test.x)) == (1442, 355)
    assert torch.equal(test.y.bincount(), torch.tensor(labels).bincount() // 5)


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_first_images_are_those_in_front(part: Part) -> None:
    dataset = load_dataset("digits")
    whole = getattr(dataset, part)
    assert same(dataset.first(part), whole)
    assert same(dataset.first(part, 7), Split(whole.x[:7], whole.y[:7]))
    n = len(whole.y)
    assert same(dataset.first(part, n), whole)
    with pytest.raises(DataError, match=f"digits has {n} {part} images, not {n + 1}: lower"):
        dataset.first(part, n + 1)


def test_digits_is_the_same_everywhere() -> None:
    test = load_dataset("digits").test
    want = "c5a04adc96d16164246beca29963372e540f9a7d2b6cfa7c5787753403a5d601"
    assert fingerprint(test.x, test.y) == want


@pytest.mark.parametrize("part", ["train", "test"])
def test_pair_keeps_two_labels_and_their_order_decides(part: str) -> None:
    base = getattr(load_dataset("digits"), part)
    split = getattr(load_dataset("digits/pair=9-4"), part)
    kept = (base.y == 9) | (base.y == 4)
    assert torch.equal(split.x, base.x[kept])
    assert torch.equal(split.y, torch.where(base.y[kept] == 9, 0, 1))
    assert torch.equal(getattr(load_dataset("digits/pair=4-9"), part).y, 1 - split.y)


def test_variants_compose_from_left_to_right() -> None:
    twice = load_dataset("digits/pair=4-9/pair=9-4")
    assert same(twice.test, load_dataset("digits/pair=9-4").test)


@pytest.mark.parametrize(
    ("name", "full", "labels"),
    [
        ("mnist/pair=4-9", "mnist/pair=4-9", ("4", "9")),
        ("cifar10/pair=5-3", "cifar10/pair=dog-cat", ("dog", "cat")),
        ("fashion-mnist/pair=2-4", "fashion-mnist/pair=pullover-coat", ("pullover", "coat")),
        ("fashion-mnist/pair=6-0", "fashion-mnist/pair=shirt-t-shirt", ("shirt", "t-shirt")),
        (
            "fashion-mnist/pair=0-9",
            "fashion-mnist/pair=t-shirt-ankle-boot",
            ("t-shirt", "ankle-boot"),
        ),
    ],
)
def test_labels_go_by_number_and_by_name(name: str, full: str, labels: tuple[str, ...]) -> None:
    by_number, by_name = load_dataset(name), load_dataset(full)
    assert by_number.name == by_name.name == full
    assert by_number.labels == by_name.labels == labels
    assert by_number.classes == 2


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("digits/pear=4-9", "'pear': did you mean 'pair'?"),
        ("digits/", "unknown variant ''"),
        ("digits/pair", "two labels"),
        ("digits/pair=4", "two labels"),
        ("digits/pair=4-4", "differ"),
        ("digits/pair=4-10", "unknown label '10'"),
        ("digits/pair=4--9", "unknown label"),
        ("fashion-mnist/pair=pulover-coat", "'pulover': did you mean 'pullover'?"),
        ("fashion-mnist/pair=t-shirt-trousers", "'trousers': did you mean 'trouser'?"),
        ("cifar10/pair=Cat-dog", "'Cat': did you mean 'cat'?"),
    ],
)
def test_an_unknown_variant_or_label_is_refused_with_advice(name: str, told: str) -> None:
    assert told in refusal(lambda: load_dataset(name))


# The variants order and other


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("seed", [0, 1, 20])
def test_order_moves_labels_with_their_names(part: str, seed: int) -> None:
    base, moved = load_dataset("digits"), load_dataset(f"digits/order={seed}")
    assert moved.name == f"digits/order={seed}"
    assert sorted(moved.labels) == sorted(base.labels) != list(moved.labels)
    before, after = getattr(base, part), getattr(moved, part)
    assert torch.equal(after.x, before.x)
    assert [moved.labels[y] for y in after.y.tolist()] == [base.labels[y] for y in before.y]


def test_orders_are_the_same_everywhere_and_differ() -> None:
    assert "".join(load_dataset("digits/order=0").labels) == "6421750893"
    assert "".join(load_dataset("digits/order=3").labels) == "9715460238"
    assert load_dataset("cifar10/order=3").labels[:3] == ("truck", "horse", "automobile")
    assert len({load_dataset(f"digits/order={seed}").labels for seed in range(50)}) == 50
    assert load_dataset("digits/order=003").name == "digits/order=3"


@pytest.mark.parametrize("count", [2, 4, 9])
def test_other_merges_the_last_classes(count: int) -> None:
    base, merged = load_dataset("digits"), load_dataset(f"digits/other={count}")
    assert merged.name == f"digits/other={count}"
    assert merged.labels == (*base.labels[: count - 1], "other")
    assert merged.classes == count
    assert torch.equal(merged.test.x, base.test.x)
    assert torch.equal(merged.test.y, base.test.y.clamp_max(count - 1))


def test_merging_the_last_class_alone_leaves_all_as_it_is() -> None:
    base, merged = load_dataset("digits"), load_dataset("digits/other=10")
    assert (merged.name, merged.labels) == (base.name, base.labels)
    assert same(merged.test, base.test)


def test_order_and_other_and_pair_compose() -> None:
    moved = load_dataset("digits/order=3")
    merged = load_dataset("digits/order=3/other=4")
    assert merged.labels == ("9", "7", "1", "other")
    assert torch.equal(merged.test.y, moved.test.y.clamp_max(3))
    alone = load_dataset("digits/order=3/other=4/pair=other-7")
    assert alone.labels == ("other", "7")
    assert alone.test.y.bincount().tolist() == merged.test.y.bincount()[[3, 1]].tolist()
    # The names that moved, not the places.
    pair = load_dataset("digits/order=3/pair=4-9")
    assert same(pair.test, load_dataset("digits/pair=4-9").test)
    assert load_dataset("digits/pair=4-9/order=2").classes == 2
    twice = load_dataset("digits/other=5/other=3")
    assert twice.labels == ("0", "1", "other")
    assert same(twice.test, load_dataset("digits/other=3").test)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("digits/order", "order needs an integer of at least 0"),
        ("digits/order=-1", "not '-1'"),
        ("digits/order=1.5", "not '1.5'"),
        ("digits/order=\u00b2", "order needs"),
        ("digits/ordre=1", "did you mean 'order'?"),
        ("digits/other", "from 2 to 10"),
        ("digits/other=1", "from 2 to 10"),
        ("digits/other=11", "from 2 to 10"),
        ("digits/other=four", "not 'four'"),
        ("digits/pair=4-9/other=3", "digits/pair=4-9: other needs a number of classes from 2 to 2"),
        ("digits/other=4/order=7/other=3", "already a class that is called 'other'"),
    ],
)
def test_orders_and_merges_that_make_no_sense_are_refused(name: str, told: str) -> None:
    assert told in refusal(lambda: load_dataset(name))


def test_labels_out_of_range_do_not_become_those_of_another_class() -> None:
    bad = Split(torch.zeros(2, 1, 2, 2), torch.tensor([0, -1]))
    theirs = Dataset("theirs", ("a", "b", "c"), (1, 2, 2), lambda part: bad)
    for variant, value in (("order", "1"), ("other", "2")):
        varied = VARIANTS[variant](theirs, value)
        assert "labels are not int64 from 0 to 2" in refusal(lambda varied=varied: varied.test)


def test_an_unknown_base_is_refused_with_advice() -> None:
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        load_dataset("mnits/pair=4-9")


# The contract that any data set is held to


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (torch.full((2, 1, 2, 2), 255.0), torch.tensor([0, 1]), "[0, 1]"),
        (torch.full((2, 1, 2, 2), -0.1), torch.tensor([0, 1]), "[0, 1]"),
        (torch.full((2, 1, 2, 2), torch.nan), torch.tensor([0, 1]), "[0, 1]"),
        (torch.zeros(2, 1, 2, 2).double(), torch.tensor([0, 1]), "float32"),
        (torch.zeros(2, 2, 2, 1), torch.tensor([0, 1]), "(2, 2, 2, 1)"),
        (torch.zeros(3, 1, 2, 2), torch.tensor([0, 1]), "(3, 1, 2, 2)"),
        (torch.zeros(0, 1, 2, 2), torch.tensor([]).long(), "(0, 1, 2, 2)"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([0, 2]), "labels"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([0.0, 1.0]), "labels"),
    ],
)
def test_a_split_out_of_contract_is_refused(x: Tensor, y: Tensor, told: str) -> None:
    dataset = Dataset("theirs", ("a", "b"), (1, 2, 2), lambda part: Split(x, y))
    message = refusal(lambda: dataset.test)
    assert "theirs" in message
    assert told in message


def test_fingerprint_sees_values_labels_shape_and_dtype_but_not_layout() -> None:
    x, y = torch.rand(4, 1, 2, 3), torch.tensor([0, 1, 1, 0])
    other = x.clone()
    other[3, 0, 1, 2] += 1e-6
    prints = [
        fingerprint(x, y),
        fingerprint(other, y),
        fingerprint(x, 1 - y),
        fingerprint(x.view(4, 1, 3, 2), y),
        fingerprint(x.view(torch.int32), y),
        fingerprint(x[:2], y[:2]),
        fingerprint(x[:0], y[:0]),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(x.repeat(2, 1, 1, 1)[::2], y) == fingerprint(x[[0, 2, 0, 2]], y)
