"""Captions that took no look at the image: what a captioner must beat, and what is said when it does not."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from finesight.data import transforms
from finesight.metrics import bootstrap
from finesight.metrics import captions as metric
from finesight.progress import Progress
from finesight.report.reconstruction import beaten
from finesight.tasks.caption_splits import objects
from finesight.tasks.generation import NOTHING

if TYPE_CHECKING:
    from finesight.tasks.captioning import Captioning

FREQUENT, NEAREST, SHUFFLED = "most frequent caption", "caption of the nearest image", "own captions, images shuffled"
REMEDY = "Train longer, begin from pretrained weights, or look whether the captions describe the images at all."
BLOCK = 2**24
"""Similarities between images that are held at once: 64 MiB."""


def controls(task: "Captioning") -> dict[str, dict[str, NDArray[np.object_]]]:
    """Three sets of captions for the test images, object [N] of text.

    The most frequent training caption; that of the training image nearest by the encoder's mean output (the first
    where it has several); and the model's own captions, each given to another image.
    """
    train, count = task.captions["train"], len(task.captions["test"])
    every = Counter(text for texts in task.references("train") for text in texts)
    frequent = min(every.items(), key=lambda pair: (-pair[1], pair[0]))[0]
    nearest = nearest_rows(features(task, "train"), features(task, "test"))
    own = _own(task)
    return {
        FREQUENT: {"test": objects([frequent] * count)},
        NEAREST: {"test": objects([train[row] for row in nearest])},
        SHUFFLED: {"test": objects([own[row] for row in deranged(count, task.config.seed)])},
    }


def paired(
    task: "Captioning",
    found: Mapping[str, Mapping[str, NDArray[np.object_]]],
    predictions: NDArray[np.float64],
    groups: list[str],
) -> dict[str, dict[str, Any]]:
    """Each of `controls` beside the model on the same test images: {control: `bootstrap.paired`}, b the model."""
    options, references = task.config.evaluation, task.references("test")
    ours = task.metric.statistics(predictions, references)
    together = groups if len(set(groups)) < len(groups) else None
    return {
        name: bootstrap.paired(
            task.metric, task.metric.statistics(splits["test"], references), ours,
            groups=together, resamples=options.resamples, seed=task.config.seed, level=options.level,
        )
        for name, splits in found.items()
    }  # fmt: skip


def features(task: "Captioning", split: str) -> Tensor:
    """The mean of the image encoder's outputs for each image, of length 1, float32 [N, D]."""
    batches, found = task.held_out(split), []
    held = batches.columns.get("states")
    progress = Progress(f"encoding {split} for the nearest image", len(batches.ids), "images", shown=held is None)
    task.model.eval()
    for start in range(0, len(batches.ids), 16):
        rows = torch.arange(start, min(start + 16, len(batches.ids)))
        with torch.inference_mode(), task.engine.autocast():
            if held is not None:
                states = held.index_select(0, rows)
            else:
                images = task.pixels[split].index_select(0, rows).to(task.engine.device)
                states = task.model.image_states(task.prepared(transforms.resize(images, task.model.image_size)))
        found.append(states.float().mean(1).cpu())
        progress.update(start + len(rows))
    progress.close()
    return functional.normalize(torch.cat(found), dim=1)


def nearest_rows(known: Tensor, asked: Tensor) -> list[int]:
    """For each row of `asked` the most similar row of `known`, by cosine; all have length 1."""
    size = max(1, BLOCK // len(known))
    return [row for part in asked.split(size) for row in (part @ known.T).argmax(1).tolist()]


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
    return task.texts(np.stack([task.written[name] for name in batches.ids]))


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
    written = Counter(tuple(token for token in row[2:] if token != NOTHING) for row in rows)
    most = max(written.values(), default=0)
    if len(rows) > 1 and len(written) == 1:
        found.append(
            f"All {len(rows)} test captions are the same text: the model does not look at the images. {REMEDY}"
        )
    elif most > max(1, len(rows) / 2) and most > 2 * _repeated(task.references("test")):
        found.append(
            f"{most} of {len(rows)} test captions are the same text, and no reference is that frequent: the model "
            f"hardly looks at the images. {REMEDY}"
        )
    return found


def _repeated(references: NDArray[np.object_]) -> int:
    """Images that share the most frequent reference."""
    return max(Counter(text for texts in references for text in set(texts)).values())
