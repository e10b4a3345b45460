"""What every task that ends in a classifier does alike: baselines, the table of predictions, new images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finesight.data import histograms
from finesight.metrics.classification import ClassificationMetric
from finesight.tasks.pictures import square_images


def trivial_baselines(task: Any) -> dict[str, dict[str, NDArray[Any]]]:
    """The majority class of the training images, and a linear classifier on their colour histograms."""
    labels, count = task.labels["train"], len(task.classes)
    share = np.bincount(labels, minlength=count) / len(labels)
    linear = histograms.linear_classifier(task.pixels["train"], labels, count)
    return {
        "majority class": {"test": np.tile(share, (len(task.labels["test"]), 1))},
        "linear on colour histograms": {"test": linear(task.pixels["test"])},
    }


def label_table(task: Any, split: str, predictions: NDArray[Any]) -> dict[str, list[Any]]:
    """The columns reference, prediction and scores of predictions.parquet. predictions: float [N, C]"""
    return {
        "reference": [task.classes[label] for label in task.labels[split]],
        "prediction": [task.classes[label] for label in predictions.argmax(1)],
        "scores": predictions.tolist(),
    }


def compared(classes: list[str], own: list[str], rows: dict[str, list[Any]]) -> tuple[ClassificationMetric, Any]:
    """Metric and statistics of stored test rows, with the columns of the scores in the order of `classes`."""
    metric = ClassificationMetric(classes)
    order = [own.index(name) for name in metric.classes]
    references = np.array([metric.classes.index(name) for name in rows["reference"]])
    return metric, metric.statistics(np.asarray(rows["scores"])[:, order], references)


def line(row: dict[str, Any]) -> str:
    """Label, confidence and the next two classes."""
    others = sorted(row["scores"].items(), key=lambda pair: -pair[1])[1:3]
    tail = ", ".join(f"{name} {score:.1%}" for name, score in others)
    return f"{row['prediction']} {row['confidence']:.1%}  (then {tail})"


def classify_images(task: Any, inputs: Sequence[Any], size: int | None = None) -> list[dict[str, Any]]:
    """Label, confidence and all scores of files (paths), PIL images or uint8 arrays [H, W, 3].

    `task` is any task whose `model` classifies and whose `predict` gives class probabilities; the images
    are prepared as its training images were, and given to it with sides of `size`, the model's own if none.
    """
    task.model.eval()
    found: list[dict[str, Any]] = []
    for names, images in square_images(task, inputs, size):
        with torch.inference_mode(), task.engine.autocast():
            rows = task.predict(task.engine.send({"image": images}))
        for name, row in zip(names, rows, strict=True):
            best = int(row.argmax())
            found.append(
                {
                    "input": name,
                    "prediction": task.classes[best],
                    "confidence": float(row[best]),
                    "scores": {label: float(score) for label, score in zip(task.classes, row, strict=True)},
                }
            )
    return found
