import time

import numpy as np
import pytest

from finesight.data import copies
from finesight.data.similarity import TURNS, describe, orientations
from tests.data.scenes import COPIES, TURNED, scene, thumbs


def described(count: int, seed: int = 0) -> np.ndarray:
    """Descriptions of pictures that have nothing in common."""
    made = np.random.default_rng(seed).standard_normal((count, 12, 12)).astype(np.float32)
    made[:, 0, 0] = 0
    return made / np.linalg.norm(made, axis=(1, 2), keepdims=True)


def found(pairs) -> dict[tuple[int, int], str]:
    return {
        (int(one), int(two)): TURNS[turn] for one, two, turn in zip(pairs.first, pairs.second, pairs.turn, strict=True)
    }


def test_every_kind_of_copy_is_found_and_nothing_else():
    originals = [scene(seed) for seed in range(40)]
    changed = [change(originals[row]) for row, change in enumerate(COPIES.values())]
    turned = [originals[20 + row].transpose(turn) for row, turn in enumerate(TURNED.values())]
    pairs = copies.find(describe(thumbs(originals + changed + turned)), shown=False)
    expected = {(row, 40 + row): "same way up" for row in range(len(changed))}
    expected |= {(20 + row, 40 + len(changed) + row): name for row, name in enumerate(TURNED)}
    assert found(pairs) == expected
    assert pairs.similarity.min() >= copies.COPY
    assert not pairs.retake.any()


def test_search_over_blocks_equals_comparing_all(monkeypatch):
    monkeypatch.setattr(copies, "_BLOCK", 16)
    monkeypatch.setattr(copies, "_AT_ONCE", 3)
    made = described(70)
    near = described(30, seed=9) * 0.25 + made[:30]
    made = np.concatenate([made, near / np.linalg.norm(near, axis=(1, 2), keepdims=True)])
    first, second = np.triu_indices(100, 1)
    best = orientations(made[first], made[second]).max(axis=1)
    expected = {(int(one), int(two)) for one, two in zip(first[best >= 0.95], second[best >= 0.95], strict=True)}
    assert len(expected) == 30
    assert set(found(copies.find(made, shown=False))) == expected


def test_simple_pictures_need_more_than_likeness():
    """Handwritten digits resemble each other: above a fixed 0.95 stand dozens of pairs of different ones."""
    from sklearn.datasets import load_digits

    digits = (load_digits().images * 15.9).astype(np.uint8)
    made = describe(np.repeat(np.repeat(digits, 4, axis=1), 4, axis=2))
    first, second = np.triu_indices(len(made), 1)
    alike = (made.reshape(len(made), -1) @ made.reshape(len(made), -1).T)[first, second] >= copies.COPY
    pairs = copies.find(made, shown=False)
    assert alike.sum() > 20
    assert copies.threshold(made) > 0.97
    assert len(pairs.first) <= 5


def test_copies_do_not_raise_the_threshold():
    pictures = [scene(seed) for seed in range(60)]
    turned = [picture.transpose(TURNED["flipped left-right"]) for picture in pictures]
    assert copies.threshold(describe(thumbs(pictures + turned))) == copies.COPY


def test_many_equal_pictures_stay_one_cluster_without_all_their_pairs(monkeypatch):
    monkeypatch.setattr(copies, "_MOST_PAIRS", 1000)
    monkeypatch.setattr(copies, "_BLOCK", 64)
    monkeypatch.setattr(copies, "_AT_ONCE", 128)
    made = np.concatenate([np.repeat(described(1), 300, axis=0), described(50, seed=1)])
    pairs = copies.find(made, shown=False)
    labels = copies.join(np.arange(350), pairs.first, pairs.second)
    assert len(set(labels[:300])) == 1
    assert len(set(labels)) == 51
    assert len(pairs.first) < 3000  # of 44,850


def test_join_merges_chains():
    labels = copies.join(np.arange(5), np.array([0, 1]), np.array([1, 3]))
    assert labels[0] == labels[1] == labels[3]
    assert len({int(label) for label in labels}) == 3


@pytest.mark.parametrize("count", [0, 1, 2])
def test_tiny_sets(count):
    assert len(copies.find(described(count), shown=False).first) == 0


def test_twenty_thousand_are_searched_in_seconds():
    made = described(20_000)
    made[10_000:10_100] = made[:100].swapaxes(1, 2)
    start = time.process_time()
    pairs = copies.find(made, shown=False)
    # 3 s of one core where it was written; comparing pair by pair takes minutes.
    assert time.process_time() - start < 30
    assert found(pairs) == {(row, 10_000 + row): "transposed" for row in range(100)}
