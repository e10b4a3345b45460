"""The figures of a classification run, made from its data, predictions and history."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from finesight.metrics.classification import confusion_matrix
from finesight.report import figures as draw
from finesight.tasks.base import Figures

if TYPE_CHECKING:
    from finesight.tasks.classification import Classification

VARIANTS = 6  # augmented versions of one image in the grid


def figures(
    task: "Classification",
    predictions: dict[str, NDArray[np.float64]],
    history: list[dict[str, Any]],
    metrics: dict[str, Any],
) -> Figures:
    """{name: (figure, title, caption)} for the report."""
    drawn = judgement(task, predictions, history, metrics)
    if task.train.augment is not None:
        drawn["augmentation"] = _augmentation(task)
    if hasattr(task.model.backbone, "tokens"):
        drawn["patch_positions"] = _tokens(task)
    return drawn


def judgement(
    task: Any, predictions: dict[str, NDArray[np.float64]], history: list[dict[str, Any]], metrics: dict[str, Any]
) -> Figures:
    """The figures of any task that ends in a classifier, measured on its test split."""
    test, labels = predictions["test"], task.labels["test"]
    chosen, confidence = test.argmax(1), test.max(1)
    level = f"{task.config.evaluation.level:.0%}"
    return {
        "accuracy": (
            draw.accuracy_intervals(_accuracies(metrics)),
            "Accuracy beside trivial baselines",
            f"Test split, {level} bootstrap intervals.",
        ),
        "curves": (
            draw.curves(history, task.config.train.select, best_epoch(history)),
            "Learning curves",
            "Training values are means over the whole epoch, validation values are measured after it. "
            "The marked epoch, best on validation, is the one that was tested.",
        ),
        "confusion": (
            draw.confusion_matrix(confusion_matrix(test, labels, task.classes), task.classes),
            "Confusion matrix",
            "Test split; rows are the reference, columns the prediction.",
        ),
        "reliability": (
            draw.reliability_diagram(confidence, chosen == labels),
            "Reliability",
            "How often predictions of a given confidence are right, on the test split.",
        ),
        "mistakes": _mistakes(task, chosen, confidence, labels),
        "samples": (
            draw.samples_per_class(_samples(task)),
            "Samples",
            "Training images of every class, as the model receives them before augmentation.",
        ),
        "classes": (
            draw.class_chart({split: _counts(task, split) for split in ("train", "validation", "test")}),
            "Images per class",
            "Counts of each split.",
        ),
    }


def _tokens(task: "Classification") -> tuple[Any, str, str]:
    """What the patch-and-position layer makes of the first test image (report 004)."""
    batch = task.engine.send({"image": task.resized(task.pixels["test"][:1])})
    with torch.inference_mode():
        tokens = task.model.backbone.tokens(task.prepared(batch))[0].float().cpu().numpy()  # type: ignore[operator]
    name = task.held_out("test").ids[0]
    return (
        draw.patch_position_heatmap(tokens),
        "Patch-and-position layer",
        f"Each row is a patch of the test image {name}: its projection plus its position, as the encoder receives it.",
    )


def _accuracies(metrics: dict[str, Any]) -> list[tuple[str, float, float | None, float | None]]:
    rows = [("this model", metrics["test"]["accuracy"])]
    rows += [(name, splits["test"]["accuracy"]) for name, splits in metrics["baselines"].items()]
    return [(name, entry["value"], entry["low"], entry["high"]) for name, entry in rows]


def best_epoch(history: list[dict[str, Any]]) -> int | None:
    return max((row["epoch"] for row in history if row["best"]), default=None)


def _counts(task: Any, split: str) -> dict[str, int]:
    counts = np.bincount(task.labels[split], minlength=len(task.classes))
    return dict(zip(task.classes, counts.tolist(), strict=True))


def _mistakes(
    task: Any,
    chosen: NDArray[np.int64],
    confidence: NDArray[np.float64],
    labels: NDArray[np.int64],
) -> tuple[Any, str, str]:
    worst = draw.worst_indices(labels.tolist(), chosen.tolist(), confidence.tolist())
    figure = draw.worst_mistakes(
        [_image(task, "test", row) for row in worst],
        [task.classes[labels[row]] for row in worst],
        [task.classes[chosen[row]] for row in worst],
        [float(confidence[row]) for row in worst],
        total=len(labels),
    )
    return (
        figure,
        "Worst mistakes",
        "Wrong test predictions, most confident first: look here for wrong labels.",
    )


def _samples(task: Any, each: int = 6) -> dict[str, list[NDArray[np.uint8]]]:
    rows = {name: np.flatnonzero(task.labels["train"] == label)[:each] for label, name in enumerate(task.classes)}
    return {name: [_image(task, "train", int(row)) for row in found] for name, found in rows.items()}


def _augmentation(task: "Classification") -> tuple[Any, str, str]:
    from finesight.data import transforms

    present = np.unique(task.labels["train"], return_index=True)
    rows = [int(row) for row in present[1][:4]]
    names = [task.classes[label] for label in present[0][:4]]
    originals = [_image(task, "train", row) for row in rows]
    draws = torch.from_numpy(transforms.random_table(task.config.seed, 0, len(rows) * VARIANTS))
    images = task.pixels["train"][rows].repeat_interleave(VARIANTS, 0)
    made = transforms.augment(images, draws, task.config.augment).permute(0, 2, 3, 1).numpy()
    variants = [list(made[start : start + VARIANTS]) for start in range(0, len(made), VARIANTS)]
    figure = draw.augmentation_grid(originals, variants, names)
    return figure, "Augmentation", "An image of the training split and what training may see of it."


def _image(task: Any, split: str, row: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]"""
    return task.pixels[split][row].permute(1, 2, 0).numpy()
