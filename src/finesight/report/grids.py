"""Figures made of images: samples per class, augmentation, worst mistakes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from finesight.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CLASSES = 60


@style.styled
def samples_per_class(samples: Mapping[str, Sequence[np.ndarray]]) -> "Figure":
    """A row of images per class: {class: images uint8 [H, W, 3]}; the images may differ in size and number.

    Of more than 60 classes, 60 are shown, evenly spaced in their order, and the figure says so.
    """
    classes = list(samples)
    shown = classes
    if len(classes) > MOST_CLASSES:
        shown = [classes[int(place)] for place in np.linspace(0, len(classes) - 1, MOST_CLASSES)]
    widest = max([len(samples[name]) for name in shown] + [1])
    blocks = 1 if len(shown) <= 5 else 2 if len(shown) <= 40 else 3
    rows = max(1, -(-len(shown) // blocks))
    cell = min(0.95, (style.WIDTH / blocks - 1.7) / widest)
    fig = style.figure(min(style.WIDTH, blocks * (1.9 + cell * widest)), 0.6 + cell * rows)
    names = style.shorten(shown, 24 if blocks < 3 else 20)
    panels = fig.subplots(1, blocks, squeeze=False)[0]
    for block, axes in enumerate(panels):
        part = range(block * rows, min((block + 1) * rows, len(shown)))
        mosaic(axes, [samples[shown[place]] for place in part], rows, widest)
        axes.set_yticks(np.arange(len(part)) + 0.5, [names[place] for place in part], fontsize=8)
        axes.set_xlabel("training images")
    panels[0].set_ylabel("class")
    if len(shown) < len(classes):
        fig.suptitle(f"{len(shown)} of {len(classes)} classes", x=0.01, ha="left", fontsize=10.5)
    return fig


@style.styled
def augmentation_grid(
    originals: Sequence[np.ndarray],
    variants: Sequence[Sequence[np.ndarray]],
    names: Sequence[str] | None = None,
) -> "Figure":
    """Each original (uint8 [H, W, 3]) beside the variants that training may see; one row per original.

    `variants[i]` are the variants of `originals[i]`; `names` are the labels of the rows.
    """
    rows = [[original, *made] for original, made in zip(originals, variants, strict=True)]
    widest = max([len(row) for row in rows] + [2])
    cell = min(1.05, (style.WIDTH - 1.8) / widest)
    fig = style.figure(1.8 + cell * widest, 0.45 + cell * max(len(rows), 1))
    axes = fig.subplots()
    mosaic(axes, rows, max(len(rows), 1), widest)
    labels = style.shorten(names, 24) if names is not None else [str(place + 1) for place in range(len(rows))]
    axes.set_yticks(np.arange(len(rows)) + 0.5, labels, fontsize=8)
    axes.set_xticks(np.arange(widest) + 0.5, ["original", *(f"variant {k}" for k in range(1, widest))], fontsize=8)
    axes.xaxis.tick_top()
    axes.axvline(1.0, color=style.QUIET, linewidth=1)
    axes.set_ylabel("image")
    return fig


def worst_indices(
    references: Sequence[int], predictions: Sequence[int], confidences: Sequence[float], limit: int = 12
) -> list[int]:
    """Positions of the wrong predictions, most confident first; equal confidences keep their order."""
    wrong = np.flatnonzero(np.asarray(references) != np.asarray(predictions))
    order = np.argsort(-np.asarray(confidences, dtype=np.float64)[wrong], kind="stable")
    return [int(place) for place in wrong[order[:limit]]]


@style.styled
def worst_mistakes(
    images: Sequence[np.ndarray],
    references: Sequence[str],
    predictions: Sequence[str],
    confidences: Sequence[float],
    total: int | None = None,
    limit: int = 12,
) -> "Figure":
    """The most confident errors: images uint8 [H, W, 3] with class names and confidences in [0, 1].

    Right predictions among the input are left out. `total` is how many images were judged, for the sentence
    that stands in the place of the images when there is no mistake.
    """
    codes = {name: code for code, name in enumerate(dict.fromkeys([*references, *predictions]))}
    worst = worst_indices([codes[x] for x in references], [codes[x] for x in predictions], confidences, limit)
    if not worst:
        fig = style.figure(style.WIDTH, 1.4)
        axes = fig.subplots()
        bare(axes)
        axes.set_title("No mistakes")
        style.empty(axes, f"All {total:,} images were given the right class." if total else "Nothing to show.")
        return fig
    columns = 4
    rows = -(-len(worst) // columns)
    fig = style.figure(style.WIDTH, 3.05 * rows)
    names = dict(zip(codes, style.shorten(list(codes), 25), strict=True))
    panels = fig.subplots(rows, columns, squeeze=False).ravel()
    for axes, place in zip(panels, worst, strict=False):
        axes.imshow(images[place])
        bare(axes)
        said = f"said {names[predictions[place]]}\n{100 * confidences[place]:.1f} % sure"
        axes.set_title(f"is {names[references[place]]}", fontsize=8.5, loc="center", color=style.INK)
        axes.set_xlabel(said, fontsize=8.5, color=style.VERMILION)
    for axes in panels[len(worst) :]:
        axes.remove()
    return fig


def mosaic(axes: "Axes", rows: Sequence[Sequence[np.ndarray | None]], height: int, width: int) -> None:
    """Images in unit cells of one pair of axes (far cheaper than one pair per image), aspect kept; None is a gap."""
    gap = 0.04
    for top, row in enumerate(rows):
        for left, image in enumerate(row):
            if image is None:
                continue
            tall, wide = image.shape[:2]
            scale = (1 - 2 * gap) / max(tall, wide)
            x, y = left + 0.5, top + 0.5
            half_x, half_y = wide * scale / 2, tall * scale / 2
            axes.imshow(image, extent=(x - half_x, x + half_x, y + half_y, y - half_y))
    bare(axes)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal", anchor="W")


def bare(axes: "Axes") -> None:
    """Neither ticks nor frame."""
    axes.set(xticks=[], yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
