"""Means of per-sample quantities, and that intervals and comparisons work on them."""

from typing import Any

import numpy as np
import pytest

from finesight.errors import ConfigError, DataError
from finesight.metrics.bootstrap import intervals, paired, total
from finesight.metrics.means import MeanMetric

METRIC = MeanMetric(["mse", "psnr"], loss="mse")
ROWS = np.array([[0.1, 10.0], [0.2, 7.0], [0.6, 2.0]])


def test_scores_are_means_of_the_columns() -> None:
    table = METRIC.statistics(ROWS, references=None)
    assert table.tolist() == [[0.1, 10, 1], [0.2, 7, 1], [0.6, 2, 1]]
    found = METRIC.reduce(total(table))
    assert (METRIC.names, METRIC.loss, tuple(found)) == (("mse", "psnr"), "mse", ("mse", "psnr"))
    assert found["mse"] == pytest.approx(0.3, abs=1e-15)
    assert found["psnr"] == pytest.approx(19 / 3, abs=1e-14)
    assert METRIC.statistics([[1, 2]], None).dtype == np.float64


def test_sums_of_many_resamples_are_reduced_at_once() -> None:
    table = METRIC.statistics(ROWS)
    weights = np.array([[[3.0, 0, 0], [0, 1, 1]], [[0, 0, 0], [2, 0, 2]]])
    found = METRIC.reduce(weights @ table)
    assert found["psnr"].shape == (2, 2)
    assert found["psnr"][[0, 0, 1], [0, 1, 1]] == pytest.approx([10, 4.5, 6])
    assert np.isnan(found["psnr"][1, 0])


def test_intervals_equal_those_of_resampled_means() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 2))
    found = intervals(METRIC, METRIC.statistics(rows), resamples=200, seed=3)
    generator = np.random.default_rng(3)
    means = np.array([rows[generator.integers(40, size=40)].mean(axis=0) for _ in range(200)])
    for index, name in enumerate(METRIC.names):
        ends = np.percentile(means[:, index], [2.5, 97.5])
        assert [found[name]["low"], found[name]["high"]] == pytest.approx(ends, abs=1e-12)
        assert found[name]["value"] == pytest.approx(rows[:, index].mean(), abs=1e-14)


def test_groups_of_unequal_size_weigh_by_their_samples() -> None:
    found = intervals(METRIC, METRIC.statistics(ROWS), groups=["a", "a", "b"])["psnr"]
    assert (found["low"], found["high"], found["n"]) == (2, 8.5, 3)


def test_a_small_improvement_of_every_sample_is_found() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 2))
    found = paired(METRIC, METRIC.statistics(rows), METRIC.statistics(rows + [0.0, 0.01]))
    assert found["mse"]["p"] == 1
    assert found["psnr"]["low"] == pytest.approx(0.01)
    assert found["psnr"]["high"] == pytest.approx(0.01)


def test_a_quantity_without_any_value_is_undefined_and_harms_no_other() -> None:
    undefined = METRIC.statistics(ROWS * [np.nan, 1])
    found = intervals(METRIC, undefined, resamples=50)
    assert found["mse"] == {"value": None, "low": None, "high": None, "n": 3}
    assert found["psnr"] == intervals(METRIC, METRIC.statistics(ROWS), resamples=50)["psnr"]
    compared = paired(METRIC, METRIC.statistics(ROWS), undefined)
    assert (compared["mse"]["difference"], compared["mse"]["p"]) == (None, None)
    assert (compared["psnr"]["difference"], compared["psnr"]["p"]) == (0, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[0], r"float64 and shape \(2,\).*2 columns mse, psnr"),
        (ROWS[:, :1], r"shape \(3, 1\)"),
        (ROWS.astype(str), "type <U"),
        (np.where(ROWS == 7, np.nan, ROWS), "1 of 6 quantities are not finite; the first is psnr = nan in row 1"),
        (np.where(ROWS == 0.1, -np.inf, ROWS), "mse = -inf in row 0"),
    ],
)
def test_what_has_no_mean_is_refused(rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        METRIC.statistics(rows)


@pytest.mark.parametrize(("names", "loss"), [([], "mse"), (["mse", "mse"], "mse"), (["psnr"], "mse")])
def test_names_must_differ_and_hold_the_loss(names: list[str], loss: str) -> None:
    with pytest.raises(ConfigError, match="with the loss mse: the names must be given and differ"):
        MeanMetric(names, loss)
