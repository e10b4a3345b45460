"""The simplest metric: every score is the mean of one value per sample."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finesight.errors import ConfigError, DataError
from finesight.metrics.bootstrap import Floats


class MeanMetric:
    """Means of per-sample quantities that stand in a table already, such as those of `images.scores`.

    `names` [K] are the columns. `loss` is the one of them that stands for the loss of a held-out split. A
    quantity that a method does not define at all (the likelihood of an interpolation) is a column of NaN,
    and its mean is NaN.

    Raises `ConfigError` for names that are missing or repeated, and a `loss` that is none of them.
    """

    def __init__(self, names: Sequence[str], loss: str) -> None:
        self.names = tuple(names)
        self.loss = loss
        if not self.names or len(set(self.names)) < len(self.names) or loss not in self.names:
            raise ConfigError(
                f"Means of {', '.join(self.names) or 'nothing'} with the loss {loss}: the names must be given and "
                "differ, and the loss must be one of them."
            )

    def statistics(self, predictions: ArrayLike, references: Any = None) -> Floats:  # noqa: ARG002
        """Table float64 [N, K + 1]: `predictions` [N, K], one row of quantities per sample, and a column of ones.

        `references` went into the quantities and are not read. Raises `DataError` for other shapes,
        values that are no real numbers, infinity, and NaN in some rows of a column.
        """
        rows = np.asarray(predictions)
        if rows.ndim != 2 or rows.shape[1] != len(self.names) or rows.dtype.kind not in "fiub":
            raise DataError(
                f"Quantities of type {rows.dtype} and shape {rows.shape}: real numbers are needed, one row per sample "
                f"with the {len(self.names)} columns {', '.join(self.names)}."
            )
        rows = rows.astype(np.float64)
        bad = np.argwhere(~np.isfinite(rows) & ~np.isnan(rows).all(0))
        if len(bad):
            row, column = bad[0]
            raise DataError(
                f"{len(bad)} of {rows.size} quantities are not finite; the first is {self.names[column]} = "
                f"{rows[row, column]:g} in row {row}. A mean over it means nothing: leave out samples without "
                "a value before the table is made, and check the outputs of the model."
            )
        return np.column_stack([rows, np.ones(len(rows))])

    def reduce(self, total: Floats) -> dict[str, NDArray[Any]]:
        """Means [...] by name, from sums [..., K + 1] of rows of `statistics`; NaN of no row."""
        with np.errstate(invalid="ignore"):
            return {name: total[..., index] / total[..., -1] for index, name in enumerate(self.names)}
