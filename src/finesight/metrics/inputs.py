"""Checks of what metrics are given: probabilities and class indices."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finesight.errors import DataError

SUM_TOLERANCE = 1e-3
"""How far the probabilities of a sample may be from 1 in sum (float16 softmax stays within)."""


def read_probabilities(
    predictions: ArrayLike, references: ArrayLike, classes: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Probabilities [N, C], in the floating type given, and labels int64 [N].

    Raises `DataError` for other shapes, values that are not finite or not in [0, 1], rows that do not
    sum to 1 within `SUM_TOLERANCE`, labels that are no integers in 0..C-1.
    """
    probabilities = np.asarray(predictions)
    if probabilities.ndim != 2 or probabilities.shape[1] != classes or classes == 0:
        raise DataError(
            f"Probabilities of shape {probabilities.shape}: one row per sample with one column for each "
            f"of the {classes} classes is needed, [N, {classes}]. Check the list of class names."
        )
    if probabilities.dtype.kind in "iub":
        probabilities = probabilities.astype(np.float64)
    if probabilities.dtype.kind != "f":
        raise DataError(f"Probabilities of type {probabilities.dtype}: real numbers are needed.")
    labels = read_indices(references, classes, "label")
    same_length(len(probabilities), len(labels))
    low, high = probabilities.min(axis=1), probabilities.max(axis=1)
    sums = probabilities.sum(axis=1, dtype=np.float64)
    # Every comparison with NaN is false, so NaN and infinity are caught here too.
    bad = np.flatnonzero(~((low >= 0) & (high <= 1) & (np.abs(sums - 1) <= SUM_TOLERANCE)))
    if len(bad):
        row = bad[0]
        raise DataError(
            f"{len(bad)} of {len(labels)} rows are no probabilities; the first is row {row}, with values "
            f"from {low[row]:.6g} to {high[row]:.6g} and sum {sums[row]:.6g}. Values must be finite, "
            f"in [0, 1], and sum to 1 within {SUM_TOLERANCE}; take the softmax of logits first."
        )
    return probabilities, labels


def read_indices(values: ArrayLike, classes: int, what: str) -> NDArray[np.int64]:
    """Class indices int64 [N]; `what` names them. Raises `DataError` unless integers [N] in 0..C-1."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise DataError(
            f"Each {what} must be a class index: one-dimensional integers are needed, given were "
            f"{array.dtype} of shape {array.shape}."
        )
    bad = np.flatnonzero((array < 0) | (array >= classes))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(array)} {what}s are out of range; the first is {array[bad[0]]} in row "
            f"{bad[0]}. With {classes} classes they run from 0 to {classes - 1}; check the class names."
        )
    return array.astype(np.int64)


def same_length(predictions: int, labels: int) -> None:
    """Raises `DataError` unless both counts are equal."""
    if predictions != labels:
        raise DataError(
            f"{predictions} predictions for {labels} labels: each sample needs one of both. "
            "Take both from the same split, in the same order."
        )
