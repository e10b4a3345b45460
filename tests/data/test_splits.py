import time

import numpy as np
import pytest

from finesight.data.config import DataConfig
from finesight.data.splits import NAMES, decide, hold_out, subset
from finesight.errors import DataError


def source(seed, samples=400, classes=4, groups=120):
    """Labels and groups as they are met: uneven classes, groups of all sizes, some with two classes."""
    generator = np.random.default_rng(seed)
    owner = generator.zipf(1.6, samples) % groups
    home = generator.choice(classes, groups, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    stray = generator.random(samples) < 0.05
    labels = np.where(stray, generator.integers(0, classes, samples), home[owner])
    return labels.astype(np.int64), [f"patient{number}" for number in owner]


def parts(labels, groups, seed=0, given=None, **options):
    return decide(np.asarray(labels), list(groups), given, DataConfig(**options), seed)


@pytest.mark.parametrize("seed", range(20))
def test_splits_cover_all_and_never_part_a_group(seed):
    labels, groups = source(seed)
    rows = parts(labels, groups, seed)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(labels)))
    members = [{groups[row] for row in rows[name]} for name in NAMES]
    assert not members[0] & members[1]
    assert not members[0] & members[2]
    assert not members[1] & members[2]
    assert all(len(part) for part in rows.values())
    assert set(labels[rows["train"]]) == set(labels)


@pytest.mark.parametrize("seed", range(20))
def test_classes_keep_their_share_up_to_the_size_of_a_group(seed):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 8, 300)
    homes = generator.integers(0, 3, 300)
    labels, groups = np.repeat(homes, sizes), np.repeat(np.arange(300), sizes)
    held = hold_out(labels, groups, 0.2, generator)
    for label in range(3):
        wanted = 0.2 * (labels == label).sum()
        assert abs((held & (labels == label)).sum() - wanted) <= 1


def test_large_groups_are_dealt_to_both_sides():
    # Filling the test split with what is left over would leave it the smallest groups only.
    sizes = np.tile([9, 1, 1, 1, 1, 1], 100)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    held = hold_out(np.zeros(len(groups), np.int64), groups, 0.2, np.random.default_rng(0))
    share = np.mean(sizes[np.unique(groups[held])] == 9)
    assert 0.1 < share < 0.25  # 1/6 of all groups are large
    assert held.sum() == round(0.2 * len(groups))


def test_single_images_are_stratified_exactly():
    labels = np.repeat(np.arange(4), [100, 55, 14, 3])
    held = hold_out(labels, np.arange(len(labels)), 0.2, np.random.default_rng(1))
    assert np.bincount(labels[held]).tolist() == [20, 11, 3, 1]


@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_small_classes_are_on_both_sides(count):
    labels = np.repeat([0, 1], [50, count])
    rows = parts(labels, map(str, range(len(labels))), validation=0.1, test=0.05)
    assert (labels[rows["train"]] == 1).sum() >= 1
    assert (labels[rows["test"]] == 1).sum() >= 1
    if count > 2:
        assert (labels[rows["validation"]] == 1).sum() >= 1


def test_a_class_in_one_group_goes_to_training():
    labels = np.repeat([0, 1, 2], [30, 30, 20])
    groups = [*map(str, range(60)), *["one"] * 20]
    for seed in range(5):
        rows = parts(labels, groups, seed)
        assert set(np.flatnonzero(labels == 2)) <= set(rows["train"])


def test_the_seed_decides_and_nothing_else():
    labels, groups = source(3)
    first, again, other = parts(labels, groups, 0), parts(labels, groups, 0), parts(labels, groups, 1)
    assert all((first[name] == again[name]).all() for name in NAMES)
    assert set(first["test"]) != set(other["test"])


def test_names_of_groups_matter_only_through_their_order():
    labels, groups = source(4)
    renamed = [f"leaf/{group}" for group in groups]
    assert (parts(labels, groups)["test"] == parts(labels, renamed)["test"]).all()


def test_given_splits_are_kept_and_missing_ones_come_from_train():
    labels = np.tile([0, 1], 100)
    given = ["train"] * 150 + ["test"] * 50
    rows = parts(labels, map(str, range(200)), given=given, validation=0.2)
    assert rows["test"].tolist() == list(range(150, 200))
    assert len(rows["validation"]) == 30
    assert np.bincount(labels[rows["validation"]]).tolist() == [15, 15]
    given = ["train"] * 150 + ["validation"] * 50
    rows = parts(labels, map(str, range(200)), given=given, test=0.2)
    assert rows["validation"].tolist() == list(range(150, 200))
    assert len(rows["test"]) == 30


def test_new_splits_pool_everything():
    labels = np.tile([0, 1], 100)
    given = ["train"] * 150 + ["test"] * 50
    rows = parts(labels, map(str, range(200)), given=given, splits="new", test=0.3)
    assert len(rows["test"]) == 60
    assert min(rows["test"]) < 150


def test_groups_that_straddle_the_given_splits_are_a_leak():
    given = ["train"] * 6 + ["test"] * 4
    groups = ["a", "b", "c", "d", "e", "f", "f", "g", "e", "h"]
    with pytest.raises(DataError, match=r"2 of 8 groups .*'e', 'f' .*train/test.*--data.splits new"):
        parts([0, 1] * 5, groups, given=given)
    rows = parts([0, 1] * 5, groups, given=given, splits="new")
    assert sum(map(len, rows.values())) == 10


def test_without_training_images_or_groups_to_part_it_says_so():
    with pytest.raises(DataError, match="no training split.*--data.splits new"):
        parts([0, 1], ["a", "b"], given=["test", "test"])
    with pytest.raises(DataError, match="No test split can be made: the 4 training images are too few groups .1."):
        parts([0, 1, 0, 1], ["a"] * 4)


def test_limits_are_stratified_and_keep_every_class():
    labels = np.repeat(np.arange(5), [500, 300, 150, 45, 5])
    rows = parts(labels, map(str, range(1000)), limit_train=100, limit_validation=20, limit_test=50)
    assert [len(rows[name]) for name in NAMES] == [100, 20, 50]
    assert np.bincount(labels[rows["train"]]).tolist() == [50, 30, 15, 4, 1]
    whole = parts(labels, map(str, range(1000)))
    assert all(set(rows[name]) <= set(whole[name]) for name in NAMES)
    with pytest.raises(DataError, match=r"limit_train: 4 images cannot hold all 5 classes"):
        parts(labels, map(str, range(1000)), limit_train=4)
    assert len(parts(labels, map(str, range(1000)), limit_test=3)["test"]) == 3
    assert len(parts(labels, map(str, range(1000)), limit_test=10_000)["test"]) == 200


@pytest.mark.parametrize("limit", [7, 30, 101, 399])
def test_subsets_have_exactly_the_size_asked_for(limit):
    labels, _ = source(5, classes=7)
    chosen = subset(labels, limit, np.random.default_rng(0))
    assert len(set(chosen)) == limit
    assert set(labels[chosen]) == set(labels)
    share = np.bincount(labels[chosen], minlength=7) - limit * np.bincount(labels) / len(labels)
    assert np.abs(share).max() <= (2 if limit > 7 else 4)  # 7 images of 7 classes: one each


def test_it_is_fast_for_large_sources():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 100, 200_000)
    start = time.perf_counter()
    hold_out(labels, np.arange(200_000), 0.1, generator)
    hold_out(labels, generator.integers(0, 20_000, 200_000), 0.1, generator)
    assert time.perf_counter() - start < 6
