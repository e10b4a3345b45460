"""Bootstrap intervals: against explicit resampling, closed forms and simulated coverage."""

import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from sklearn.metrics import f1_score, log_loss

from finesight.errors import ConfigError, DataError
from finesight.metrics import bootstrap
from finesight.metrics.bootstrap import intervals, paired, total
from finesight.metrics.classification import ClassificationMetric


class Mean:
    """The mean of the second column; the first counts."""

    names = ("mean",)

    def statistics(self, predictions: Any, references: Any = None) -> NDArray[np.float64]:
        values = np.asarray(predictions, dtype=np.float64)
        return np.stack([np.ones_like(values), values], axis=1)

    def reduce(self, total: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return {"mean": total[..., 1] / total[..., 0]}


class Recall(Mean):
    """The mean over positives only: undefined without one."""

    def statistics(self, predictions: Any, references: Any = None) -> NDArray[np.float64]:
        positive = np.asarray(references, dtype=np.float64)
        return np.stack([positive, positive * np.asarray(predictions)], axis=1)


MEAN = Mean()


def bernoulli(samples: int, share: float = 0.8, seed: int = 0) -> NDArray[np.float64]:
    return MEAN.statistics(np.random.default_rng(seed).random(samples) < share)


def width(found: Any) -> float:
    return found["mean"]["high"] - found["mean"]["low"]


def classifier(
    samples: int, classes: int = 10, strength: float = 1.5, seed: int = 0
) -> tuple[ClassificationMetric, NDArray[np.float64], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(samples, classes))
    labels = generator.integers(classes, size=samples)
    logits[np.arange(samples), labels] += strength
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return ClassificationMetric([f"c{index}" for index in range(classes)]), probabilities, labels


def test_equals_scikit_learn_on_each_resample() -> None:
    metric, probabilities, labels = classifier(120, classes=4)
    found = intervals(metric, metric.statistics(probabilities, labels), resamples=80, seed=3)
    generator = np.random.default_rng(3)
    f1, nll = [], []
    for _ in range(80):
        draw = generator.integers(120, size=120)
        predicted = probabilities[draw].argmax(axis=1)
        f1.append(f1_score(labels[draw], predicted, average="macro", labels=range(4), zero_division=0))
        nll.append(log_loss(labels[draw], probabilities[draw], labels=range(4)))
    for name, values in (("macro_f1", f1), ("nll", nll)):
        low, high = np.percentile(values, [2.5, 97.5])
        assert found[name]["low"] == pytest.approx(low, abs=1e-12)
        assert found[name]["high"] == pytest.approx(high, abs=1e-12)


def test_value_is_the_whole_sample_not_a_mean_of_resamples() -> None:
    table = bernoulli(37)
    found = intervals(MEAN, table, resamples=10)["mean"]
    assert found["value"] == table[:, 1].sum() / 37
    assert found["n"] == 37
    assert {type(found[key]) for key in ("value", "low", "high")} == {float}
    assert type(found["n"]) is int


def test_width_is_the_normal_one_for_many_samples() -> None:
    found = intervals(MEAN, bernoulli(5000), resamples=4000)
    share = found["mean"]["value"]
    assert share is not None
    assert width(found) == pytest.approx(2 * 1.95996 * np.sqrt(share * (1 - share) / 5000), rel=0.05)
    assert width(intervals(MEAN, bernoulli(5000), level=0.5)) == pytest.approx(
        2 * 0.67449 * np.sqrt(share * (1 - share) / 5000), rel=0.08
    )


def test_interval_covers_the_truth_in_95_of_100_samples() -> None:
    runs, covered = 600, 0
    for run in range(runs):
        found = intervals(MEAN, bernoulli(200, share=0.7, seed=run), resamples=400, seed=run)["mean"]
        covered += found["low"] <= 0.7 <= found["high"]
    # Three standard errors of a share of 0.95 over 600 runs are 0.027.
    assert 0.92 <= covered / runs <= 0.98


def test_seed_alone_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    metric, probabilities, labels = classifier(500)
    table = metric.statistics(probabilities, labels)
    first = intervals(metric, table, seed=5, resamples=200)
    np.random.default_rng().random()
    assert intervals(metric, table, seed=5, resamples=200) == first
    assert intervals(metric, table, seed=6, resamples=200) != first
    monkeypatch.setattr(bootstrap, "_CHUNK_VALUES", 500 * 7)
    chunked = intervals(metric, table, seed=5, resamples=200)
    for name, interval in first.items():
        assert chunked[name]["low"] == pytest.approx(interval["low"], rel=1e-12), name
        assert chunked[name]["high"] == pytest.approx(interval["high"], rel=1e-12), name


def test_sparse_equals_dense_also_by_groups() -> None:
    metric, probabilities, labels = classifier(300)
    dense = metric.statistics(probabilities, labels)
    thin = sparse.csr_array(dense)
    groups = [f"leaf {index // 3}" for index in range(300)]
    for options in ({}, {"groups": groups}):
        expected = intervals(metric, dense, resamples=100, **options)
        found = intervals(metric, thin, resamples=100, **options)
        for name in expected:
            assert found[name] == pytest.approx(expected[name], rel=1e-12), name
    assert (total(thin) == total(dense)).all()
    assert (total(sparse.csr_matrix(dense)) == total(dense)).all()


def test_copies_of_a_sample_add_no_certainty() -> None:
    copies = 9
    table = bernoulli(400)
    repeated = np.repeat(table, copies, axis=0)
    groups = np.repeat(np.arange(400), copies)
    alone = intervals(MEAN, table, seed=1, resamples=2000)
    ignored = intervals(MEAN, repeated, seed=1, resamples=2000)
    grouped = intervals(MEAN, repeated, groups=groups, seed=1, resamples=2000)
    assert width(alone) / width(ignored) == pytest.approx(np.sqrt(copies), rel=0.08)
    assert grouped["mean"] == alone["mean"] | {"n": 3600}


def test_groups_of_unequal_size_move_the_denominator() -> None:
    # One group of 90 right ones, ten single wrong ones: accuracy 0.9 rests on one origin only.
    table = MEAN.statistics([1] * 90 + [0] * 10)
    found = intervals(MEAN, table, groups=["big"] * 90 + [f"small {index}" for index in range(10)])["mean"]
    assert found["value"] == 0.9
    assert found["low"] == 0


def test_one_sample_or_one_group_has_no_interval() -> None:
    one = {"value": 1.0, "low": None, "high": None}
    assert intervals(MEAN, MEAN.statistics([1.0]))["mean"] == one | {"n": 1}
    assert intervals(MEAN, MEAN.statistics([1.0] * 5), groups=["x"] * 5)["mean"] == one | {"n": 5}
    alone = paired(MEAN, MEAN.statistics([1.0]), MEAN.statistics([0.0]))["mean"]
    assert alone == {"a": 1.0, "b": 0.0, "difference": -1.0, "low": None, "high": None, "p": None, "n": 1}


def test_resamples_without_the_class_are_left_out() -> None:
    # 37 % of resamples miss the only positive; numpy.percentile would return NaN for both ends.
    metric = Recall()
    found = intervals(metric, metric.statistics([1.0] * 20, [1] + [0] * 19))["mean"]
    assert found == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 20}
    never = intervals(metric, metric.statistics([1.0] * 20, [0] * 20))["mean"]
    assert never == {"value": None, "low": None, "high": None, "n": 20}


def test_percentiles_equal_numpy_with_nan_and_infinity() -> None:
    values = np.random.default_rng(0).normal(size=(101, 6))
    values[np.random.default_rng(1).random(values.shape) < 0.3] = np.nan
    values[:, 4] = np.nan
    values[:, 5] = [1.0] * 41 + [np.inf] * 60
    low, high = bootstrap._percentiles(values, 0.9)
    expected = np.nanpercentile(values[:, :4], [5, 95], axis=0)
    assert np.allclose(np.stack([low, high])[:, :4], expected, rtol=0, atol=1e-15)
    assert np.isnan([low[4], high[4]]).all()
    assert (low[5], high[5]) == (1, np.inf)


def test_identical_runs_do_not_differ() -> None:
    metric, probabilities, labels = classifier(400)
    table = metric.statistics(probabilities, labels)
    for name, found in paired(metric, table, table.copy(), resamples=300).items():
        assert found["a"] == found["b"], name
        assert (found["difference"], found["low"], found["high"], found["p"]) == (0, 0, 0, 1), name


def test_paired_finds_what_two_separate_intervals_hide() -> None:
    generator = np.random.default_rng(0)
    right_a = generator.random(1000) < 0.7
    right_b = right_a.copy()
    right_b[np.flatnonzero(~right_a)[:25]] = True
    right_b[np.flatnonzero(right_a)[:5]] = False
    table_a, table_b = MEAN.statistics(right_a), MEAN.statistics(right_b)
    found = paired(MEAN, table_a, table_b)["mean"]
    assert found["difference"] == pytest.approx(0.02)
    # McNemar: the variance of the difference comes from the 30 disagreements only.
    half = 1.95996 * np.sqrt(30 / 1000 - 0.02**2) / np.sqrt(1000)
    assert found["low"] == pytest.approx(0.02 - half, abs=0.0015)
    assert found["high"] == pytest.approx(0.02 + half, abs=0.0015)
    assert found["p"] == pytest.approx(2 / 1001)
    a, b = (intervals(MEAN, table)["mean"] for table in (table_a, table_b))
    assert a["high"] > b["low"]
    swapped = paired(MEAN, table_b, table_a)["mean"]
    assert swapped["difference"] == -found["difference"]
    assert (swapped["low"], swapped["high"]) == pytest.approx((-found["high"], -found["low"]))
    assert swapped["p"] == found["p"]


def test_paired_p_is_uniform_where_nothing_differs() -> None:
    below = 0
    for run in range(300):
        generator = np.random.default_rng(run)
        a, b = MEAN.statistics(generator.normal(size=150)), MEAN.statistics(generator.normal(size=150))
        p = paired(MEAN, a, b, resamples=200, seed=run)["mean"]["p"]
        below += p < 0.2
    # 60 expected, standard deviation 6.9. A one-sided p would give 30 or 120.
    assert 40 <= below <= 80


def test_paired_by_groups_is_as_uncertain_as_the_groups() -> None:
    generator = np.random.default_rng(2)
    a, b = MEAN.statistics(generator.normal(size=100)), MEAN.statistics(generator.normal(size=100))
    alone = paired(MEAN, a, b)["mean"]
    groups = np.repeat(np.arange(100), 4)
    grouped = paired(MEAN, a.repeat(4, axis=0), b.repeat(4, axis=0), groups=groups)["mean"]
    assert grouped == pytest.approx(alone | {"n": 400})


def test_pairing_refuses_other_samples() -> None:
    with pytest.raises(DataError, match=r"shapes \(5, 2\) and \(6, 2\).*same samples.*evaluate both runs"):
        paired(MEAN, bernoulli(5), bernoulli(6))
    with pytest.raises(DataError, match=r"shapes \(5, 2\) and \(5, 1\)"):
        paired(MEAN, bernoulli(5), bernoulli(5)[:, :1])


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(0, 2\).*not empty"):
        intervals(MEAN, np.zeros((0, 2)))
    with pytest.raises(DataError, match="3 groups for 5 samples"):
        intervals(MEAN, bernoulli(5), groups=["a", "b", "c"])
    with pytest.raises(ConfigError) as raised:
        intervals(MEAN, bernoulli(5), resamples=0, level=95)
    assert len(raised.value.problems) == 2


def test_total_is_correctly_rounded_in_any_order() -> None:
    values = np.array([1e16, 1.5, -1e16, 1.5, 2.0**-30])
    table = np.stack([np.ones(5), values], axis=1)
    assert total(table).tolist() == [5, 3 + 2.0**-30]
    assert (total(table[::-1]) == total(table)).all()
    assert (total(sparse.csr_array(table[[3, 1, 0, 4, 2]])) == total(table)).all()


@pytest.mark.parametrize("classes", [10, 1000])
def test_a_thousand_resamples_of_ten_thousand_samples_in_a_second(classes: int) -> None:
    metric, probabilities, labels = classifier(10_000, classes=classes)
    table = metric.statistics(probabilities, labels)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        intervals(metric, table)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0
