"""The scores of captions and the likelihood of the references, as one table of per-sample statistics."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesight.metrics import captions

FIRST = "cider"
"""The score of the headline: of those here it agrees best with people (Vedantam et al. 2015)."""


class CaptionMetric:
    """Caption scores of what a model wrote, and the negative log-likelihood that it gives the references.

    `texts` turns prediction rows (`Captioning.predict`) into captions; without it only tables that stand already are
    reduced. See `metrics.captions` for the scores.
    """

    loss = "nll"

    def __init__(self, texts: Callable[[NDArray[Any]], list[str]] | None = None) -> None:
        self.texts = texts
        self.scores = captions.CaptionStatistics()
        self.signature = str(self.scores.signature)
        self.names = (FIRST, *(name for name in self.scores.names if name != FIRST), "nll")

    def statistics(self, predictions: NDArray[Any], references: NDArray[np.object_]) -> NDArray[np.float64]:
        """Table float64 [N, K + 2]: statistics of the captions, then likelihood in nats and tokens of the reference.

        `predictions` are prediction rows, or captions (object [N] of text), which have no likelihood: NaN.
        """
        if predictions.dtype == object:
            texts, likelihood = list(predictions), np.full((len(predictions), 2), np.nan)
        else:
            assert self.texts is not None
            texts, likelihood = self.texts(predictions), predictions[:, :2]
        return np.column_stack([self.scores.statistics(texts, list(references)), likelihood])

    def reduce(self, total: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
        """Scores [...] by name, from sums [..., K + 2]; `nll` is the mean over all tokens."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found = {**self.scores.reduce(total[..., :-2]), "nll": total[..., -2] / total[..., -1]}
        return {name: found[name] for name in self.names}
