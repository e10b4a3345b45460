"""The figures of a contrastive run, and what would make its numbers suspect."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from finesight.models.dual_encoder import LARGEST_SCALE
from finesight.report import classifier, style
from finesight.tasks.base import Figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from finesight.tasks.contrastive import Contrastive

TWO_LOSSES = (
    "The two losses are not one quantity: training tells the texts of a batch apart, validation the prompts of the "
    "classes."
)
SHOWN = 200
"""Test images of each class whose similarities are averaged."""


def figures(
    task: "Contrastive",
    predictions: dict[str, NDArray[np.float64]],
    history: list[dict[str, Any]],
    metrics: dict[str, Any],
) -> Figures:
    """{name: (figure, title, caption)} for the report."""
    judged: Any = task  # it has what these figures read of a classifier
    drawn = classifier.judged(judged, predictions["test"], metrics)
    figure, title, caption = classifier.learning_curves(judged, history)
    drawn["curves"] = (figure, title, f"{caption} {TWO_LOSSES}")
    drawn["similarity"] = _similarity(task)
    shown = "Training images of every class, as the model receives them before augmentation."
    drawn["samples"] = classifier.samples(judged, shown)
    drawn["classes"] = classifier.images_per_class(judged)
    return drawn


def alarms(metrics: dict[str, Any], history: list[dict[str, Any]]) -> list[str]:
    """Sentences on results that look too good or too bad."""
    found, test = [], metrics["test"]["accuracy"]
    for name, splits in metrics["baselines"].items():
        trivial = splits["test"]["accuracy"]["value"]
        if (test["low"] if test["low"] is not None else test["value"]) <= trivial:
            found.append(
                f"Not clearly better than the trivial baseline '{name}': {test['value']:.1%} against {trivial:.1%}. "
                "Train longer, or look whether the words name what the images show."
            )
    validation = metrics["validation"]["accuracy"]
    if None not in (validation["low"], test["high"]) and validation["low"] > test["high"]:
        found.append(
            f"Validation ({validation['value']:.1%}) is clearly above test ({test['value']:.1%}): the two splits "
            "differ, or copies of training samples are in validation. Run: finesight data check"
        )
    if test["value"] == 1.0:
        found.append(f"Every one of the {test['n']} test samples is right. Before believing it: finesight data check")
    temperature = history[-1]["train"].get("temperature") if history else None
    if temperature is not None and temperature <= 1.001 / LARGEST_SCALE:
        found.append(
            f"The temperature reached its end at {1 / LARGEST_SCALE:g}: confidences are at the limit that CLIP sets."
        )
    return found


def _similarity(task: "Contrastive") -> tuple[Any, str, str]:
    """Mean cosine of the images of each class with the prompt of each class."""
    labels, rows = task.labels["test"], []
    for label in range(len(task.classes)):
        chosen = np.flatnonzero(labels == label)[:SHOWN]
        rows.append(_mean_cosines(task, chosen) if len(chosen) else np.zeros(len(task.classes)))
    caption = (
        f"Mean cosine of up to {SHOWN} test images of each class with the prompts, such as "
        f"“{task.prompts(task.classes)[0]}”. What counts is which is the largest of a row."
    )
    return similarity_heatmap(np.stack(rows), task.classes), "Images and prompts", caption


def _mean_cosines(task: "Contrastive", rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 [C]"""
    batch = task.engine.send(task.held_out("test").take(rows))
    with torch.inference_mode(), task.engine.autocast():
        cosines = task.cosines(task.model.image_features(task.prepared(batch["image"])))
    return cosines.double().mean(0).cpu().numpy()


@style.styled
def similarity_heatmap(values: NDArray[np.float64], classes: list[str]) -> "Figure":
    """Heat map of cosines [C, C]; row: class of the images, column: prompt."""
    side = min(max(3.0, 0.42 * len(classes)), 9.0)
    fig = style.figure(side + 3.2, side + 1.4)
    axes = fig.subplots()
    limit = float(np.abs(values).max(initial=0)) or 1.0
    shown = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="none")
    names, size = style.shorten(classes, 22), style.ticks_fit(len(classes), side)
    axes.set_xticks(np.arange(len(classes)), names, rotation=90, fontsize=size)
    axes.set_yticks(np.arange(len(classes)), names, fontsize=size)
    axes.set(xlabel="prompt", ylabel="class of the images")
    if len(classes) <= 12:
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.6 * limit else style.INK
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.spines[:].set_visible(False)
    fig.colorbar(shown, ax=axes, label="cosine", fraction=0.046, pad=0.02)
    return fig
