"""Confidence intervals and paired comparisons for every metric that is a function of a sum.

A metric is a table of per-sample statistics [N, K] and a function of its column sums. A resample of
the N samples is a row of N weights (how often each was drawn), so R resamples are one matrix product
[R, N] @ [N, K], whatever the metric. Intervals are percentile bootstrap (Efron 1979).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finesight.errors import ConfigError, DataError

Floats: TypeAlias = NDArray[np.float64]
Table: TypeAlias = Any
"""Per-sample statistics, float64 [N, K]: `numpy.ndarray`, or a `scipy.sparse` array where K is large."""

_CHUNK_VALUES = 2**22


class Metric(Protocol):
    """Per-sample statistics, and a function of their sum.

    `statistics` takes a batch and returns float64 [N, K], dense or scipy.sparse, one row per sample.
    `reduce` takes sums of rows [..., K] and returns one array [...] per name; NaN where undefined. `loss` is
    the one of `names` that stands for the loss of a held-out split.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def loss(self) -> str: ...

    def statistics(self, predictions: Any, references: Any) -> Table: ...

    def reduce(self, total: Floats) -> dict[str, NDArray[Any]]: ...


def total(table: Table) -> Floats:
    """Column sums [K] of a table [N, K], each correctly rounded, so independent of the order of rows.

    Sums of counts are exact: the totals of shards add up to the total of the whole. Sums of
    fractional columns (NLL, calibration) taken per shard and then added agree to the last bit or two;
    where processes must agree exactly, concatenate the rows in any order and sum once.
    """
    sums = np.asarray(table.sum(axis=0), dtype=np.float64).reshape(-1)
    if isinstance(table, np.ndarray):
        for column in np.flatnonzero((table != np.rint(table)).any(axis=0)):
            sums[column] = _exact_sum(table[:, column])
        return sums
    columns = table.tocoo()
    fractional = np.unique(columns.col[columns.data != np.rint(columns.data)])
    for column in fractional:
        sums[column] = _exact_sum(columns.data[columns.col == column])
    return sums


def intervals(
    metric: Metric,
    table: Table,
    *,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """{name: {"value", "low", "high", "n"}}: value and percentile bootstrap interval of every score.

    `table` [N, K] is what `metric.statistics` returned; `groups` [N] names samples that share an
    origin: groups are then drawn instead of samples (cluster bootstrap), `n` stays N. The value is
    `reduce` of the exact sum, without resampling. `low` and `high` are None where there is one
    sample or one group only; NaN becomes None; resamples in which a metric is NaN are left out of
    its percentiles. The result is a function of the rows, their order and `seed`.

    A percentile interval knows only the mistakes in the sample: with none it has zero width (the
    95 % bound on an unseen error rate is still about 3 / n), and with fewer than about 30 samples it
    is too narrow. Expected calibration error is biased upwards in small samples and once more in
    its resamples, so its value can lie at or below the lower end.

    Raises `DataError` for an empty table or groups of another length, `ConfigError` for an impossible
    `resamples` or `level`.
    """
    _check_request(resamples, level)
    _check_table(table, groups)
    values = metric.reduce(total(table))
    names = list(values)
    low = high = np.full(len(names), np.nan)
    units = _units(table, groups)
    if units.shape[0] > 1:
        drawn = [_stack(metric.reduce(sums)) for (sums,) in _resample((units,), resamples, seed)]
        low, high = _percentiles(np.concatenate(drawn), level)
    return {
        name: {
            "value": _plain(values[name]),
            "low": _plain(low[position]),
            "high": _plain(high[position]),
            "n": int(table.shape[0]),
        }
        for position, name in enumerate(names)
    }


def paired(
    metric: Metric,
    table_a: Table,
    table_b: Table,
    *,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """{name: {"a", "b", "difference", "low", "high", "p", "n"}}: difference b - a of two runs.

    Row i of both tables is the same sample, and both are resampled with the same weights, so what
    makes a sample hard for both runs cancels. `low` and `high` bound the difference. p inverts that
    interval, two-sided: 2 min(P(d <= 0), P(d >= 0)) with one added to both counts (Davison and Hinkley
    1997, ch. 4), so it is never below 2 / (resamples + 1); it is not corrected for comparing many
    metrics. Arguments and None as in `intervals`.

    Raises `DataError` also where the tables differ in shape.
    """
    _check_request(resamples, level)
    if table_a.shape != table_b.shape:
        raise DataError(
            f"The runs cannot be paired: tables of statistics of shapes {tuple(table_a.shape)} and "
            f"{tuple(table_b.shape)}. Both need the same samples in the same order and the same classes; "
            "evaluate both runs on one split."
        )
    _check_table(table_a, groups)
    value_a, value_b = metric.reduce(total(table_a)), metric.reduce(total(table_b))
    names = list(value_a)
    low = high = p = np.full(len(names), np.nan)
    units = (_units(table_a, groups), _units(table_b, groups))
    if units[0].shape[0] > 1:
        drawn = [
            _difference(_stack(metric.reduce(a)), _stack(metric.reduce(b)))
            for a, b in _resample(units, resamples, seed)
        ]
        differences = np.concatenate(drawn)
        low, high = _percentiles(differences, level)
        p = _two_sided(differences)
    return {
        name: {
            "a": _plain(value_a[name]),
            "b": _plain(value_b[name]),
            "difference": _plain(value_b[name] - value_a[name]),
            "low": _plain(low[position]),
            "high": _plain(high[position]),
            "p": _plain(p[position]),
            "n": int(table_a.shape[0]),
        }
        for position, name in enumerate(names)
    }


def _check_request(resamples: int, level: float) -> None:
    problems = []
    if resamples < 1:
        problems.append(f"resamples = {resamples}: at least one resample is needed; 1000 is usual.")
    if not 0 < level < 1:
        problems.append(f"level = {level}: the level lies between 0 and 1; 0.95 is usual.")
    if problems:
        raise ConfigError(*problems)


def _check_table(table: Table, groups: Sequence[Any] | NDArray[Any] | None) -> None:
    if len(table.shape) != 2 or table.shape[0] == 0:
        raise DataError(
            f"A table of statistics of shape {tuple(table.shape)}: at least one sample [N, K] is needed. "
            "Check that the split is not empty."
        )
    if groups is not None and len(groups) != table.shape[0]:
        raise DataError(
            f"{len(groups)} groups for {table.shape[0]} samples: each sample needs exactly one group. "
            "Take both from the same split, in the same order."
        )


def _units(table: Table, groups: Sequence[Any] | NDArray[Any] | None) -> Table:
    """What is drawn: the rows themselves, or one row of sums per group [G, K]."""
    if groups is None:
        return table
    from scipy import sparse

    unique, of_sample = np.unique(np.asarray(groups), return_inverse=True)
    samples = len(of_sample)
    member = sparse.csr_array(
        (np.ones(samples), (of_sample.reshape(-1), np.arange(samples))), shape=(len(unique), samples)
    )
    return member @ table


def _resample(tables: tuple[Table, ...], resamples: int, seed: int) -> Iterator[tuple[Floats, ...]]:
    """Sums [r, K] of each table under the same draws, a chunk of resamples at a time.

    The draws are one stream of the generator, so the size of a chunk changes memory, not results.
    """
    generator = np.random.default_rng(seed)
    units = tables[0].shape[0]
    size = max(1, min(resamples, _CHUNK_VALUES // max(tables[0].shape)))
    for start in range(0, resamples, size):
        weights = np.empty((min(size, resamples - start), units))
        for row in weights:
            row[:] = np.bincount(generator.integers(units, size=units), minlength=units)
        yield tuple(weights @ table for table in tables)


def _stack(reduced: dict[str, NDArray[Any]]) -> Floats:
    return np.stack(list(reduced.values()), axis=-1).astype(np.float64, copy=False)


def _difference(a: Floats, b: Floats) -> Floats:
    # A matrix product may round the same column differently in its two places; equal must stay equal.
    return np.where(np.isclose(a, b, rtol=1e-12, atol=1e-15), 0.0, b - a)


def _two_sided(differences: Floats) -> Floats:
    valid = (~np.isnan(differences)).sum(axis=0)
    fewer = np.minimum((differences <= 0).sum(axis=0), (differences >= 0).sum(axis=0))
    return np.where(valid > 0, np.minimum(1.0, 2 * (fewer + 1) / (valid + 1)), np.nan)


def _percentiles(values: Floats, level: float) -> tuple[Floats, Floats]:
    """Both ends per column of [R, M], NaN left out; numpy's linear rule, all columns at once.

    `numpy.nanpercentile` works column by column: seconds for thousands of classes.
    """
    ordered = np.sort(values, axis=0)
    last = np.maximum((~np.isnan(values)).sum(axis=0) - 1, 0)

    def at(quantile: float) -> Floats:
        position = quantile * last
        below = np.floor(position).astype(np.intp)
        lower = np.take_along_axis(ordered, below[None], axis=0)[0]
        upper = np.take_along_axis(ordered, np.minimum(below + 1, last)[None], axis=0)[0]
        with np.errstate(invalid="ignore"):
            return np.where(lower == upper, lower, lower + (upper - lower) * (position - below))

    return at((1 - level) / 2), at((1 + level) / 2)


def _exact_sum(values: NDArray[Any]) -> float:
    return math.fsum(values.tolist())


def _plain(value: Any) -> float | None:
    number = float(value)
    return None if math.isnan(number) else number
