"""AUROC and its interval: against scikit-learn, explicit resampling, and DeLong's standard error."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from finesight.errors import ConfigError, DataError
from finesight.metrics import anomaly
from finesight.metrics.anomaly import auroc, auroc_interval

Floats = NDArray[np.float64]


def sides(normal: int, anomalous: int, shift: float = 1.0, seed: int = 0) -> tuple[Floats, Floats]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=normal), generator.normal(shift, size=anomalous)


def by_sklearn(normal: Floats, anomalous: Floats) -> float:
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    return float(roc_auc_score(labels, np.concatenate([normal, anomalous])))


def test_every_pair_counts_and_ties_count_half() -> None:
    assert auroc([1, 2, 3], [4, 5]) == 1
    assert auroc([4, 5], [1, 2, 3]) == 0
    assert auroc([1, 1], [1]) == 0.5
    # Six pairs: three won, one lost, two tied.
    assert auroc([0.0, 1.0, 2.0], [1.0, 2.0]) == pytest.approx((3 + 0.5 * 2) / 6, abs=1e-15)


@pytest.mark.parametrize("decimals", [0, 1, 15])
@pytest.mark.parametrize(("normal", "anomalous"), [(1, 1), (1, 30), (200, 13), (500, 700)])
def test_equals_scikit_learn_also_with_ties(normal: int, anomalous: int, decimals: int) -> None:
    low, high = (np.round(scores, decimals) for scores in sides(normal, anomalous))
    assert auroc(low, high) == pytest.approx(by_sklearn(low, high), abs=1e-13)
    assert auroc(high, low) == pytest.approx(1 - auroc(low, high), abs=1e-13)
    assert auroc(np.exp(low), np.exp(high)) == auroc(low, high)


def test_interval_equals_explicit_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = (np.round(scores, 1) for scores in sides(60, 25))
    found = auroc_interval(low, high, resamples=150, seed=4, level=0.9)
    generator = np.random.default_rng(4)
    drawn = []
    for _ in range(150):
        of_normal, of_anomalous = generator.integers(60, size=60), generator.integers(25, size=25)
        drawn.append(by_sklearn(low[of_normal], high[of_anomalous]))
    ends = np.percentile(drawn, [5, 95])
    assert [found["low"], found["high"]] == pytest.approx(ends, abs=1e-12)
    assert (found["value"], found["n"]) == (auroc(low, high), 85)
    assert {type(found[key]) for key in ("value", "low", "high")} == {float}
    monkeypatch.setattr(anomaly, "_CHUNK_VALUES", 7 * 30)
    assert auroc_interval(low, high, resamples=150, seed=4, level=0.9) == found
    assert auroc_interval(low, high, resamples=150, seed=5, level=0.9) != found


def test_interval_by_groups_equals_explicit_resampling() -> None:
    low, high = sides(20, 12)
    of_low, of_high = np.arange(20) // 3, np.array(list("aaabbbbcdddd"))
    found = auroc_interval(low, high, resamples=100, seed=1, groups_normal=of_low, groups_anomalous=of_high)
    generator = np.random.default_rng(1)
    drawn = []
    for _ in range(100):
        first, second = generator.integers(7, size=7), generator.integers(4, size=4)
        drawn.append(
            by_sklearn(
                np.concatenate([low[of_low == group] for group in first]),
                np.concatenate([high[of_high == "abcd"[group]] for group in second]),
            )
        )
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=1e-12)


def test_width_is_that_of_delong() -> None:
    low, high = sides(400, 150)
    won = (high[:, None] > low).astype(float)
    error = np.sqrt(won.mean(axis=1).var(ddof=1) / 150 + won.mean(axis=0).var(ddof=1) / 400)
    found = auroc_interval(low, high, resamples=4000)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.95996 * error, rel=0.06)
    # The true AUROC of two normals one standard deviation apart.
    assert found["low"] < 0.7602 < found["high"]


def test_copies_of_a_sample_add_no_certainty() -> None:
    low, high = sides(80, 40)
    alone = auroc_interval(low, high, seed=2)
    repeated = auroc_interval(low.repeat(4), high.repeat(4), seed=2)
    groups: dict[str, Any] = {"groups_normal": np.arange(80).repeat(4), "groups_anomalous": np.arange(40).repeat(4)}
    assert auroc_interval(low.repeat(4), high.repeat(4), seed=2, **groups) == pytest.approx(alone | {"n": 480})
    assert (alone["high"] - alone["low"]) / (repeated["high"] - repeated["low"]) == pytest.approx(2, rel=0.1)


def test_one_unit_on_a_side_has_no_interval() -> None:
    low, high = sides(5, 5)
    for found in (
        auroc_interval(low, high[:1]),
        auroc_interval(low[:1], high),
        auroc_interval(low, high, groups_anomalous=["patient"] * 5),
        auroc_interval(low, high, groups_normal=["patient"] * 5),
    ):
        assert (found["low"], found["high"]) == (None, None)
    assert auroc_interval([0.0, 0.1], [1.0, 2.0]) == {"value": 1, "low": 1, "high": 1, "n": 4}


@pytest.mark.parametrize(
    ("normal", "anomalous", "message"),
    [
        ([], [1.0], r"normal samples of type float64 and shape \(0,\).*at least one sample"),
        ([1.0], [], "anomalous samples.*holds both normal and anomalous"),
        ([[1.0]], [1.0], r"shape \(1, 1\)"),
        (["a"], [1.0], "type <U1"),
        ([1.0, np.nan], [1.0], "1 of 2 scores of the normal samples are not finite; the first is nan in row 1"),
        ([1.0], [np.inf, -np.inf], "2 of 2 scores of the anomalous samples are not finite; the first is inf"),
    ],
)
def test_what_has_no_rank_is_refused(normal: Any, anomalous: Any, message: str) -> None:
    for function in (auroc, auroc_interval):
        with pytest.raises(DataError, match=message):
            function(normal, anomalous)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(DataError, match="3 groups for 2 anomalous samples"):
        auroc_interval([1.0], [1.0, 2.0], groups_anomalous=[1, 2, 3])
    wrong: list[dict[str, Any]] = [{"resamples": 0}, {"level": 95}]
    for options in wrong:
        with pytest.raises(ConfigError, match="1000 and 0.95 are usual"):
            auroc_interval([1.0], [1.0], **options)
