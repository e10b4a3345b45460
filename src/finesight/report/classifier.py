"""Figures that every classifier's run has, whatever it learnt from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finesight.metrics.classification import confusion_matrix
from finesight.report import figures as draw
from finesight.report.numbers import level_text
from finesight.report.oracle import kept_epoch
from finesight.tasks.base import Figures

if TYPE_CHECKING:
    from finesight.tasks.classification import Classification
    from finesight.tasks.domain_adaptation import DomainAdaptation

    Task: TypeAlias = Classification | DomainAdaptation


def judged(task: "Task", test: NDArray[np.float64], metrics: Mapping[str, Any], where: str = "test split") -> Figures:
    """Accuracy beside the baselines, confusion matrix, reliability and worst mistakes on the split "test".

    `test` are class probabilities [N, C]; `where` says in the captions what the split is.
    """
    labels = task.labels["test"]
    chosen, confidence = test.argmax(1), test.max(1)
    level = task.config.evaluation.level
    place = where[0].upper() + where[1:]
    return {
        "accuracy": (
            draw.accuracy_intervals(_accuracies(metrics), level=level),
            "Accuracy beside trivial baselines",
            f"{place}, {level_text(level)} bootstrap intervals.",
        ),
        "confusion": (
            draw.confusion_matrix(confusion_matrix(test, labels, task.classes), task.classes),
            "Confusion matrix",
            f"{place}; rows are the reference, columns the prediction.",
        ),
        "reliability": (
            draw.reliability_diagram(confidence, chosen == labels),
            "Reliability",
            f"How often predictions of a given confidence are right, on the {where}.",
        ),
        "mistakes": (
            _mistakes(task, chosen, confidence, labels),
            "Worst mistakes",
            f"Wrong predictions on the {where}, most confident first: look here for wrong labels.",
        ),
    }


def learning_curves(task: "Task", history: list[dict[str, Any]]) -> tuple[Any, str, str]:
    """Loss and the selecting metric by epoch."""
    return (
        draw.curves(history, task.config.train.select, kept_epoch(history)),
        "Learning curves",
        "Training values are means over the whole epoch, validation values are measured after it. "
        "The marked epoch, best on validation, is the one that was tested.",
    )


def samples(task: "Task", caption: str, each: int = 6) -> tuple[Any, str, str]:
    """Training images of every class."""
    rows = {name: np.flatnonzero(task.labels["train"] == label)[:each] for label, name in enumerate(task.classes)}
    shown = {name: [image(task, "train", int(row)) for row in found] for name, found in rows.items()}
    return draw.samples_per_class(shown), "Samples", caption


def images_per_class(task: "Task", names: Mapping[str, str] | None = None) -> tuple[Any, str, str]:
    """Counts of each split; `names` are what to call the splits. A split without labels is named in the caption."""
    known = names or {}
    unlabelled = [split for split in task.pixels if (task.labels[split] < 0).all()]
    counts = {known.get(split, split): _counts(task, split) for split in task.pixels if split not in unlabelled}
    without = [f" {known.get(s, s).capitalize()}: {len(task.labels[s]):,} images without labels." for s in unlabelled]
    return draw.class_chart(counts), "Images per class", "".join(["Counts of each split.", *without])


def image(task: "Task", split: str, row: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]"""
    return task.pixels[split][row].permute(1, 2, 0).numpy()


def _accuracies(metrics: Mapping[str, Any]) -> list[tuple[str, float, float | None, float | None]]:
    rows = [("this model", metrics["test"]["accuracy"])]
    rows += [(name, splits["test"]["accuracy"]) for name, splits in metrics["baselines"].items()]
    return [(name, entry["value"], entry["low"], entry["high"]) for name, entry in rows]


def _counts(task: "Task", split: str) -> dict[str, int]:
    labels = task.labels[split]
    counts = np.bincount(labels[labels >= 0], minlength=len(task.classes))
    return dict(zip(task.classes, counts.tolist(), strict=True))


def _mistakes(
    task: "Task", chosen: NDArray[np.int64], confidence: NDArray[np.float64], labels: NDArray[np.int64]
) -> Any:
    worst = draw.worst_indices(labels.tolist(), chosen.tolist(), confidence.tolist())
    return draw.worst_mistakes(
        [image(task, "test", row) for row in worst],
        [task.classes[labels[row]] for row in worst],
        [task.classes[chosen[row]] for row in worst],
        [float(confidence[row]) for row in worst],
        total=len(labels),
    )
