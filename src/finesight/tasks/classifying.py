"""What every task that ends in a classifier does alike: baselines, the table of predictions, new images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finesight.data import histograms, images


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


def classify_images(task: Any, inputs: Sequence[Any]) -> list[dict[str, Any]]:
    """Label, confidence and all scores of files (paths), PIL images or uint8 arrays [H, W, 3].

    `task` is any task whose `model` classifies and whose `predict` gives class probabilities; the images
    are prepared as its training images were.
    """
    size = task.config.data.size or task.model.image_size
    task.model.eval()
    found: list[dict[str, Any]] = []
    step = task.config.evaluation.batch_size
    for start in range(0, len(inputs), step):
        chunk = inputs[start : start + step]
        held = torch.from_numpy(np.stack([_square(task, item, size) for item in chunk]))
        with torch.inference_mode(), task.engine.autocast():
            rows = task.predict(task.engine.send({"image": task.resized(held)}))
        for item, row in zip(chunk, rows, strict=True):
            best = int(row.argmax())
            found.append(
                {
                    "input": str(item) if isinstance(item, str | Path) else None,
                    "prediction": task.classes[best],
                    "confidence": float(row[best]),
                    "scores": {name: float(score) for name, score in zip(task.classes, row, strict=True)},
                }
            )
    return found


def _square(task: Any, item: Any, size: int) -> NDArray[np.uint8]:
    """A file, PIL image or array uint8 [H, W, 3] as the training images were prepared. [3, size, size]"""
    if isinstance(item, str | Path):
        entry: dict[str, Any] = {"path": str(item), "bytes": None}
    else:
        entry = {"path": None, "bytes": images.encode(item)}
    return images.decode_resized(entry, entry["path"] or "array", size, task.fit, task.config.data.sixteen_bit)
