"""From predictions to a statistics table to scores, intervals and baselines."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import Field

from finesight.config import Section
from finesight.engine import Engine
from finesight.errors import NonFiniteLoss, RunError
from finesight.files import read_json, replacing, write_json
from finesight.metrics import bootstrap
from finesight.progress import Progress
from finesight.run_folder import RunFolder
from finesight.tasks.base import Task

BEFORE = "before training"
NO_SPLIT = ("baselines", "improvement", "anomaly", "retention")
"""Entries of metrics.json that are not the scores of a split."""


class EvaluationConfig(Section):
    """How the result is measured."""

    batch_size: int = Field(256, ge=1, description="Samples in one forward pass of an evaluation")
    resamples: int = Field(1000, ge=100, description="Bootstrap resamples behind each interval")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals")


def predict(task: Task, split: str, engine: Engine, *, shown: bool = False) -> NDArray[Any]:
    """Predictions for every sample of a held-out split, in its order, in every process.

    Whole batches are shared out over the processes, so each sample is computed once, in the same
    company and therefore with the same bits whatever their number.
    """
    batches = task.held_out(split)
    for module in task.modules.values():
        module.eval()
    progress = Progress(split, batches.samples, "samples", shown=shown and engine.main)
    parts: list[tuple[int, NDArray[Any]]] = []
    with torch.inference_mode():
        for number in range(engine.rank, len(batches), engine.world):
            rows = np.arange(number * batches.batch_size, min((number + 1) * batches.batch_size, batches.samples))
            with engine.autocast():
                parts.append((number, task.predict(engine.send(batches.take(rows)))))
            progress.update(int(rows[-1]) + 1)
    progress.close()
    for number, rows in parts:
        wrong = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
        if len(wrong):
            names = [batches.ids[number * batches.batch_size + row] for row in wrong[:8]]
            raise NonFiniteLoss(
                f"{split}: {len(wrong)} predictions of one batch are not finite, such as for {', '.join(names)}: the "
                "weights diverged. Lower train.lr, set train.clip, or use --precision fp32, and start again."
            )
    return np.concatenate([part for _, part in sorted(engine.gather(parts), key=lambda pair: pair[0])])


def scores(task: Task, split: str, predictions: NDArray[Any]) -> dict[str, float]:
    """Point values of the task's metric: one sum over the samples, reduced once."""
    table = task.metric.statistics(predictions, task.references(split))
    reduced = task.metric.reduce(bootstrap.total(table))
    return {name: float(value) for name, value in reduced.items()}


def evaluate(
    task: Task,
    predictions: dict[str, NDArray[Any]],
    groups: dict[str, list[str]],
    config: EvaluationConfig,
    seed: int,
    *,
    baselines: bool = True,
    before: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """The content of metrics.json: every metric of every split with its interval, and the baselines.

    `before` are the test predictions of the model before training: one baseline more. Then each baseline is also
    paired with the model, image by image: the improvement {baseline: {metric: {a, b, difference, low, high, p, n}}}.

    Where samples share a group (a leaf, a patient) whole groups are resampled: samples of one
    origin are not independent, and an interval that ignored it would be too narrow.
    """

    together = {split: names if len(set(names)) < len(names) else None for split, names in groups.items()}

    def measured(split: str, rows: NDArray[Any]) -> dict[str, dict[str, Any]]:
        table = task.metric.statistics(rows, task.references(split))
        return bootstrap.intervals(
            task.metric, table, groups=together[split], resamples=config.resamples, seed=seed, level=config.level
        )

    result: dict[str, Any] = {split: measured(split, rows) for split, rows in predictions.items()}
    if baselines:
        trivial = task.baselines()
        if before is not None:
            trivial = {BEFORE: {"test": before}, **trivial}
            ours = task.metric.statistics(predictions["test"], task.references("test"))
            result["improvement"] = {
                name: bootstrap.paired(
                    task.metric, task.metric.statistics(splits["test"], task.references("test")), ours,
                    groups=together["test"], resamples=config.resamples, seed=seed, level=config.level,
                )
                for name, splits in trivial.items()
            }  # fmt: skip
        result["baselines"] = {
            name: {split: measured(split, rows) for split, rows in of_splits.items()}
            for name, of_splits in trivial.items()
        }
        result |= task.further(predictions, groups)
    return result


def write_start(folder: RunFolder, rows: NDArray[Any]) -> None:
    """Keep the test predictions of the model before training in the run folder."""
    write_json(folder.start, rows.tolist())


def read_start(folder: RunFolder) -> NDArray[Any]:
    """The test predictions of the model before training. Raises `RunError` where they are gone."""
    if not folder.start.is_file():
        raise RunError(
            f"{folder.start}: missing, so the improvement cannot be measured. Restore it, or begin a new run."
        )
    return np.asarray(read_json(folder.start))


def write_predictions(
    folder: RunFolder, task: Task, predictions: dict[str, NDArray[Any]], groups: dict[str, list[str]]
) -> None:
    """predictions.parquet: id, split, group, and what the task makes of each prediction."""
    parts = []
    for split, rows in predictions.items():
        columns: dict[str, Any] = {
            "id": list(task.held_out(split).ids),
            "split": [split] * len(rows),
            "group": groups[split],
        }
        parts.append(pa.table(columns | task.table(split, rows)))
    with replacing(folder.predictions) as temporary:
        pq.write_table(pa.concat_tables(parts), temporary)


def finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
