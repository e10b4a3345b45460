"""The scores of captions and the likelihood of the references, as one table of per-sample statistics."""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from finesight.errors import ConfigError
from finesight.evaluate import EvaluationConfig
from finesight.metrics import captions

if TYPE_CHECKING:
    from torch import device as Device

    from finesight.metrics.bertscore import BertScore

FIRST = "cider"
"""The score of the headline: of those here it agrees best with people (Vedantam et al. 2015)."""


class CaptionEvaluationConfig(EvaluationConfig):
    """How the result is measured."""

    batch_size: int = Field(16, ge=1, description="Images that captions are written for at once")
    bertscore: str | None = Field(
        None,
        min_length=1,
        description="Folder or Hub id of a text encoder (roberta-large is usual): BERTScore is measured too, after "
        "each epoch and at the end",
    )
    bertscore_layer: int | None = Field(
        None, ge=0, description="Layer of the encoder for BERTScore; for known models the published one if none"
    )
    bertscore_idf: bool = Field(False, description="BERTScore weighs a token by how few references hold it")

    @field_validator("bertscore")
    @classmethod
    def _whole_path(cls, value: str | None) -> str | None:
        """A folder made absolute, so that the run can be continued from anywhere."""
        if value is None or not Path(value).expanduser().is_dir():
            return value
        return str(Path(value).expanduser().absolute())

    def encoder(self, device: "Device") -> "BertScore | None":
        """BERTScore as asked for, its encoder loaded; None where it is not. Raises `ModelError`, `ConfigError`."""
        if self.bertscore is None and (self.bertscore_layer is not None or self.bertscore_idf):
            raise ConfigError(
                "evaluation.bertscore_layer, evaluation.bertscore_idf: BERTScore is not measured, so they change "
                "nothing. Give --evaluation.bertscore FOLDER_OR_HUB_ID, or leave them out."
            )
        if self.bertscore is None:
            return None
        from finesight.metrics.bertscore import BertScore

        return BertScore(self.bertscore, self.bertscore_layer, self.bertscore_idf, device=device)


class CaptionMetric:
    """Caption scores of what a model wrote, and the negative log-likelihood that it gives the references.

    `texts` turns prediction rows (`Captioning.predict`) into captions; without it only tables that stand already are
    reduced. With `bertscore` its three scores are measured too. See `metrics.captions` for the other scores.
    """

    loss = "nll"

    def __init__(
        self, texts: Callable[[NDArray[Any]], list[str]] | None = None, bertscore: "BertScore | None" = None
    ) -> None:
        self.texts, self.bertscore = texts, bertscore
        self._known: deque[tuple[NDArray[Any], NDArray[np.object_], NDArray[np.float64]]] = deque(maxlen=8)
        """The last predictions and references with their tables: intervals, pairs and figures all ask for them."""
        self.scores = captions.CaptionStatistics()
        self.signature = "; ".join([str(self.scores.signature), *([bertscore.signature] if bertscore else [])])
        self.names = self._named(bertscore.names if bertscore else ())

    def _named(self, more: tuple[str, ...]) -> tuple[str, ...]:
        return (FIRST, *(name for name in self.scores.names if name != FIRST), *more, "nll")

    def statistics(self, predictions: NDArray[Any], references: NDArray[np.object_]) -> NDArray[np.float64]:
        """Table float64 [N, K + 2]: statistics of the captions, then likelihood in nats and tokens of the references.

        With BERTScore four columns more, its own, at the end. `predictions` are prediction rows, or captions (object
        [N] of text), which have no likelihood: NaN.
        """
        for of_predictions, of_references, table in self._known:
            if of_predictions is predictions and of_references is references:
                return table
        table = self._measured(predictions, references)
        table.flags.writeable = False
        self._known.append((predictions, references, table))
        return table

    def _measured(self, predictions: NDArray[Any], references: NDArray[np.object_]) -> NDArray[np.float64]:
        if predictions.dtype == object:
            texts, likelihood = list(predictions), np.full((len(predictions), 2), np.nan)
        else:
            assert self.texts is not None
            texts, likelihood = self.texts(predictions), predictions[:, :2]
        columns = [self.scores.statistics(texts, list(references)), likelihood]
        if self.bertscore is not None:
            columns.append(self.bertscore.statistics(texts, list(references)))
        return np.column_stack(columns)

    def reduce(self, total: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
        """Scores [...] by name, from sums [..., K + 2] or [..., K + 6]; `nll` is the mean over all tokens.

        Whether BERTScore is among them is seen by their number, so that tables of finished runs need no encoder.
        """
        width = self.scores.columns
        nats, tokens = total[..., width], total[..., width + 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            found = {**self.scores.reduce(total[..., :width]), "nll": nats / tokens}
        more: tuple[str, ...] = ()
        if total.shape[-1] > width + 2:
            from finesight.metrics import bertscore

            found, more = found | bertscore.means(total[..., width + 2 :]), bertscore.NAMES
        return {name: found[name] for name in self._named(more)}
