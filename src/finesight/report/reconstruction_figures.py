"""Figures of models that rebuild images: what they rebuilt, how well, and what they call an anomaly."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finesight.report import numbers, style
from finesight.report.figures import Row, epoch_panel, points_with_intervals
from finesight.report.grids import bare, mosaic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image = NDArray[np.uint8] | NDArray[np.floating[Any]]
LONGEST_NAME, LONGEST_LINE = 24, 36  # letters of the first and of further lines beside a row of images


@style.styled
def panels(rows: Sequence[Sequence[Image]], heads: Sequence[str], notes: Sequence[str] | None = None) -> "Figure":
    """Rows of images under the column titles `heads`; images uint8 [H, W, 3], or float [H, W, 3] in [0, 1].

    `notes` hold one text per row, shown at its left, its lines parted by line breaks: first the id, which loses its
    middle where it is long, then the numbers. Rows of one or two images stand in two blocks where there are more
    than three.
    """
    columns = max([len(row) for row in rows] + [len(heads), 1])
    blocks = 2 if columns <= 2 and len(rows) > 3 else 1
    height = max(1, -(-len(rows) // blocks))
    labels = _notes(notes) if notes else [""] * len(rows)
    letters = max((len(line) for label in labels for line in label.split("\n")), default=0)
    beside = 0.25 + 0.075 * letters
    cell = min(1.9, (style.WIDTH / blocks - beside) / columns)
    titles = [_wrapped(head, int(cell / 0.08)) for head in heads]
    lines = max((title.count("\n") + 1 for title in titles), default=0)
    fig = style.figure(min(style.WIDTH, blocks * (beside + cell * columns)), 0.15 + 0.17 * lines + cell * height)
    for block, axes in enumerate(fig.subplots(1, blocks, squeeze=False)[0]):
        part = slice(block * height, (block + 1) * height)
        mosaic(axes, [[_pixels(image) for image in row] for row in rows[part]], height, columns)
        axes.set_yticks(np.arange(len(rows[part])) + 0.5, labels[part], fontsize=8.5)
        axes.set_xticks(np.arange(len(titles)) + 0.5, titles, fontsize=9)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
    return fig


def _wrapped(head: str, letters: int) -> str:
    """A title in as few lines of about `letters` as it needs, all about as long."""
    lines = -(-len(head) // max(letters, 8))
    return textwrap.fill(head, len(head) // lines + 4) if lines > 1 else head


def _notes(notes: Sequence[str]) -> list[str]:
    """The notes with their long lines cut: line by line, so that the ids of all rows lose what they share."""
    parts = [note.split("\n") for note in notes]
    short: list[list[str]] = [[] for _ in parts]
    for k in range(max(map(len, parts))):
        having = [row for row, part in enumerate(parts) if k < len(part)]
        lines = style.shorten([parts[row][k] for row in having], LONGEST_LINE if k else LONGEST_NAME)
        for row, line in zip(having, lines, strict=True):
            short[row].append(line)
    return ["\n".join(lines) for lines in short]


def _pixels(image: Image) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] of an image [H, W, 3] or [H, W], uint8 or float in [0, 1] (values beyond it are clipped)."""
    scaled = 255 * np.clip(np.nan_to_num(image), 0, 1) if image.dtype.kind == "f" else image
    pixels = np.rint(scaled).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


@style.styled
def border_steps(steps: Sequence[Mapping[str, Any]]) -> "Figure":
    """How the dark border was cropped, a row per image: grey by Otsu's threshold, largest region, box, square, resized.

    Each step is {"original": uint8 [H, W, 3], "grey": uint8 [H, W], "threshold": float in [0, 255], "region": bool
    [H, W], "box": (top, left, bottom, right) and "square": (top, left, side) in pixels, the ends left out,
    "result": uint8 [S, S, 3]}. Images may differ in size.
    """
    fig = style.figure(style.WIDTH, 2.45 * max(len(steps), 1))
    for row, step in zip(fig.subplots(max(len(steps), 1), 5, squeeze=False), steps, strict=False):
        for axes, (title, image) in zip(row, _stages(step).items(), strict=True):
            axes.imshow(_pixels(image))
            axes.set_title(title, fontsize=8.5, fontweight="normal", loc="center")
            bare(axes)
            _square(axes, *image.shape[:2])
        top, left, bottom, right = step["box"]
        first, start, side = step["square"]
        _frame(row[2], left, top, right - left, bottom - top)
        _frame(row[3], start, first, side, side)
    return fig


def _stages(step: Mapping[str, Any]) -> dict[str, NDArray[np.uint8]]:
    """{title: image} of the five steps; around the square the image is darkened."""
    top, left, bottom, right = step["box"]
    first, start, side = step["square"]
    original, region = step["original"], np.where(step["region"], np.uint8(235), np.uint8(0))
    darkened = (original * 0.35).astype(np.uint8)
    inside = (slice(first, first + side), slice(start, start + side))
    darkened[inside] = original[inside]
    return {
        f"original\n{_size(original)}": original,
        f"grey\nOtsu threshold {step['threshold']:.4g}": step["grey"],
        f"largest region\nbox {right - left} × {bottom - top} px": region,
        f"centre square\n{side} × {side} px": darkened,
        f"resized\n{_size(step['result'])}": step["result"],
    }


def _square(axes: "Axes", height: int, width: int) -> None:
    """Limits of equal length, so that images of any shape stand at one height, their titles too."""
    side = max(height, width)
    axes.set(xlim=(width / 2 - side / 2 - 0.5, width / 2 + side / 2 - 0.5), ylim=(side - 0.5, -0.5))


def _frame(axes: "Axes", left: float, top: float, width: float, height: float) -> None:
    """A frame around pixels of the image in the axes."""
    from matplotlib.patches import Rectangle

    corner = (left - 0.5, top - 0.5)
    frame = Rectangle(corner, width, height, fill=False, edgecolor=style.ORANGE, linewidth=2, clip_on=False)
    axes.add_patch(frame)


def _size(image: NDArray[Any]) -> str:
    return f"{image.shape[1]} × {image.shape[0]} px"


@style.styled
def sample_grid(images: Sequence[Image], columns: int = 3) -> "Figure":
    """Images drawn from the prior, in rows of `columns`; uint8 [H, W, 3], or float [H, W, 3] in [0, 1]."""
    rows = [[_pixels(image) for image in images[start : start + columns]] for start in range(0, len(images), columns)]
    cell = min(1.7, style.WIDTH / columns)
    fig = style.figure(cell * columns, cell * max(len(rows), 1))
    axes = fig.subplots()
    mosaic(axes, rows, max(len(rows), 1), columns)
    if not rows:
        style.empty(axes, "no sample")
    return fig


@style.styled
def traversals(images: Sequence[Sequence[Image]], values: Sequence[float], names: Sequence[str]) -> "Figure":
    """What one latent dimension changes: images [D][K], row d with dimension d at each of the K `values`.

    `values` are in standard deviations of the prior; `names` are the labels of the D rows.
    """
    rows = [[_pixels(image) for image in row] for row in images]
    height, width = max(len(rows), 1), max(len(values), 1)
    labels = style.shorten(list(names), 20)
    beside = 0.5 + 0.08 * max(map(len, labels), default=0)
    cell = min(1.25, (style.WIDTH - beside) / width)
    fig = style.figure(beside + cell * width, 0.55 + cell * height)
    axes = fig.subplots()
    mosaic(axes, rows, height, width)
    axes.set_yticks(np.arange(len(rows)) + 0.5, labels, fontsize=9)
    axes.set_xticks(np.arange(len(values)) + 0.5, [f"{value:g}".replace("-", "−") for value in values], fontsize=9)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set(xlabel="value (standard deviations of the prior)", ylabel="latent dimension")
    axes.tick_params(length=0)
    return fig


@style.styled
def score_histogram(normal: ArrayLike, anomalous: ArrayLike, name: str, auroc_text: str) -> "Figure":
    """Anomaly scores [N] and [M] (higher: more anomalous) as histograms with shared bins, beside the ROC curve.

    `name` is that of the score, `auroc_text` stands in the title of the curve. Where a threshold lies is left open:
    each point of the curve is one.
    """
    sets = {"normal": np.asarray(normal, np.float64), "anomalous": np.asarray(anomalous, np.float64)}
    fig = style.figure(style.WIDTH, 4.3)
    bars, curve = fig.subplots(1, 2, width_ratios=[1.35, 1])
    if not all(map(len, sets.values())):
        for axes in (bars, curve):
            style.empty(axes, "both normal and anomalous images are needed")
            bare(axes)
        return fig
    everything = np.concatenate(list(sets.values()))
    edges = np.histogram_bin_edges(everything, bins=min(40, max(10, math.isqrt(len(everything)))))
    for (called, scores), colour in zip(sets.items(), (style.BLUE, style.VERMILION), strict=True):
        share = 100 * np.histogram(scores, edges)[0] / len(scores)
        bars.stairs(share, edges, fill=True, color=colour, alpha=0.35)
        bars.stairs(share, edges, color=colour, linewidth=1.6, label=f"{called} (n = {len(scores):,})")
    bars.set(title="Anomaly scores", xlabel=numbers.title(name), ylabel="images of the set (%)", ylim=(0, None))
    bars.grid(axis="y")
    bars.legend()
    false, true = _roc(sets["normal"], sets["anomalous"])
    curve.plot([0, 100], [0, 100], color=style.QUIET, linewidth=1, linestyle=(0, (4, 3)), label="chance")
    curve.plot(100 * false, 100 * true, color=style.PURPLE, label="this score")
    curve.set_title(auroc_text.replace(" (", "\n(", 1) if len(auroc_text) > 36 else auroc_text)
    curve.set(xlabel="normal images flagged (%)", ylabel="anomalous images found (%)", xlim=(-1, 101), ylim=(-1, 101))
    curve.set(aspect="equal")
    curve.grid()
    curve.legend(loc="lower right")
    return fig


def _roc(
    normal: NDArray[np.float64], anomalous: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of both sets at or above each threshold, from (0, 0) to (1, 1); equal scores fall together."""
    thresholds = np.unique(np.concatenate([normal, anomalous]))[::-1]
    shares = [
        1 - np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores) for scores in (normal, anomalous)
    ]
    return np.concatenate([[0.0], shares[0]]), np.concatenate([[0.0], shares[1]])


@style.styled
def metric_bars(rows: Sequence[Row], metric: str, level: float = 0.95) -> "Figure":
    """The model (first row) against other methods by one metric: (name, value, low, high) in the metric's own unit.

    `metric` is its name in metrics.json ("masked_psnr"), which gives label, unit and digits. The axis holds the
    values and intervals only, not zero. A row whose interval is unknown (None) is a point without whiskers.
    """
    known = numbers.unit(metric)
    scale = 100 if numbers.is_share(metric) else 1
    scaled = [
        (name, scale * value, None if low is None else scale * low, None if high is None else scale * high)
        for name, value, low, high in rows
    ]
    ends = [end for row in scaled for end in row[1:] if end is not None and math.isfinite(end)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    margin = 0.1 * (high - low) or 0.05 * abs(high) or 1.0
    shown = {"fraction": " (%)", "dB": " (dB)"}.get(known.unit, "") if known else ""
    label = f"{numbers.title(metric)}{shown}, line: {100 * level:g} % interval"
    return points_with_intervals(
        scaled, label, (low - margin, high + margin), lambda value: numbers.number(metric, value / scale)
    )


@style.styled
def history(
    rows: Sequence[Mapping[str, Any]],
    keys_by_panel: Mapping[str, Sequence[str]],
    best_epoch: int | None = None,
) -> "Figure":
    """Quantities by epoch for training and validation, a panel for each entry {title: keys of the history}.

    `rows` are those of history.jsonl: {"epoch", "train": {...}, "validation": {...}}. Missing values are left out.
    Keys that share a panel share its axis, so they should share their unit; lines tell them apart.
    """
    count = max(len(keys_by_panel), 1)
    columns = count if count <= 3 else 2 if count == 4 else 3
    lines = -(-count // columns)
    fig = style.figure(style.WIDTH, 3.6 * lines)
    places = fig.subplots(lines, columns, squeeze=False).ravel()
    for axes, (title, keys) in zip(places, keys_by_panel.items(), strict=False):
        names = {key: numbers.label(key) if len(keys) > 1 else "" for key in keys}
        epoch_panel(axes, rows, names, title, best_epoch=best_epoch)
        units = {known.unit for key in keys if key != "loss" and (known := numbers.unit(key)) is not None}
        what = numbers.label(keys[0]) if len(keys) == 1 else title
        unit = units.pop() if len(units) == 1 else ""
        axes.set(title=title, ylabel=f"{what} ({unit})" if unit and unit not in f"fraction index {what}" else what)
    for axes in places[len(keys_by_panel) :]:
        axes.remove()
    return fig
