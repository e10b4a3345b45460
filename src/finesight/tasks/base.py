"""What a task is: the parts of a kind of learning that the loop and the evaluation call.

A task is a plain class with these members; it inherits nothing. One file per task in this folder
holds its configuration and its class, to be read from top to bottom.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finesight.data.batches import Batch, Batches

if TYPE_CHECKING:
    from finesight.metrics.bootstrap import Metric

Say = Callable[[str], None]
Figures = dict[str, tuple[Any, str, str]]

TASKS = {
    "classification": "finesight.tasks.classification:Classification",
    "domain-adaptation": "finesight.tasks.domain_adaptation:DomainAdaptation",
    "reconstruction": "finesight.tasks.reconstruction:Reconstruction",
    "autoencoding": "finesight.tasks.autoencoding:Autoencoding",
    "captioning": "finesight.tasks.captioning:Captioning",
    "robustness": "finesight.tasks.robustness:Robustness",
    "contrastive": "finesight.tasks.contrastive:Contrastive",
}


class Loss(NamedTuple):
    """One loss to descend: which optimiser steps, a float32 scalar (mean over the batch's items), and
    further means over the same items to show in the history."""

    optimizer: str
    loss: Tensor
    observed: dict[str, Tensor] = {}  # noqa: RUF012 (never mutated)


class Task(Protocol):
    """The contract between a kind of learning and the rest of the house."""

    modules: dict[str, nn.Module]
    """What the engine moves and the checkpoint saves."""

    metric: "Metric"
    """Per-sample statistics and the function of their sum."""

    test_set: str
    """The option of `data` that names another test set for a finished run."""

    selectable: tuple[str, ...]
    """What `train.select` may name: values of `validators` and of the metric on validation."""

    measured: tuple[str, ...]
    """The splits that are measured at the end; "validation" and "test" are always among them."""

    measures_start: bool
    """Whether the test split is also measured before the first step, for a paired comparison with the end."""

    conditions: dict[str, Any]
    """What else must be equal for two runs to have been tested alike, such as the masks of the images."""

    train: Batches

    # A task whose loss is no mean over the samples of a batch, so that micro-batches would change it, says so by
    # `divisible = False`; without that word it is one.

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimisers by the name that `train_step` yields."""

    def train_step(self, batch: Batch) -> Iterator[Loss]:
        """Yield a loss for each optimiser step; the code after a yield runs after that step."""

    def held_out(self, split: str) -> Batches:
        """Batches of the validation or test split, in a fixed order, not augmented."""

    def predict(self, batch: Batch) -> NDArray[Any]:
        """One row per sample."""

    def references(self, split: str) -> NDArray[Any]:
        """What the predictions are measured against, in the order of `held_out(split)`."""

    def validators(self, scores: dict[str, float]) -> dict[str, float]:
        """Further values of an epoch, beside the metric's `scores` on validation, to choose the epoch by."""

    def trainable_state(self) -> dict[str, dict[str, Tensor]]:
        """Per module: everything training changes; what a checkpoint holds."""

    def baselines(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Trivial predictions: {baseline: {split: predictions}}."""

    def table(self, split: str, predictions: NDArray[Any]) -> dict[str, list[Any]]:
        """The columns of predictions.parquet beside id, split and group; always `scores`, one list a sample."""

    def further(self, predictions: dict[str, NDArray[Any]], groups: dict[str, list[str]]) -> dict[str, Any]:
        """Scores that are no function of a sum over one split: {name: {score: {value, low, high, n}}}."""

    def predict_images(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """What the model makes of files (paths), PIL images or uint8 arrays [H, W, 3]: a dict for each."""

    @property
    def compared(self) -> "Callable[[list[str], list[str], dict[str, list[Any]]], tuple[Metric, Any]]":
        """The metric, and the statistics of the test rows of a predictions.parquet, for `finesight compare`.

        Given the classes of the run that others are compared with, those of this run, and its rows.
        """

    @property
    def line(self) -> Callable[[dict[str, Any]], str]:
        """One of `predict_images` for the console."""

    def figures(
        self,
        predictions: dict[str, NDArray[np.float64]],
        history: list[dict[str, Any]],
        metrics: dict[str, Any],
    ) -> Figures:
        """Figures of the report, by name: (figure, title, caption)."""

    def alarms(self, metrics: dict[str, Any], history: list[dict[str, Any]]) -> list[str]:
        """Sentences on results that look too good or too bad."""

    def save_spec(self, directory: Path) -> None:
        """Write what rebuilds the architecture without the original source."""
