"""What is no prediction is refused with value, cause and remedy."""

import numpy as np
import pytest

from finesight.errors import DataError
from finesight.metrics.classification import ClassificationMetric, confusion_matrix

GOOD = np.array([[0.7, 0.3], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (GOOD[0], [0, 1], r"shape \(2,\).*\[N, 2\]"),
        (np.full((2, 3), 1 / 3), [0, 1], r"shape \(2, 3\).*2 classes"),
        (GOOD, [0], "2 predictions for 1 labels"),
        (GOOD, [[0, 1]], r"one-dimensional integers are needed, given were int64 of shape \(1, 2\)"),
        (GOOD, [0.0, 1.0], "given were float64"),
        (GOOD, [0, 2], "first is 2 in row 1. With 2 classes they run from 0 to 1"),
        (GOOD, [-1, 1], "first is -1 in row 0"),
        (np.array([[0.7, 0.3], [np.nan, 1]]), [0, 1], "1 of 2 rows are no probabilities; the first is row 1"),
        (np.array([[0.7, 0.3], [np.inf, 0]]), [0, 1], "the first is row 1, with values from 0 to inf"),
        (np.array([[2.0, -1.0], [0.2, 0.8]]), [0, 1], "from -1 to 2 and sum 1.*softmax"),
        (np.array([[0.7, 0.302], [0.2, 0.8]]), [0, 1], "row 0.*sum 1.002"),
    ],
)
def test_what_is_no_prediction_is_refused(probabilities: object, labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ClassificationMetric(["a", "b"]).statistics(probabilities, labels)


def test_confusion_matrix_refuses_foreign_indices() -> None:
    with pytest.raises(DataError, match="predictions are out of range; the first is 3 in row 1"):
        confusion_matrix([0, 3], [0, 1], ["a", "b"])
    with pytest.raises(DataError, match="1 predictions for 2 labels"):
        confusion_matrix([0], [0, 1], ["a", "b"])
