"""Small domain adaptation tasks with random weights, their predictions, metrics and a made-up history."""

from typing import Any

from finesight import config
from finesight.engine import Engine
from finesight.evaluate import evaluate, predict
from finesight.tasks.domain_adaptation import DomainAdaptation, DomainAdaptationConfig

SMALL = {
    "data.source": "sklearn:digits",
    "data.backgrounds": "sklearn:photographs",
    "data.limit_train": 60,
    "data.limit_validation": 30,
    "data.limit_test": 60,
    "model.image_size": 12,
    "model.name": "pixelda",
    "pixelda.width": 8,
    "pixelda.blocks": 1,
    "precision": "fp32",
    "evaluation.resamples": 100,
}


def prepared(**options: Any) -> tuple[DomainAdaptation, Any]:
    """A task that was not trained, and its data."""
    chosen = {key: value for key, value in {**SMALL, **options}.items() if value is not None}
    settings = config.build(DomainAdaptationConfig, config.nest(chosen))
    data = DomainAdaptation.load(settings)
    task = DomainAdaptation(settings, data["train"].features["label"].names, Engine("fp32"), lambda _: None)
    return task, task.prepare(data)


def measured(task: DomainAdaptation, data: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Predictions and metrics, as the end of a run has them."""
    predictions = {split: predict(task, split, task.engine) for split in task.measured}
    groups = {split: list(data[split]["group"]) for split in task.measured}
    return predictions, evaluate(task, predictions, groups, task.config.evaluation, 0)


def history(oracle: list[float] | None, best: int, **train: float) -> list[dict[str, Any]]:
    """Rows of history.jsonl; `oracle` are the target test accuracies by epoch, and epoch `best` was kept."""
    rows = []
    for epoch in range(1, len(oracle or [0, 0]) + 1):
        validation = {"loss": 1.0, "accuracy": 0.8, "target_information": 0.6, "adaptation_score": 0.7}
        if oracle:
            validation["oracle_accuracy"] = oracle[epoch - 1]
        observed = {"loss": 1.0, "accuracy": 0.7, **train}
        rows.append({"epoch": epoch, "train": observed, "validation": validation, "best": epoch <= best})
    return rows
