"""Captions that took no look at the image: what a captioner must beat, and what is said when it does not."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from finesight.data import transforms
from finesight.metrics import captions as metric
from finesight.report.reconstruction import beaten
from finesight.tasks.generation import NOTHING

if TYPE_CHECKING:
    from finesight.tasks.captioning import Captioning

FREQUENT, NEAREST, SHUFFLED = "most frequent caption", "caption of the nearest image", "own captions, images shuffled"
REMEDY = "Train longer, begin from pretrained weights, or look whether the captions describe the images at all."


def controls(task: "Captioning") -> dict[str, dict[str, NDArray[np.object_]]]:
    """Three sets of captions for the test images, object [N] of text.

    The most frequent training caption; that of the training image nearest by the encoder's mean output (the first
    where it has several); and the model's own captions, each given to another image.
    """
    train, count = task.captions["train"], len(task.captions["test"])
    every = Counter(text for texts in task.references("train") for text in texts)
    frequent = min(every.items(), key=lambda pair: (-pair[1], pair[0]))[0]
    nearest = nearest_rows(features(task, "train"), features(task, "test"))
    return {
        FREQUENT: {"test": _texts([frequent] * count)},
        NEAREST: {"test": _texts([train[row] for row in nearest])},
        SHUFFLED: {"test": _texts([_own(task)[row] for row in deranged(count, task.config.seed)])},
    }


def features(task: "Captioning", split: str) -> Tensor:
    """The mean of the image encoder's outputs for each image, of length 1, float32 [N, D]."""
    batches, found = task.held_out(split), []
    task.model.eval()
    for start in range(0, len(batches.ids), 16):
        rows = np.arange(start, min(start + 16, len(batches.ids)))
        with torch.inference_mode(), task.engine.autocast():
            if "states" in batches.columns:
                states = batches.columns["states"][torch.from_numpy(rows)]
            else:
                images = transforms.resize(task.pixels[split][rows].to(task.engine.device), task.model.image_size)
                states = task.model.backbone(pixel_values=task.prepared(images)).last_hidden_state
        found.append(states.float().mean(1).cpu())
    return functional.normalize(torch.cat(found), dim=1)


def nearest_rows(known: Tensor, asked: Tensor) -> list[int]:
    """For each row of `asked` the most similar row of `known`, by cosine; all have length 1."""
    return (asked @ known.T).argmax(1).tolist()


def deranged(count: int, seed: int) -> NDArray[np.int64]:
    """A row for each row, none its own where there are two or more, by `seed`. int64 [count]"""
    order = np.random.default_rng([seed, count]).permutation(count)
    found = np.empty(count, np.int64)
    found[order] = np.roll(order, 1)
    return found


def _own(task: "Captioning") -> list[str]:
    """The model's captions of the test images; those of other processes are written here once more."""
    batches = task.held_out("test")
    size = batches.batch_size
    task.model.eval()
    for start in range(0, len(batches.ids), size):
        rows = np.arange(start, min(start + size, len(batches.ids)))
        if any(batches.ids[row] not in task.written for row in rows.tolist()):
            with torch.inference_mode(), task.engine.autocast():
                task.predict(task.engine.send(batches.take(rows)))
    return task._texts(np.stack([task.written[name] for name in batches.ids]))


def _texts(texts: list[str]) -> NDArray[np.object_]:
    found = np.empty(len(texts), object)
    found[:] = texts
    return found


def alarms(task: "Captioning", metrics: dict[str, Any]) -> list[str]:
    """Scores that contradict each other, controls that win, captions that never end or are all the same."""
    found = list(metric.contradictions({name: entry["value"] for name, entry in metrics["test"].items()}))
    found += beaten(metrics, "cider", REMEDY)
    rows = [task.written[name] for name in task.held_out("test").ids if name in task.written]
    endless = sum(task.model.ends.end not in row[2:] for row in rows)
    if rows and endless > len(rows) / 10:
        found.append(
            f"{endless} of {len(rows)} test captions were cut at {task.config.generation.max_tokens} tokens without an "
            "end: raise --generation.max_tokens and --model.longest, or train longer."
        )
    written = {tuple(token for token in row[2:] if token != NOTHING) for row in rows}
    if len(rows) > 1 and len(written) == 1:
        found.append(
            f"All {len(rows)} test captions are the same text: the model does not look at the images. {REMEDY}"
        )
    return found
