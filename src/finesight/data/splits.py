"""Seeded splits, stratified by label, that never part a group.

Everything here works on samples in the order of their ids and depends on nothing but ids, labels,
groups and the seed: not on the order in which a source was listed.
"""

from collections import defaultdict

import numpy as np

from finesight.data.config import DataConfig
from finesight.data.problems import examples, refuse
from finesight.errors import DataError

NAMES = ("train", "validation", "test")


def decide(
    labels: np.ndarray, groups: list[str], given: list[str] | None, config: DataConfig, seed: int
) -> dict[str, np.ndarray]:
    """Rows (int64, ascending) of train, validation and test; disjoint, no group in two of them.

    `labels` int64 [N]; `groups` N names; `given` N split names or None. Splits that the source has
    are kept, unless `config.splits` is "new". A missing test split is taken from train
    (`config.test`), then a missing validation split (`config.validation`); then the limits apply.
    Raises `DataError` if groups straddle the given splits, or a split cannot be made.
    """
    if given is None or config.splits == "new":
        given = ["train"] * len(labels)
    else:
        _refuse_straddling(groups, given)
    names = np.array(given)
    rows = {name: np.flatnonzero(names == name) for name in NAMES}
    if not len(rows["train"]):
        raise DataError("There is no training split. Give --data.splits new to make all three anew.")
    codes = np.unique(np.array(groups), return_inverse=True)[1]
    for position, (name, share) in enumerate((("test", config.test), ("validation", config.validation))):
        if len(rows[name]):
            continue
        pool = rows["train"]
        held = hold_out(labels[pool], codes[pool], share, np.random.default_rng([seed, position]))
        if not held.any():
            raise DataError(
                f"No {name} split can be made: the {len(pool)} training images are too few groups "
                f"({len(set(codes[pool]))}). Add images, give a {name} split, or choose smaller groups."
            )
        rows[name], rows["train"] = pool[held], pool[~held]
    limits = (config.limit_train, config.limit_validation, config.limit_test)
    for position, (name, limit) in enumerate(zip(NAMES, limits, strict=True)):
        if limit is not None:
            generator = np.random.default_rng([seed, 2 + position])
            rows[name] = rows[name][subset(labels[rows[name]], limit, generator, name)]
    return rows


def hold_out(labels: np.ndarray, groups: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """bool [N]: the rows held out, near `share` of each class, whole groups only.

    `labels`, `groups`: int64 [N]. Groups are dealt largest first, in random order among equals, each to
    the side where it most reduces sum((actual - wanted)^2 / wanted) over the classes; single images
    then fill what is missing exactly. A class in two or more groups gets at least one on each side.
    """
    class_sizes = np.bincount(labels)
    table = _Groups(labels, groups, generator)
    spread = np.bincount(table.classes, minlength=len(class_sizes))
    wanted = np.floor(share * class_sizes + 0.5)
    wanted = np.clip(wanted, np.where(spread > 1, 1, 0), np.maximum(class_sizes - 1, 0))
    held = _deal(table, wanted, class_sizes - wanted)
    _mend(table, held, spread)
    return held[table.of_row]


class _Groups:
    """Sparse group × class counts: entry k says that group owners[k] has counts[k] rows of classes[k].

    Groups are numbered in the order in which they are dealt.
    """

    def __init__(self, labels: np.ndarray, groups: np.ndarray, generator: np.random.Generator) -> None:
        _, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        order = np.lexsort((generator.permutation(len(sizes)), -sizes))
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        self.of_row = rank[codes]
        self.sizes = sizes[order]
        width = int(labels.max()) + 1
        cells, self.counts = np.unique(self.of_row * width + labels, return_counts=True)
        self.owners, self.classes = np.divmod(cells, width)
        self.starts = np.searchsorted(self.owners, np.arange(len(sizes) + 1))

    def content(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """(classes, counts) of one group."""
        part = slice(self.starts[group], self.starts[group + 1])
        return self.classes[part], self.counts[part]


def _deal(table: _Groups, wanted_held: np.ndarray, wanted_kept: np.ndarray) -> np.ndarray:
    """bool [G]: which groups are held out."""
    held = np.zeros(len(table.sizes), bool)
    need = np.stack([wanted_kept, wanted_held]).astype(float)
    weight = 1 / np.maximum(need, 1)
    single = int(np.searchsorted(-table.sizes, -1))
    for group in range(single):
        classes, counts = table.content(group)
        cost = (counts * (counts - 2 * need[:, classes]) * weight[:, classes]).sum(axis=1)
        side = int(cost[1] < cost[0])
        need[side, classes] -= counts
        held[group] = bool(side)
    # What is left are single images, already in random order: class by class the first ones are held.
    classes = table.classes[table.starts[single] :]
    order = np.argsort(classes, kind="stable")
    sizes = np.bincount(classes, minlength=need.shape[1])
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held[single + order[place < need[1, classes[order]]]] = True
    return held


def _mend(table: _Groups, held: np.ndarray, spread: np.ndarray) -> None:
    """Move the smallest possible group to a side that lacks a class; the training side goes first."""
    for side in (True, False):
        present = _present(table, held == side, len(spread))
        for label in np.flatnonzero((present == 0) & (spread > 1 if side else spread > 0)):
            if _present(table, held == side, len(spread))[label]:
                continue  # came along with a group moved for another class
            others = _present(table, held != side, len(spread))
            candidates = table.owners[(table.classes == label) & (held[table.owners] != side)]
            for group in candidates[::-1]:  # the smallest come last
                if not side or (others[table.content(group)[0]] > 1).all():
                    held[group] = side
                    break


def _present(table: _Groups, chosen: np.ndarray, classes: int) -> np.ndarray:
    """int [C]: in how many of the chosen groups each class occurs."""
    return np.bincount(table.classes[chosen[table.owners]], minlength=classes)


def subset(labels: np.ndarray, limit: int, generator: np.random.Generator, split: str = "train") -> np.ndarray:
    """Ascending positions of at most `limit` rows, each class in proportion and at least once.

    Raises `DataError` if `limit` is below the number of classes of a training split.
    """
    if limit >= len(labels):
        return np.arange(len(labels))
    sizes = np.bincount(labels)
    if limit < (sizes > 0).sum() and split == "train":
        raise DataError(
            f"data.limit_train: {limit} images cannot hold all {(sizes > 0).sum()} classes; give at least "
            f"{(sizes > 0).sum()}."
        )
    quota = _quota(sizes, limit)
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[place < quota[labels[order]]])


def _quota(sizes: np.ndarray, limit: int) -> np.ndarray:
    """Whole numbers that sum to `limit`, nearly proportional, at least 1 of each class if there is room."""
    exact = limit * sizes / sizes.sum()
    quota = np.maximum(np.floor(exact), sizes > 0).astype(np.int64)
    while quota.sum() != limit:
        over = quota.sum() > limit
        movable = quota > (1 if limit >= (sizes > 0).sum() else 0) if over else quota < sizes
        gap = np.where(movable, (quota - exact) if over else (exact - quota), -np.inf)
        quota[np.argmax(gap)] += -1 if over else 1
    return quota


def _refuse_straddling(groups: list[str], given: list[str]) -> None:
    homes: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, given, strict=True):
        homes[group].add(split)
    torn = sorted(group for group, splits in homes.items() if len(splits) > 1)
    if torn:
        where = "/".join(name for name in NAMES if name in homes[torn[0]])
        refuse(
            [
                f"{len(torn)} of {len(homes)} groups lie in more than one of the given splits: "
                f"{examples(torn)} (the first in {where}). The test number would be wrong. "
                "Give --data.splits new to split anew by group, or mend the source."
            ]
        )
