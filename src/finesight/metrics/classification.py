"""Scores of a classifier as a function of summed per-sample statistics, equal to scikit-learn's."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finesight.errors import ConfigError, DataError
from finesight.metrics.bootstrap import Floats, Table
from finesight.metrics.inputs import read_indices, read_probabilities, same_length

DENSE_CLASSES = 32
"""Up to this many classes the table is dense; beyond, sparse is smaller and faster to resample."""

SMALLEST_PROBABILITY = float(np.finfo(np.float32).smallest_subnormal)
"""Floor of a probability under the logarithm: 1.4e-45, the smallest positive float32."""


class ClassificationMetric:
    """Accuracy, top-k, precision, recall, F1, calibration error and NLL of single-label classification.

    Predictions are probabilities float [N, C] in [0, 1] with rows summing to 1 (within 1e-3),
    references int [N] in 0..C-1. All scores are fractions, except `nll` in nats.

    - The predicted class is the most probable one, the first of equals. A reference is among the top
      k if fewer than k classes precede it by (probability descending, class index ascending). So
      top-1 is accuracy; scikit-learn's `top_k_accuracy_score` puts the last of equals first.
    - Precision, recall and F1 are 0 where the denominator is 0. `macro_*` is the mean over all
      classes given here: a class in neither references nor predictions counts 0, as in scikit-learn
      with `labels=range(C), zero_division=0`. `weighted_*` weights by reference count.
    - `expected_calibration_error`: Guo et al. 2017, eq. 3, with equal-width bins open on the left and
      closed on the right, over the probability of the predicted class.
    - `nll`: mean of -ln(probability of the reference), the probability floored at 1.4e-45 (the smallest
      positive float32): one overconfident miss costs 103.3, not infinity.
    - `top_k_accuracy` (as `top_5_accuracy`) stands only where there are more than k classes.

    Raises `DataError` for empty or repeated class names, `ConfigError` for `top_k` or `bins` below 1.
    """

    loss = "nll"

    def __init__(self, classes: Sequence[str], top_k: int = 5, bins: int = 15) -> None:
        self.classes = tuple(classes)
        self.top_k = top_k
        self.bins = bins
        repeated = sorted(name for name, times in Counter(self.classes).items() if times > 1)
        if not self.classes or repeated:
            raise DataError(f"Class names must be given and differ; repeated: {repeated or 'none, the list is empty'}.")
        if top_k < 1 or bins < 1:
            raise ConfigError(f"top_k = {top_k}, bins = {bins}: both must be 1 or more.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the scores, in the order of `reduce`."""
        return tuple(self.reduce(np.ones(3 + self.bins + 3 * len(self.classes))))

    def statistics(self, predictions: ArrayLike, references: ArrayLike) -> Table:
        """Table float64 [N, 3 + bins + 3 C]: columns are one, NLL, in top k; correct - confidence in the
        bin of the confidence; one-hot reference; one-hot prediction; one-hot reference where correct.

        Dense up to `DENSE_CLASSES` classes, `scipy.sparse.csr_array` beyond (7 values per sample).
        Raises `DataError` for wrong shapes, values that are no probabilities, labels out of range.
        """
        probabilities, labels = read_probabilities(predictions, references, len(self.classes))
        rows = np.arange(len(labels))
        predicted, confidence = _decide(probabilities)
        of_reference = probabilities[rows, labels]
        correct = predicted == labels
        nll = -np.log(np.maximum(of_reference.astype(np.float64), SMALLEST_PROBABILITY))
        reference_column, classes = 3 + self.bins, len(self.classes)
        entries: list[tuple[Any, Any]] = [
            (0, np.ones(len(rows))),
            (1, nll),
            (2, _preceding(probabilities, labels) < self.top_k),
            (3 + _bin(confidence, self.bins), correct - confidence),
            (reference_column + labels, np.ones(len(rows))),
            (reference_column + classes + predicted, np.ones(len(rows))),
            (reference_column + 2 * classes + labels, correct),
        ]
        columns = np.stack([np.broadcast_to(column, rows.shape) for column, _ in entries], axis=1)
        values = np.stack([value for _, value in entries], axis=1).astype(np.float64)
        return _table(columns, values, reference_column + 3 * classes, dense=classes <= DENSE_CLASSES)

    def reduce(self, total: Floats) -> dict[str, NDArray[Any]]:
        """Scores [...] by name, from sums [..., 3 + bins + 3 C] of rows of `statistics`."""
        classes = len(self.classes)
        number = total[..., 0]
        gap = total[..., 3 : 3 + self.bins]
        support, predicted, hit = (
            total[..., 3 + self.bins + part * classes : 3 + self.bins + (part + 1) * classes] for part in range(3)
        )
        per_class = {
            "precision": _ratio(hit, predicted),
            "recall": _ratio(hit, support),
            "f1": _ratio(2 * hit, support + predicted),
        }
        with np.errstate(invalid="ignore"):
            scores = {"accuracy": hit.sum(axis=-1) / number}
            if classes > self.top_k:
                scores[f"top_{self.top_k}_accuracy"] = total[..., 2] / number
            for name, value in per_class.items():
                scores[f"macro_{name}"] = value.mean(axis=-1)
            for name, value in per_class.items():
                scores[f"weighted_{name}"] = (support * value).sum(axis=-1) / number
            scores["expected_calibration_error"] = np.abs(gap).sum(axis=-1) / number
            scores["nll"] = total[..., 1] / number
        for name, value in per_class.items():
            scores.update((f"{name}/{label}", value[..., index]) for index, label in enumerate(self.classes))
        return scores


def confusion_matrix(predictions: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> NDArray[np.int64]:
    """Counts int64 [C, C], row the reference, column the prediction; 8 C^2 bytes.

    `predictions` are probabilities float [N, C] (first of equals wins) or class indices int [N].
    Raises `DataError` as `ClassificationMetric.statistics`.
    """
    count = len(classes)
    if np.ndim(predictions) == 2:
        probabilities, references = read_probabilities(predictions, labels, count)
        predicted, _ = _decide(probabilities)
    else:
        predicted = read_indices(predictions, count, "prediction")
        references = read_indices(labels, count, "label")
        same_length(len(predicted), len(references))
    pairs = references * count + predicted
    return np.bincount(pairs, minlength=count * count).reshape(count, count).astype(np.int64)


def reliability(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Count, mean confidence and accuracy [bins] per bin of the calibration error; NaN in empty bins.

    Bin i holds confidences in (i / bins, (i + 1) / bins]. sum(count * |accuracy - confidence|) / N over
    the filled bins is `expected_calibration_error`. Raises `DataError` as `ClassificationMetric.statistics`.
    """
    shape = np.shape(probabilities)
    checked, references = read_probabilities(probabilities, labels, shape[1] if len(shape) == 2 else 0)
    predicted, confidence = _decide(checked)
    of_sample = _bin(confidence, bins)
    count = np.bincount(of_sample, minlength=bins).astype(np.int64)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(of_sample, weights=confidence, minlength=bins) / count
        accuracy = np.bincount(of_sample, weights=predicted == references, minlength=bins) / count
    return count, mean_confidence, accuracy


def impossible_f1(precision: ArrayLike, recall: ArrayLike, f1: ArrayLike, tolerance: float = 1e-9) -> NDArray[np.bool_]:
    """Where F1 lies outside [precision, recall], which no harmonic mean can; bool, of the inputs' shape.

    Report 002's hand-typed table did so in 8 of 10 rows. `tolerance` is half a unit of the last digit
    for rounded tables. NaN counts as impossible.
    """
    p, r, f = (np.asarray(values, dtype=np.float64) for values in (precision, recall, f1))
    return ~((f >= np.minimum(p, r) - tolerance) & (f <= np.maximum(p, r) + tolerance))


def per_class_table(scores: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Rows {"class", "precision", "recall", "f1"} of one split of metrics.json, scores as they stand there.

    Raises `DataError` naming every class whose F1 is not between its precision and recall: the file
    was not written by `ClassificationMetric`, or was edited.
    """
    rows: list[dict[str, Any]] = []
    problems = []
    for name in classes:
        row = {part: scores[f"{part}/{name}"] for part in ("precision", "recall", "f1")}
        precision, recall, f1 = (float(score["value"]) for score in row.values())
        if impossible_f1(precision, recall, f1):
            problems.append(
                f"{name}: F1 {f1:g} is not between precision {precision:g} and recall {recall:g}. "
                "The scores were not computed from predictions; evaluate the run again."
            )
        rows.append({"class": name, **row})
    if problems:
        raise DataError(*problems)
    return rows


def _decide(probabilities: NDArray[Any]) -> tuple[NDArray[np.int64], Floats]:
    return probabilities.argmax(axis=1).astype(np.int64), probabilities.max(axis=1).astype(np.float64)


def _preceding(probabilities: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes [N] come before the reference by (probability descending, index ascending)."""
    of_reference = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    ahead = (probabilities > of_reference) | (earlier & (probabilities == of_reference))
    return ahead.sum(axis=1, dtype=np.int64)


def _bin(confidence: Floats, bins: int) -> NDArray[np.intp]:
    return np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1, 0, bins - 1)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _table(columns: NDArray[Any], values: Floats, width: int, dense: bool) -> Table:
    """Values [N, J] put at columns [N, J] of a table [N, width]; the columns of one row all differ."""
    samples, per_row = columns.shape
    if dense:
        table = np.zeros((samples, width))
        np.put_along_axis(table, columns, values, axis=1)
        return table
    from scipy import sparse

    starts = np.arange(samples + 1) * per_row
    table = sparse.csr_array((values.reshape(-1), columns.reshape(-1), starts), shape=(samples, width))
    table.eliminate_zeros()
    return table
