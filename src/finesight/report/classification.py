"""The figures of a classification run, made from its data, predictions and history."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from finesight.data import transforms
from finesight.report import classifier
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
    drawn = classifier.judged(task, predictions["test"], metrics)
    if history:
        drawn["curves"] = classifier.learning_curves(task, history)
    drawn["samples"] = classifier.samples(
        task, "Training images of every class, as the model receives them before augmentation."
    )
    drawn["classes"] = classifier.images_per_class(task)
    if task.train.augment is not None:
        drawn["augmentation"] = _augmentation(task)
    if hasattr(task.model.backbone, "tokens"):
        drawn["patch_positions"] = _tokens(task)
    return drawn


def _tokens(task: "Classification") -> tuple[Any, str, str]:
    """What the patch-and-position layer makes of the first test image (report 004)."""
    batch = task.engine.send({"image": transforms.resize(task.pixels["test"][:1], task.model.image_size)})
    with torch.inference_mode():
        tokens = task.model.backbone.tokens(task.prepared(batch))[0].float().cpu().numpy()  # type: ignore[operator]
    name = task.held_out("test").ids[0]
    return (
        draw.patch_position_heatmap(tokens),
        "Patch-and-position layer",
        f"Each row is a patch of the test image {name}: its projection plus its position, as the encoder receives it.",
    )


def _augmentation(task: "Classification") -> tuple[Any, str, str]:
    present = np.unique(task.labels["train"], return_index=True)
    rows = [int(row) for row in present[1][:4]]
    names = [task.classes[label] for label in present[0][:4]]
    originals = [classifier.image(task, "train", row) for row in rows]
    draws = torch.from_numpy(transforms.random_table(task.config.seed, 0, len(rows) * VARIANTS))
    images = task.pixels["train"][rows].repeat_interleave(VARIANTS, 0)
    made = transforms.augment(images, draws, task.config.augment).permute(0, 2, 3, 1).numpy()
    variants = [list(made[start : start + VARIANTS]) for start in range(0, len(made), VARIANTS)]
    figure = draw.augmentation_grid(originals, variants, names)
    return figure, "Augmentation", "An image of the training split and what training may see of it."
