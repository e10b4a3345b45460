"""Copies of one picture in a set: re-encoded, resized, brighter, mirrored, turned."""

from collections.abc import Iterator

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from finesight.data.similarity import Pairs, by_accident, invariants, orientations
from finesight.progress import Progress

COPY = 0.95
"""Least similarity of copies. Simple pictures, which resemble each other, need more: `threshold`."""
MOST_SIMILAR = 0.999

_BLOCK = 2048
_AT_ONCE = 8192
_MOST_PAIRS = 200_000
_SAMPLE = 500


def threshold(described: np.ndarray) -> float:
    """The similarity in [0.95, 0.999] that hardly any two unrelated pictures of this set reach.

    Measured on what the nearest neighbours of up to 500 pictures are like below 0.95.
    """
    rows = np.arange(len(described))
    if len(rows) > _SAMPLE:
        rows = np.random.default_rng(0).choice(rows, _SAMPLE, replace=False)
    best = np.full(len(rows), -1.0, np.float32)
    for start in range(0, len(described), _BLOCK):
        part = described[start : start + _BLOCK]
        for turn in range(8):
            scores = _turned(described[rows], turn).reshape(len(rows), -1) @ part.reshape(len(part), -1).T
            # What is above is a copy, or the picture itself.
            scores[scores >= COPY] = -1
            np.maximum(best, scores.max(axis=1), out=best)
    return float(np.clip(by_accident(best[best > -1], len(described)), COPY, MOST_SIMILAR))


def find(described: np.ndarray, *, shown: bool = True) -> Pairs:
    """Pairs of descriptions (float32 [N, 12, 12]) above `threshold` in one of 8 orientations.

    Every two rows are compared, as products of blocks of their invariants; what these let pass is
    compared in full. Beyond 200,000 pairs, such as would join nothing new are left out.
    """
    least = threshold(described)
    bounds = invariants(described)
    progress = Progress("comparing images", len(bounds), "images", shown=shown)
    joined = np.arange(len(bounds))
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.uint8))]
    total = 0
    for start in range(0, len(bounds), _BLOCK):
        for first, second in _candidates(bounds, start, least):
            if total > _MOST_PAIRS:
                apart = joined[first] != joined[second]
                first, second = first[apart], second[apart]
            scores = orientations(described[first], described[second])
            turn = scores.argmax(axis=1)
            similarity = scores[np.arange(len(turn)), turn]
            good = similarity >= least
            total += int(good.sum())
            found.append((first[good], second[good], similarity[good], turn[good].astype(np.uint8)))
            if total > _MOST_PAIRS:
                joined = join(joined, first[good], second[good])
        progress.update(min(start + _BLOCK, len(bounds)))
    progress.close()
    first, second, similarity, turn = (np.concatenate(column) for column in zip(*found, strict=True))
    return Pairs(first, second, similarity, turn, np.zeros(len(first), bool))


def join(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """int [N]: cluster numbers after the clusters of `first` and `second` have been joined pair by pair."""
    count = len(labels)
    graph = coo_matrix((np.ones(len(first), np.int8), (labels[first], labels[second])), (count, count))
    return connected_components(graph, directed=False)[1][labels]


def _candidates(bounds: np.ndarray, start: int, least: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    part = bounds[start : start + _BLOCK]
    for other in range(start, len(bounds), _BLOCK):
        product = part @ bounds[other : other + _BLOCK].T
        hits = np.flatnonzero(product.ravel() >= least)
        first, second = np.divmod(hits, product.shape[1])
        first, second = first + start, second + other
        later = second > first
        first, second = first[later], second[later]
        for at in range(0, len(first), _AT_ONCE):
            yield first[at : at + _AT_ONCE], second[at : at + _AT_ONCE]


def _turned(described: np.ndarray, turn: int) -> np.ndarray:
    """The descriptions of the mirrored or turned pictures: signs change, axes swap."""
    sign = np.where(np.arange(described.shape[-1]) % 2, np.float32(-1), np.float32(1))
    if turn & 4:
        described = described.swapaxes(1, 2)
    if turn & 1:
        described = described * sign
    return described * sign[:, None] if turn & 2 else described
