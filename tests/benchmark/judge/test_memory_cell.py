"""Records in memory are those that were added, however few samples each block has."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmark.judge.records import BY_SAMPLE, Block, MemoryCell


def _block(places: Sequence[int], found: Sequence[bool], seed: int) -> Block:
    index, far = np.array(places, np.int64), np.array(found, bool)
    draw = np.random.default_rng(seed)
    ones = np.ones_like(index)
    points = draw.random((int(far.sum()), 1, 2, 2)).astype(np.float32)
    distance = np.where(far, draw.random(len(index)), np.nan)
    return Block(
        index, ones, index % 3, far, distance, ones * seed, ones, ~far, ones * 0.5, points,
        stage=np.full(len(index), f"stage-{seed}"),
    )  # fmt: skip


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=5), max_size=30))
def test_joined_blocks_have_all_records(blocks: list[list[bool]]) -> None:
    cell, added = MemoryCell(), []
    order = np.random.default_rng(len(blocks)).permutation(sum(map(len, blocks))).tolist()
    for seed, found in enumerate(blocks):
        added.append(_block([order.pop() for _ in found], found, seed))
        cell.add(added[-1])
    held = list(cell.blocks())
    assert len(held) <= 1 + np.log2(1 + sum(len(block.index) for block in added))
    for name in (*BY_SAMPLE, "adversarial"):
        expected = [value for block in added for value in getattr(block, name).tolist()]
        given_back = [value for block in held for value in getattr(block, name).tolist()]
        np.testing.assert_array_equal(given_back, expected)


def test_large_blocks_and_repeated_samples_stay_apart() -> None:
    cell = MemoryCell()
    first = _block([0, 1], [True, False], 0)
    for again in (first, _block([1, 2], [True, True], 1)):
        cell.add(again)
    assert [block.index.tolist() for block in cell.blocks()] == [[0, 1], [1, 2]]
    cell, large = MemoryCell(), np.zeros((1, 3, 512, 512), np.float32)
    for place in range(3):
        block = _block([place], [True], place)
        cell.add(Block(**{name: getattr(block, name) for name in BY_SAMPLE}, adversarial=large))
    assert len(list(cell.blocks())) == 3


def test_joined_blocks_are_no_larger_than_those_that_are_worked_on_at_once() -> None:
    cell = MemoryCell()
    for place in range(600):
        cell.add(_block([place], [False], place))
    sizes = [len(block.index) for block in cell.blocks()]
    assert sum(sizes) == 600
    assert max(sizes) == 256
