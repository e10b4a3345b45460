"""What the tasks on images without labels do alike: batches, the mean image, new images."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finesight.data import images, transforms
from finesight.data.batches import Batches
from finesight.errors import NonFiniteLoss

MOST_VALUES = 50_000_000
"""Pixels times channels that a linear baseline is fitted to at once: 1,808 images of 96 x 96, 200 MB."""


def held(ids: list[str], pixels: Tensor, split: str, config: Any, size: int) -> Batches:
    """The batches of a split: shuffled and augmented for "train", in order for the others."""
    train = split == "train"
    return Batches(
        ids,
        {"image": pixels},
        batch_size=config.train.batch_size if train else config.evaluation.batch_size,
        seed=config.seed,
        shuffle=train,
        augment=config.augment if train and config.augment.active else None,
        size=size,
        workers=config.train.workers if train else 0,
    )


def in_order(batches: Batches, step: int = 64) -> Iterator[Tensor]:
    """The images of a split, float32 [B, 3, S, S] in [0, 1], a few at a time."""
    for start in range(0, batches.samples, step):
        yield batches.take(np.arange(start, min(start + step, batches.samples)))["image"].float() / 255


def pixel_conditions(task: Any) -> dict[str, Any]:
    """What decides the pixels that a run is measured on, beside the files."""
    options, size = task.config.data, task.model.image_size
    return {
        "image_size": size, "held_size": options.size or size, "fit": task.fit, "sixteen_bit": options.sixteen_bit,
    }  # fmt: skip


def refuse_balance(config: Any) -> Any:
    """A pydantic validator: images without labels have no classes to balance."""
    if config.train.balance is not None:
        raise ValueError("train.balance is for classification; no labels are read here, so leave it out")
    return config


def refuse_diverged(values: Tensor, ids: Sequence[str]) -> None:
    """Raise `NonFiniteLoss` naming the samples whose row of `values` [B, ...] is not finite."""
    wrong = (~torch.isfinite(values.flatten(1) if values.ndim > 1 else values[:, None]).all(1)).nonzero().flatten()
    if len(wrong):
        names = ", ".join(str(ids[row]) for row in wrong[:8].tolist())
        raise NonFiniteLoss(
            f"{len(wrong)} predictions of one batch are not finite, such as for {names}: the weights diverged. Lower "
            "train.lr, set train.clip, or use --precision fp32, and start again with another --output."
        )


def mean_image(pixels: Tensor, size: int) -> Tensor:
    """Mean of uint8 [N, 3, H, H] at `size`, float32 [3, size, size] in [0, 1]."""
    total = torch.zeros(pixels.shape[1:], dtype=torch.float64)
    for start in range(0, len(pixels), 256):
        total += pixels[start : start + 256].sum(0, dtype=torch.int64)
    mean = (total / (255 * len(pixels))).float()
    if mean.shape[-1] != size:
        mean = torch.nn.functional.interpolate(mean[None], (size, size), mode="bilinear", antialias=True)[0]
    return mean.clamp(0, 1)  # the resize may leave [0, 1] by rounding


def square_images(
    task: Any, inputs: Sequence[Any], side: int | None = None
) -> Iterator[tuple[list[str | None], Tensor]]:
    """Files (paths), PIL images or uint8 arrays [H, W, 3] in batches, prepared as the task's training images were.

    Yields the paths (None for arrays) and uint8 [B, 3, S, S], with S = `side` or the size of the model's input.
    """
    step = task.config.evaluation.batch_size
    for start in range(0, len(inputs), step):
        chunk = inputs[start : start + step]
        pixels = torch.from_numpy(np.stack([_square(task, item) for item in chunk]))
        names = [str(item) if isinstance(item, str | Path) else None for item in chunk]
        yield names, transforms.resize(pixels, side or task.model.image_size)


def _square(task: Any, item: Any) -> NDArray[np.uint8]:
    """[3, size, size]"""
    options = task.config.data
    if isinstance(item, str | Path):
        entry: dict[str, Any] = {"path": str(item), "bytes": None}
    else:
        entry = {"path": None, "bytes": images.encode(item)}
    size = options.size or task.model.image_size
    return images.decode_resized(entry, entry["path"] or "array", size, task.fit, options.sixteen_bit)


def measured_images(task: Any, inputs: Sequence[Any], measures: Sequence[str]) -> list[dict[str, Any]]:
    """{"input": path or None, measure: value, ...} of each of `inputs`, by the task's `predict`."""
    found: list[dict[str, Any]] = []
    task.model.eval()
    for names, pixels in square_images(task, inputs):
        batch = {"image": pixels, "id": [Path(name).name if name else "array" for name in names]}
        with torch.inference_mode(), task.engine.autocast():
            rows = task.predict(task.engine.send(batch))
        found += [
            {"input": name, **dict(zip(measures, row.tolist(), strict=True))}
            for name, row in zip(names, rows, strict=True)
        ]
    return found


def measure_columns(predictions: NDArray[Any], measures: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of predictions.parquet: `scores`, and each measure by its name. predictions: [N, K]"""
    return {"scores": predictions.tolist(), **dict(zip(measures, predictions.T.tolist(), strict=True))}


def numbers_of(row: dict[str, Any]) -> str:
    """The measures of one image for the console."""
    from finesight.report import numbers

    return ", ".join(f"{numbers.label(name)} {numbers.number(name, v)}" for name, v in row.items() if name != "input")


def principal_components(batches: Batches, count: int) -> Callable[[Tensor], Tensor]:
    """The best linear autoencoder with `count` dimensions (Pearson 1901) of a split's images uint8 [N, 3, S, S].

    Fitted exactly, to at most as many evenly spaced images as fit MOST_VALUES. Returns a function on float32
    images [B, 3, S, S] in [0, 1] that gives their reconstructions, clamped.
    """
    values = batches.take(np.array([0]))["image"].numel()
    chosen = np.unique(np.linspace(0, len(batches.ids) - 1, max(2, MOST_VALUES // values)).astype(np.int64))
    flat = batches.take(chosen)["image"].flatten(1).float() / 255
    mean = flat.mean(0)
    flat -= mean
    # The Gram matrix has the same leading directions and is small: [N, N].
    strengths, weights = torch.linalg.eigh((flat @ flat.T).double())
    strongest = strengths.argsort(descending=True)[:count]
    strongest = strongest[strengths[strongest] > 1e-6]
    directions = flat.T @ (weights[:, strongest] / strengths[strongest].sqrt()).float()

    def reconstruct(images: Tensor) -> Tensor:
        codes = (images.flatten(1) - mean) @ directions
        return (mean + codes @ directions.T).clamp(0, 1).view_as(images)

    return reconstruct
