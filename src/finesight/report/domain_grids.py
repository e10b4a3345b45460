"""Image grids of two domains: their samples, source images repainted, one image painted with many noise vectors."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finesight.report import style
from finesight.report.domain_measures import evenly
from finesight.report.grids import mosaic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Image = NDArray[np.uint8]
MOST_COLUMNS, FEWEST_COLUMNS = 16, 8


@style.styled
def domain_samples(
    source: Mapping[str, Sequence[Image]], target: Mapping[str, Sequence[Image]] | Sequence[Image], each: int = 3
) -> "Figure":
    """Source over target, a column per class: {class: images uint8 [H, W, 3]}; or any target images, where unlabelled.

    Each class has `columns_of` columns of `each` images. Of more than 16 classes, 16 are shown, evenly spaced, and
    the figure says so.
    """
    everything = list(source)
    classes = [everything[place] for place in evenly(range(len(everything)), MOST_COLUMNS)]
    columns = columns_of(len(everything))
    width = max(len(classes) * columns, 1)
    cell = min(0.95, (style.WIDTH - 1.0) / width)
    names = style.shorten(classes, 20)
    upright = max(map(len, names), default=0) * 0.085 > cell * columns
    fig = style.figure(1.0 + cell * width, 1.3 + 2 * each * cell + (0.3 + 0.1 * max(map(len, names)) if upright else 0))
    above, below = fig.subplots(2, 1)
    mosaic(above, _columns(source, classes, each, columns), each, width)
    above.set_xticks((np.arange(len(classes)) + 0.5) * columns, names, fontsize=9, rotation=90 if upright else 0)
    above.xaxis.tick_top()
    above.tick_params(length=0)
    above.set_xlabel("class")
    above.xaxis.set_label_position("top")
    above.set_ylabel("source")
    if isinstance(target, Mapping):
        mosaic(below, _columns(target, classes, each, columns), each, width)
        below.set_xlabel("same classes as above")
    else:
        taken = list(target[: each * width])
        mosaic(below, [taken[start : start + width] for start in range(0, len(taken), width)], each, width)
        below.set_xlabel("any classes: without labels")
    below.set_ylabel("target")
    if len(classes) < len(everything):
        fig.suptitle(f"{len(classes)} of {len(everything)} classes", x=0.01, ha="left", fontsize=10.5)
    return fig


def columns_of(classes: int) -> int:
    """Columns that each class has in `domain_samples`: several where there are few classes."""
    return max(1, FEWEST_COLUMNS // max(classes, 1))


def _columns(
    images: Mapping[str, Sequence[Image]], classes: Sequence[str], each: int, columns: int
) -> list[list[Image | None]]:
    """Rows of a grid in which each class has `columns` columns; None where a class has too few images."""

    def cell(name: str, place: int) -> Image | None:
        found = images.get(name, ())
        return found[place] if place < len(found) else None

    return [[cell(name, row * columns + k) for name in classes for k in range(columns)] for row in range(each)]


@style.styled
def translation_grid(
    originals: Sequence[Image], painted: Sequence[Image], nearest: Sequence[Sequence[Image]], names: Sequence[str]
) -> "Figure":
    """Source image, what the generator made of it, and the real target training images nearest to that.

    All uint8 [H, W, 3], one row per example in two blocks; `names` are the source labels.
    """
    rows = [[original, made, *real] for original, made, real in zip(originals, painted, nearest, strict=True)]
    blocks = 2 if len(rows) > 3 else 1
    height, width = max(1, -(-len(rows) // blocks)), max([len(row) for row in rows] + [3])
    cell = min(0.95, (style.WIDTH / blocks - 0.9) / width)
    labels = style.shorten(list(names), 16)
    widest = max(map(len, labels), default=1)
    fig = style.figure(min(style.WIDTH, blocks * (0.6 + 0.08 * widest + cell * width)), 0.75 + cell * height)
    panels = fig.subplots(1, blocks, squeeze=False)[0]
    heads = [
        "source",
        "generated",
        *("nearest\nreal" if k == 0 else f"{k + 1}{_ordinal(k + 1)}" for k in range(width - 2)),
    ]
    for block, axes in enumerate(panels):
        part = slice(block * height, (block + 1) * height)
        mosaic(axes, rows[part], height, width)
        axes.set_yticks(np.arange(len(rows[part])) + 0.5, labels[part], fontsize=9)
        axes.set_xticks(np.arange(width) + 0.5, heads, fontsize=8)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.axvline(2, color=style.QUIET, linewidth=1)
    panels[0].set_ylabel("source label")
    return fig


def _ordinal(number: int) -> str:
    return {1: "st", 2: "nd", 3: "rd"}.get(number, "th")


@style.styled
def diversity_grid(
    originals: Sequence[Image],
    painted: Sequence[Sequence[Image]],
    names: Sequence[str],
    generated: Sequence[float],
    real: Sequence[float | None],
) -> "Figure":
    """One source image per row and what the generator makes of it with one noise vector per column.

    At the right of each row its mean pairwise distance over the noise, and that of real target images of the
    class, both root mean squared differences in percent of the range.
    """
    rows = [[original, *made] for original, made in zip(originals, painted, strict=True)]
    width, height = max([len(row) for row in rows] + [2]), max(len(rows), 1)
    labels = style.shorten(list(names), 16)
    widest = max(map(len, labels), default=1)
    beside = 1.5  # inches for the distances
    cell = min(0.8, (style.WIDTH - 0.6 - beside - 0.08 * widest) / width)
    fig = style.figure(0.6 + beside + 0.08 * widest + cell * width, 0.85 + cell * height)
    axes = fig.subplots()
    mosaic(axes, rows, height, width)
    axes.set_xlim(0, width + beside / cell)
    places = np.arange(len(rows)) + 0.5
    axes.set_yticks(places, labels, fontsize=9)
    heads = ["source", *(str(k) for k in range(1, width)), "distance\n(real images)"]
    axes.set_xticks([*(np.arange(width) + 0.5), width + beside / cell / 2], heads, fontsize=8.5)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("generated, by number of the noise vector")
    axes.set_ylabel("source class")
    axes.tick_params(length=0)
    axes.axvline(1, color=style.QUIET, linewidth=1)
    for place, ours, theirs in zip(places, generated, real, strict=True):
        text = f"{100 * ours:.1f} %  ({'—' if theirs is None else f'{100 * theirs:.1f} %'})"
        axes.text(width + beside / cell / 2, place, text, fontsize=9, ha="center", va="center")
    return fig
