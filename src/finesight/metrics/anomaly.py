"""AUROC of anomaly scores, and its interval.

AUROC compares every anomalous sample with every normal one, so it is no function of sums over samples:
the table of statistics of the other metrics does not exist, and the interval resamples the samples.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finesight.errors import ConfigError, DataError
from finesight.metrics.bootstrap import Floats

Groups: TypeAlias = Sequence[Any] | NDArray[Any] | None

_CHUNK_VALUES = 2**21


def auroc(normal: ArrayLike, anomalous: ArrayLike) -> float:
    """P(anomalous > normal) + P(equal) / 2, in [0, 1]: the Mann-Whitney U statistic over N M.

    Scores float [N] of normal and [M] of anomalous samples, higher the more anomalous; 0.5 is chance.
    Raises `DataError` for a side that is empty, not one-dimensional or not finite.
    """
    below, above, levels = _ranks(_read(normal, "normal"), _read(anomalous, "anomalous"))
    return float(_area(np.bincount(below, minlength=levels), np.bincount(above, minlength=levels)))


def auroc_interval(
    normal: ArrayLike,
    anomalous: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    groups_normal: Groups = None,
    groups_anomalous: Groups = None,
) -> dict[str, Any]:
    """{"value", "low", "high", "n"}: AUROC with its percentile bootstrap interval (Efron 1979), n = N + M.

    Each resample draws samples with replacement within each side, so the shares of the sides stay;
    where groups [N] or [M] name samples that share an origin, whole groups. The sides are drawn
    independently, also where a group stands on both. `low` and `high` are None where a side has one
    sample or one group only. With no mistake in the sample the interval has zero width, as in
    `bootstrap.intervals`. The result is a function of the scores, their order and `seed`.

    Raises `DataError` as `auroc` and for groups of another length, `ConfigError` for an impossible
    `resamples` or `level`.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ConfigError(
            f"resamples = {resamples}, level = {level}: at least one resample and a level between 0 and 1 are "
            "needed; 1000 and 0.95 are usual."
        )
    sides = _read(normal, "normal"), _read(anomalous, "anomalous")
    units = _units(sides[0], groups_normal, "normal"), _units(sides[1], groups_anomalous, "anomalous")
    below, above, levels = _ranks(*sides)
    value = _area(np.bincount(below, minlength=levels), np.bincount(above, minlength=levels))
    result: dict[str, Any] = {"value": float(value), "low": None, "high": None, "n": len(below) + len(above)}
    if min(int(unit.max()) for unit in units) > 0:
        drawn = _resample((below, above), units, levels, resamples, np.random.default_rng(seed))
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        result.update(low=float(low), high=float(high))
    return result


def _read(scores: ArrayLike, side: str) -> Floats:
    values = np.asarray(scores)
    if values.ndim != 1 or len(values) == 0 or values.dtype.kind not in "fiub":
        raise DataError(
            f"Scores of the {side} samples of type {values.dtype} and shape {values.shape}: one number per sample is "
            "needed, and at least one sample. Check that the split holds both normal and anomalous samples."
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(values)} scores of the {side} samples are not finite; the first is "
            f"{values[bad[0]]:g} in row {bad[0]}. Such a score has no rank; check the outputs of the model."
        )
    return values.astype(np.float64)


def _units(scores: Floats, groups: Groups, side: str) -> NDArray[np.intp]:
    """Index [N] of what is drawn: the sample, or its group."""
    if groups is None:
        return np.arange(len(scores))
    if len(groups) != len(scores):
        raise DataError(
            f"{len(groups)} groups for {len(scores)} {side} samples: each sample needs exactly one group. "
            "Take both from the same split, in the same order."
        )
    return np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)


def _ranks(normal: Floats, anomalous: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
    """Rank [N] and [M] of each score among the distinct scores of both sides, and their number."""
    distinct, rank = np.unique(np.concatenate([normal, anomalous]), return_inverse=True)
    rank = rank.reshape(-1)
    return rank[: len(normal)], rank[len(normal) :], len(distinct)


def _area(normal: NDArray[Any], anomalous: NDArray[Any]) -> Any:
    """AUROC [...] from the numbers of normal and anomalous samples [..., L] at each distinct score, ascending."""
    # Twice the number of normal samples below, plus those equal: whole numbers, so exact up to the division.
    twice = 2 * np.cumsum(normal, axis=-1) - normal
    pairs = normal.sum(axis=-1) * anomalous.sum(axis=-1)
    return (twice * anomalous).sum(axis=-1) / (2 * pairs)


def _resample(
    ranks: tuple[NDArray[np.intp], NDArray[np.intp]],
    units: tuple[NDArray[np.intp], NDArray[np.intp]],
    levels: int,
    resamples: int,
    generator: np.random.Generator,
) -> Floats:
    """AUROC [R] of each resample. The scores are ranked once: a resample only changes their numbers."""
    sizes = tuple(int(unit.max()) + 1 for unit in units)
    step = max(1, min(resamples, _CHUNK_VALUES // levels))
    parts = []
    for start in range(0, resamples, step):
        counts = np.empty((2, min(step, resamples - start), levels))
        for resample in range(counts.shape[1]):
            for side in (0, 1):
                times = np.bincount(generator.integers(sizes[side], size=sizes[side]), minlength=sizes[side])
                counts[side, resample] = np.bincount(ranks[side], weights=times[units[side]], minlength=levels)
        parts.append(_area(counts[0], counts[1]))
    return np.concatenate(parts)
