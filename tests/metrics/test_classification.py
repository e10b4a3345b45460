"""Classification scores: equal to scikit-learn, calibration in closed form, and what is refused."""

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as oracle

from finesight.errors import ConfigError, DataError
from finesight.metrics import classification
from finesight.metrics.bootstrap import intervals, total
from finesight.metrics.classification import (
    ClassificationMetric,
    confusion_matrix,
    impossible_f1,
    per_class_table,
    reliability,
)

Data = tuple[NDArray[np.float64], NDArray[np.int64]]


def names(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]


def random_data(samples: int, classes: int, seed: int = 0) -> Data:
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(samples, classes))
    labels = generator.integers(classes, size=samples)
    logits[np.arange(samples), labels] += 1.5
    probabilities = np.exp(logits)
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def scores(probabilities: NDArray[np.float64], labels: NDArray[np.int64], **options: int) -> dict[str, float]:
    metric = ClassificationMetric(names(probabilities.shape[1]), **options)
    reduced = metric.reduce(total(metric.statistics(probabilities, labels)))
    assert tuple(reduced) == metric.names
    return {name: float(value) for name, value in reduced.items()}


def expected(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """What scikit-learn says of every score it has, over the full list of classes."""
    count = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    result = {"accuracy": oracle.accuracy_score(labels, predicted)}
    options = {"labels": range(count), "zero_division": 0}
    for mean in ("macro", "weighted"):
        triple = oracle.precision_recall_fscore_support(labels, predicted, average=mean, **options)[:3]
        result |= {f"{mean}_{part}": value for part, value in zip(("precision", "recall", "f1"), triple, strict=True)}
    triple = oracle.precision_recall_fscore_support(labels, predicted, average=None, **options)[:3]
    for part, values in zip(("precision", "recall", "f1"), triple, strict=True):
        result |= {f"{part}/class {index}": value for index, value in enumerate(values)}
    result["nll"] = oracle.log_loss(labels, probabilities, labels=range(count))
    if count > 5:
        result["top_5_accuracy"] = oracle.top_k_accuracy_score(labels, probabilities, k=5, labels=range(count))
    return result


def absent_class() -> Data:
    """Class 2 is neither a reference nor a prediction; class 3 is never predicted, class 0 never right."""
    probabilities, labels = random_data(200, 7, seed=1)
    labels[labels == 2] = 5
    probabilities[:, 2:4] *= 1e-9
    probabilities[labels == 0, 0] *= 1e-9
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def one_reference_class() -> Data:
    probabilities, labels = random_data(100, 4, seed=2)
    return probabilities, np.full_like(labels, 3)


CASES = {
    "random 10": random_data(1000, 10),
    "random 2": random_data(500, 2, seed=3),
    "random 200, sparse": random_data(2000, 200, seed=4),
    "absent class": absent_class(),
    "one reference class": one_reference_class(),
    "one sample": random_data(1, 6, seed=5),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_scikit_learn(case: str) -> None:
    ours, theirs = scores(*CASES[case]), expected(*CASES[case])
    assert set(ours) - set(theirs) == {"expected_calibration_error"}
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-12, rel=1e-12), name


def test_degenerate_data_is_degenerate() -> None:
    probabilities, labels = CASES["absent class"]
    predicted = probabilities.argmax(axis=1)
    assert 2 not in labels
    assert not np.isin(predicted, [2, 3]).any()
    assert {0, 3} <= set(labels)
    assert not ((predicted == labels) & (labels == 0)).any()


def test_macro_counts_an_absent_class_as_zero() -> None:
    values = scores(np.eye(3)[[0, 0, 1, 1]], np.array([0, 0, 1, 1]))
    assert values["accuracy"] == values["weighted_f1"] == 1
    assert values["macro_f1"] == pytest.approx(2 / 3)
    assert values["f1/class 2"] == values["precision/class 2"] == values["recall/class 2"] == 0


def test_one_class_only() -> None:
    values = scores(np.ones((3, 1)), np.zeros(3, dtype=np.int64))
    assert values["accuracy"] == values["macro_f1"] == values["f1/class 0"] == 1
    assert values["nll"] == values["expected_calibration_error"] == 0
    assert "top_5_accuracy" not in values


def test_ties_go_to_the_earlier_class_and_top_one_is_accuracy() -> None:
    uniform = np.full((6, 6), 1 / 6)
    labels = np.arange(6)
    values = scores(uniform, labels)
    assert values["accuracy"] == pytest.approx(1 / 6)
    assert values["top_5_accuracy"] == pytest.approx(5 / 6)
    # A rule that only counts strictly larger probabilities would call every tie a hit.
    for k in range(1, 6):
        assert scores(uniform, labels, top_k=k)[f"top_{k}_accuracy"] == pytest.approx(k / 6)
    coarse = np.round(random_data(400, 8, seed=6)[0] * 4) + 1
    coarse /= coarse.sum(axis=1, keepdims=True)
    labels = np.random.default_rng(6).integers(8, size=400)
    values = scores(coarse, labels, top_k=1)
    assert values["top_1_accuracy"] == values["accuracy"]
    order = np.argsort(-coarse, axis=1, kind="stable")
    top_3 = (order[:, :3] == labels[:, None]).any(axis=1).mean()
    assert scores(coarse, labels, top_k=3)["top_3_accuracy"] == top_3


@pytest.mark.parametrize(("classes", "present"), [(5, False), (6, True)])
def test_top_5_stands_only_where_it_says_something(classes: int, present: bool) -> None:
    assert ("top_5_accuracy" in ClassificationMetric(names(classes)).names) is present


def test_calibration_error_in_closed_form() -> None:
    # Three of four right at 0.8 and one of two at 0.6: (4 |0.75 - 0.8| + 2 |0.5 - 0.6|) / 6.
    first = np.array([0.8, 0.8, 0.8, 0.8, 0.6, 0.6])
    probabilities = np.stack([first, 1 - first], axis=1)
    labels = np.array([0, 0, 0, 1, 0, 1])
    assert scores(probabilities, labels)["expected_calibration_error"] == pytest.approx(0.4 / 6, abs=1e-15)
    # In one bin the differences cancel before the absolute value: |4 / 6 - 4.4 / 6|.
    assert scores(probabilities, labels, bins=1)["expected_calibration_error"] == pytest.approx(0.4 / 6)
    labels = np.array([0, 0, 0, 0, 0, 1])
    assert scores(probabilities, labels)["expected_calibration_error"] == pytest.approx((0.8 + 0.2) / 6)
    assert scores(probabilities, labels, bins=1)["expected_calibration_error"] == pytest.approx(0.6 / 6)


def test_calibration_bins_are_closed_on_the_right() -> None:
    # 0.5 belongs to (0.25, 0.5]; with bins closed on the left it would share one with 0.6 and cancel.
    probabilities = np.array([[0.5, 0.25, 0.25], [0.6, 0.2, 0.2]])
    labels = np.array([0, 1])
    count, confidence, accuracy = reliability(probabilities, labels, bins=4)
    assert count.tolist() == [0, 1, 1, 0]
    assert confidence[1:3].tolist() == [0.5, 0.6]
    assert accuracy[1:3].tolist() == [1, 0]
    assert np.isnan(confidence[[0, 3]]).all()
    assert np.isnan(accuracy[[0, 3]]).all()
    assert scores(probabilities, labels, bins=4)["expected_calibration_error"] == pytest.approx((0.5 + 0.6) / 2)


def test_certain_and_right_is_calibrated_certain_and_wrong_is_not() -> None:
    certain = np.eye(3)[[0, 1, 2]]
    assert scores(certain, np.array([0, 1, 2]))["expected_calibration_error"] == 0
    assert scores(certain, np.array([1, 2, 0]))["expected_calibration_error"] == 1


def test_reliability_gives_the_calibration_error() -> None:
    probabilities, labels = random_data(3000, 5, seed=7)
    count, confidence, accuracy = reliability(probabilities, labels)
    assert count.sum() == 3000
    error = np.nansum(count * np.abs(accuracy - confidence)) / 3000
    assert scores(probabilities, labels)["expected_calibration_error"] == pytest.approx(error, abs=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_overconfident_miss_is_large_not_infinite(dtype: type) -> None:
    miss = scores(np.array([[1, 0], [1, 0]], dtype=dtype), np.array([0, 1]))
    assert miss["nll"] == pytest.approx(-np.log(2.0**-149) / 2)
    assert miss["nll"] == pytest.approx(103.279 / 2, abs=1e-3)


def test_confusion_matrix_equals_scikit_learn_from_indices_and_probabilities() -> None:
    probabilities, labels = CASES["absent class"]
    predicted = probabilities.argmax(axis=1)
    theirs = oracle.confusion_matrix(labels, predicted, labels=range(7))
    ours = confusion_matrix(predicted, labels, names(7))
    assert ours.dtype == np.int64
    assert (ours == theirs).all()
    assert (confusion_matrix(probabilities, labels, names(7)) == theirs).all()
    assert confusion_matrix([1, 1], [0, 1], ["a", "b"]).tolist() == [[0, 1], [0, 1]]


def test_dense_and_sparse_tables_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, labels = random_data(300, 12, seed=8)
    metric = ClassificationMetric(names(12))
    dense = metric.statistics(probabilities, labels)
    monkeypatch.setattr(classification, "DENSE_CLASSES", 3)
    sparse = metric.statistics(probabilities, labels)
    assert isinstance(dense, np.ndarray)
    assert (sparse.toarray() == dense).all()
    assert sparse.nnz <= 7 * 300


def test_shards_add_up_to_the_whole() -> None:
    probabilities, labels = random_data(1001, 10, seed=9)
    metric = ClassificationMetric(names(10))
    whole = metric.statistics(probabilities, labels)
    shards = [metric.statistics(probabilities[rank::3], labels[rank::3]) for rank in range(3)]
    added = metric.reduce(np.sum([total(shard) for shard in shards], axis=0))
    for name, value in metric.reduce(total(whole)).items():
        if name in ("nll", "expected_calibration_error"):
            assert added[name] == pytest.approx(float(value), rel=1e-14)
        else:
            assert added[name] == value, name
    # Gathered rows, in whatever order processes deliver them, give every score bit for bit.
    assert (total(np.concatenate(shards)) == total(whole)).all()


def test_f1_lies_between_precision_and_recall_for_every_class() -> None:
    for probabilities, labels in CASES.values():
        values = scores(probabilities, labels)
        triples = np.array(
            [
                [values[f"{part}/{name}"] for part in ("precision", "recall", "f1")]
                for name in names(probabilities.shape[1])
            ]
        )
        assert not impossible_f1(*triples.T).any()


def test_a_hand_typed_f1_is_flagged() -> None:
    # Rounded rows: possible, above both, below both, possible only thanks to rounding.
    precision, recall, f1 = [0.50, 0.55, 0.40, 0.61], [0.60, 0.57, 0.44, 0.61], [0.55, 0.58, 0.35, 0.613]
    assert impossible_f1(precision, recall, f1, tolerance=0.005).tolist() == [False, True, True, False]
    assert impossible_f1(precision, recall, f1).tolist() == [False, True, True, True]
    assert impossible_f1(0.5, 0.5, np.nan)


def test_per_class_table_refuses_an_edited_row() -> None:
    probabilities, labels = random_data(200, 3, seed=10)
    metric = ClassificationMetric(["cat", "dog", "a/b"])
    found = intervals(metric, metric.statistics(probabilities, labels), resamples=50)
    rows = per_class_table(found, metric.classes)
    assert [row["class"] for row in rows] == ["cat", "dog", "a/b"]
    assert rows[2]["f1"] == found["f1/a/b"]
    found["f1/dog"]["value"] = 0.99
    with pytest.raises(DataError, match=r"^dog: F1 0.99 is not between precision .* evaluate the run again"):
        per_class_table(found, metric.classes)


def test_rounding_of_half_precision_is_accepted() -> None:
    probabilities, labels = random_data(500, 10, seed=11)
    half = scores(probabilities.astype(np.float16), labels)
    assert half["nll"] == pytest.approx(scores(probabilities, labels)["nll"], rel=1e-3)


def test_impossible_construction_is_refused() -> None:
    with pytest.raises(DataError, match="repeated: \\['a'\\]"):
        ClassificationMetric(["a", "b", "a"])
    with pytest.raises(DataError, match="empty"):
        ClassificationMetric([])
    with pytest.raises(ConfigError, match="top_k = 0"):
        ClassificationMetric(["a"], top_k=0)


def test_an_empty_batch_adds_nothing() -> None:
    metric = ClassificationMetric(names(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = metric.statistics(np.zeros((0, 4)), np.zeros(0, dtype=np.int64))
        assert empty.shape == (0, 3 + 15 + 12)
        assert (total(empty) == 0).all()
        assert np.isnan(metric.reduce(total(empty))["accuracy"])
