"""Figures that are heat maps: the confusion matrix, and the patch-and-position layer of the leaf ViT."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finesight.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@style.styled
def confusion_matrix(matrix: npt.ArrayLike, classes: Sequence[str]) -> "Figure":
    """Counts and rates of [C, C] counts; row: reference, column: prediction. A rate is a share of its row.

    Cells hold their number up to 20 classes. Colours follow the square root, so that rare confusions show.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"matrix has shape {counts.shape} for {len(classes)} classes")
    total = counts.sum(axis=1, keepdims=True)
    rates = np.divide(100 * counts, total, out=np.zeros_like(counts), where=total > 0)
    beside = len(classes) <= 10
    side = max(2.4, 0.36 * len(classes)) if beside else min(max(4.8, 0.13 * len(classes)), 12.0)
    names_below = 0.5 if len(classes) <= 2 else 1.6
    fig = style.figure(style.WIDTH, side + 0.3 + names_below if beside else 2 * side + 3.6)
    panels = fig.subplots(1, 2, sharey=True) if beside else fig.subplots(2, 1)
    _heat(panels[0], counts, classes, "Counts", "images", side, names=True)
    _heat(panels[1], rates, classes, "Rates", "% of the reference class", side, names=not beside)
    return fig


def _heat(
    axes: "Axes",
    values: np.ndarray,
    classes: Sequence[str],
    title: str,
    unit: str,
    side: float,
    *,
    names: bool,
) -> None:
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    top = max(float(values.max(initial=0)), 1.0)
    image = axes.imshow(values, cmap="Blues", norm=PowerNorm(0.5, 0, top), interpolation="none", aspect="auto")
    few, rows = len(classes) <= 20, np.arange(len(classes))
    short = style.shorten(classes, 22)
    size = style.ticks_fit(len(classes), side)
    axes.set_yticks(rows, short if few else [f"{name}  {row}" for row, name in enumerate(short)], fontsize=size)
    axes.tick_params(axis="y", left=names, labelleft=names)
    if few:
        axes.set_xticks(rows, short, fontsize=size, rotation=0 if len(classes) <= 2 else 90)
        _write_cells(axes, values, top, (3.8 if len(classes) <= 10 else 7.8) / len(classes))
    else:
        step = 5 if len(classes) <= 60 else 10
        axes.set_xticks(rows[::step])
    axes.set(title=f"{title} ({unit})", xlabel="prediction" if few else "prediction (number of the class)")
    axes.set_ylabel("reference" if names else "")
    axes.spines[:].set_visible(False)
    if few:
        return
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02)
    bar.set_label(f"{unit}, square-root scale")
    bar.locator = MaxNLocator(6, integer=True)
    bar.update_ticks()
    bar.outline.set_visible(False)


def _write_cells(axes: "Axes", values: np.ndarray, top: float, inches: float) -> None:
    """Write what is not zero, as large as cells of this width allow."""
    longest = len(f"{values.max(initial=0):,.0f}")
    size = min(8.5, 72 * inches / (0.66 * longest + 0.3))
    for row, column in zip(*np.nonzero(values), strict=True):
        value = values[row, column]
        text = "<1" if value < 0.5 else f"{value:,.0f}"
        colour = "white" if value > 0.42 * top else style.INK
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


@style.styled
def patch_position_heatmap(table: npt.ArrayLike, grid: tuple[int, int] | None = None) -> "Figure":
    """Heat map of what is added to (or made of) each patch token: float [tokens, width], zero is white.

    `grid` (rows, columns) of patches draws a line where a row of patches begins; a square grid is assumed
    where `tokens` is a square number. Report 004 shows this for 100 tokens of 64.
    """
    values = np.asarray(table, dtype=np.float64)
    tokens, width = values.shape
    side = round(tokens**0.5)
    rows, columns = grid or ((side, side) if side * side == tokens else (1, tokens))
    limit = float(np.abs(values).max(initial=0)) or 1.0
    fig = style.figure(7.2, 7.4)
    axes = fig.subplots()
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="none", aspect="auto")
    if rows > 1:
        axes.set_yticks(np.arange(rows) * columns)
        for row in range(1, rows):
            axes.axhline(row * columns - 0.5, color=style.INK, linewidth=0.4, alpha=0.5)
    layout = f", {rows} rows of {columns} patches" if rows > 1 else ""
    axes.set(title=f"{tokens} tokens × {width} dimensions", xlabel="dimension", ylabel=f"token{layout}")
    fig.colorbar(image, ax=axes, label="value (no unit)", fraction=0.05, pad=0.02)
    return fig
