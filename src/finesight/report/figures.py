"""The figures of a report: arrays in, `matplotlib.figure.Figure` out; and `save`, which writes them.

No pyplot and no global state: a figure belongs to its caller. matplotlib is imported on the first call.
Figures of a report have fixed names, which also order them (`html.FIGURE_ORDER`). Those of two domains are
drawn in domain_charts.py and domain_grids.py.
"""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finesight.files import read_json, replacing, write_json
from finesight.report import style
from finesight.report.grids import augmentation_grid, samples_per_class, worst_indices, worst_mistakes
from finesight.report.heatmaps import confusion_matrix, patch_position_heatmap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "accuracy_intervals",
    "augmentation_grid",
    "class_chart",
    "confusion_matrix",
    "curves",
    "patch_position_heatmap",
    "reliability_diagram",
    "samples_per_class",
    "save",
    "worst_indices",
    "worst_mistakes",
]

Row = tuple[str, float, float | None, float | None]
"""Name of a method, its value, and the ends of the interval; None where there is none."""


@style.styled
def class_chart(counts: Mapping[str, Mapping[str, int]]) -> "Figure":
    """Images per class and split, as horizontal bars; one panel per split, classes in their order.

    `counts` is {split: {class: number of images}}, as in run.json; a class absent from a split counts 0.
    """
    classes = list(dict.fromkeys(name for split in counts.values() for name in split))
    crowded = len(counts) > 3
    names, rows = style.shorten(classes, 34), np.arange(len(classes))
    pitch = 0.28 if len(classes) <= 30 else 0.15
    fig = style.figure(style.WIDTH, 0.9 + pitch * max(len(classes), 3))
    panels = fig.subplots(1, max(len(counts), 1), sharey=True, squeeze=False)[0]
    for axes, (split, numbers) in zip(panels, counts.items(), strict=True):
        values = [numbers.get(name, 0) for name in classes]
        colour = style.SPLIT_COLOURS.get(split, style.PURPLE)
        bars = axes.barh(rows, values, color=colour, height=0.74)
        size = style.ticks_fit(1, pitch)
        axes.bar_label(bars, labels=[f"{value:,}" for value in values], padding=3, fontsize=size)
        title = f"{split}{chr(10) if crowded else ': '}{sum(values):,}"
        axes.set(title=title, xlabel="images per class", xlim=(0, max([*values, 1]) * (1.6 if crowded else 1.28)))
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=2 if crowded else 4)
        axes.tick_params(axis="y", length=0)
        axes.set_yticks(rows, names, fontsize=size)
        axes.set_ylim(len(classes) - 0.4, -0.6)
    panels[0].set_ylabel("class")
    return fig


@style.styled
def curves(rows: Sequence[Mapping[str, Any]], metric: str = "accuracy", best_epoch: int | None = None) -> "Figure":
    """Loss and a metric by epoch, for training and validation; the kept epoch is marked.

    `rows` are those of history.jsonl: {"epoch", "train": {"loss", ...}, "validation": {"loss", ...}}. A
    value that is missing or not finite is left out of its line. Beside the loss stands `metric`, or the
    accuracy where that is the loss itself.
    """
    fig = style.figure(style.WIDTH, 3.6)
    panels = fig.subplots(1, 2)
    metric = "accuracy" if metric == "loss" else metric
    share = all(0 <= value <= 1 for split in ("train", "validation") for value in series(rows, split, metric)[1])
    for axes, key, scale in ((panels[0], "loss", 1), (panels[1], metric, 100 if share else 1)):
        label = key.replace("_", " ")
        axes.set(title=label.capitalize(), ylabel=f"{label} (%)" if scale == 100 else label)
        epoch_panel(axes, rows, {key: ""}, label, scale, best_epoch)
    return fig


def epoch_panel(
    axes: "Axes",
    rows: Sequence[Mapping[str, Any]],
    keys: Mapping[str, str],
    what: str,
    scale: float = 1,
    best_epoch: int | None = None,
) -> None:
    """Quantities by epoch on one pair of axes, for training and validation; the kept epoch is marked.

    `keys` are {key of the history: its name in the legend}; an empty name for a single one. `what` names them in
    the sentence that stands where none was recorded.
    """
    drawn = [
        _curve(axes, rows, split, key, scale, best_epoch, name, place)
        for place, (key, name) in enumerate(keys.items())
        for split in ("train", "validation")
    ]
    axes.set_xlabel("epoch")
    locator: Any = axes.xaxis.get_major_locator()
    locator.set_params(integer=True)
    axes.grid(axis="y")
    if not any(drawn):
        style.empty(axes, f"no {what} was recorded")
        return
    if best_epoch is not None:
        dashed: dict[str, Any] = {"color": style.QUIET, "linewidth": 1, "linestyle": (0, (4, 3))}
        axes.axvline(best_epoch, zorder=0, **dashed)
        axes.plot([], [], label=f"kept: epoch {best_epoch}", **dashed)
    axes.legend()


def series(rows: Sequence[Mapping[str, Any]], split: str, key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of one quantity of the history, without those that are missing or not finite."""
    epochs, values = [], []
    for row in rows:
        value = (row.get(split) or {}).get(key)
        if value is not None and np.isfinite(value):
            epochs.append(row["epoch"])
            values.append(float(value))
    return epochs, values


def _curve(
    axes: "Axes",
    rows: Sequence[Mapping[str, Any]],
    split: str,
    key: str,
    scale: float,
    best: int | None,
    name: str,
    place: int,
) -> bool:
    """One line, its style by its place among the quantities of the panel; whether there was anything to draw."""
    epochs, values = series(rows, split, key)
    if not values:
        return False
    scaled = [value * scale for value in values]
    marker, line = (("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."))[place % 4]
    marker = marker if len(values) <= 40 else ""
    label = "training" if split == "train" else split
    label = f"{label}: {name}" if name else label
    axes.plot(epochs, scaled, line, marker=marker, markersize=3.5, color=style.SPLIT_COLOURS[split], label=label)
    if split == "validation" and best in epochs:
        value = scaled[epochs.index(best)]
        axes.plot([best], [value], marker="o", markersize=9, markerfacecolor="none", color=style.INK)
        text = f"{value:.1f} %" if scale == 100 else f"{value:.4g}" if abs(value) < 100 else f"{value:,.1f}"
        trained = dict(zip(*series(rows, "train", key), strict=True)).get(best, math.inf) * scale
        beside = (8, 8 if trained < value else -14)  # away from the line of training
        axes.annotate(text, (best, value), xytext=beside, textcoords="offset points", fontweight="bold")
    return True


@style.styled
def reliability_diagram(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 15) -> "Figure":
    """Accuracy by confidence with its 95 % Wilson intervals, the counts below, and the calibration error.

    `confidence` float [N] in [0, 1] of the predicted class, `correct` bool [N]. ECE as in Guo et al.,
    "On Calibration of Modern Neural Networks" (2017), over `bins` bins of equal width.
    """
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    index = np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), sure) - 1, 0, bins - 1)
    count, hits, mass = (np.bincount(index, weight, bins) for weight in (np.ones_like(sure), right, sure))
    used = count > 0
    share = np.divide(hits, count, out=np.zeros(bins), where=used)
    error = float(np.abs(hits - mass).sum() / max(len(sure), 1))
    fig = style.figure(6.4, 5.6)
    axes, below = fig.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    centres = (np.arange(bins) + 0.5) * 100 / bins
    axes.plot(
        [0, 100],
        [0, 100],
        color=style.QUIET,
        linewidth=1,
        linestyle=(0, (4, 3)),
        label="perfectly calibrated",
    )
    low, high = _wilson(hits[used], count[used])
    axes.bar(
        centres[used],
        100 * share[used],
        width=94 / bins,
        color=style.BLUE,
        alpha=0.85,
        label="accuracy in the bin",
    )
    whiskers = 100 * np.maximum([share[used] - low, high - share[used]], 0)
    axes.errorbar(centres[used], 100 * share[used], whiskers, fmt="none", ecolor=style.INK, elinewidth=1, capsize=2)
    ece = f"expected calibration error {100 * error:.1f} %" if len(sure) else "no predictions"
    axes.set_title(f"Reliability: {ece}", pad=26)
    axes.set(ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 102))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, borderaxespad=0.2)
    below.bar(centres, count, width=94 / bins, color=style.ORANGE)
    below.set(xlabel="confidence of the prediction (%)", ylabel="images")
    below.yaxis.get_major_locator().set_params(integer=True, nbins=3)
    return fig


def _wilson(hits: np.ndarray, count: np.ndarray, z: float = 1.959964) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of a share (Wilson 1927)."""
    share = hits / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return centre - half, centre + half


@style.styled
def accuracy_intervals(rows: Sequence[Row], quantity: str = "test accuracy", level: float = 0.95) -> "Figure":
    """The model (first row) against its baselines: (name, value, low, high) as shares in [0, 1].

    A row whose interval is unknown (None) is a point without whiskers.
    """
    percent = [(name, 100 * value, _percent(low), _percent(high)) for name, value, low, high in rows]
    label = f"{quantity} (%), line: {100 * level:g} % interval"
    return points_with_intervals(percent, label, (-2, 102), lambda value: f"{value:.1f} %")


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def points_with_intervals(
    rows: Sequence[Row], label: str, limits: tuple[float, float], text: Callable[[float], str]
) -> "Figure":
    """A point and its interval for each method, the model first: (name, value, low, high) in the unit of the axis.

    `limits` are the ends of the axis, `label` its name; `text` writes the value above its point. To be called
    under the shared style.
    """
    places = np.arange(len(rows))
    fig = style.figure(8.0, 1.1 + 0.46 * max(len(rows), 2))
    axes = fig.subplots()
    for place, (_, value, low, high) in zip(places, rows, strict=True):
        colour = style.BLUE if place == 0 else style.QUIET
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=colour, linewidth=3.5, solid_capstyle="butt")
        axes.plot([value], [place], marker="o", markersize=8, color=colour)
        axes.annotate(text(value), (value, place), xytext=(0, 8), textcoords="offset points", ha="center")
    axes.set_yticks(places, style.shorten([row[0] for row in rows], 44))
    axes.set(xlabel=label, ylabel="model", xlim=limits)
    axes.set_ylim(len(rows) - 0.4, -0.8)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    return fig


@style.styled
def save(figures: Mapping[str, tuple["Figure", str, str]], directory: Path) -> None:
    """Write {name: (figure, title, caption)} as NAME.png (150 dpi) and NAME.svg, and list them in figures.json.

    Each file is replaced as a whole, and the same figures give the same bytes. Figures that an earlier
    call left in the folder stay listed. Raises `ValueError` for a name that is no plain file name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    index = directory / "figures.json"
    listed = {entry["name"]: entry for entry in read_json(index)} if index.is_file() else {}
    plain = {"Creator": None, "Date": None, "Format": None, "Type": None}
    for name, (drawn, title, caption) in figures.items():
        if not re.fullmatch(r"[a-z0-9_-]+", name):
            raise ValueError(f"figure name {name!r}: use lower-case letters, digits, _ and -")
        with warnings.catch_warnings():
            # A class name in a script that no installed font holds: the report's tables show it.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            with replacing(directory / f"{name}.png") as path:
                drawn.savefig(path, format="png", dpi=150, metadata={"Software": None})
            # The layout of the first drawing holds for the second; solving it again doubles the time.
            drawn.set_layout_engine("none")
            with replacing(directory / f"{name}.svg") as path:
                drawn.savefig(path, format="svg", metadata=plain)
        listed[name] = {"name": name, "title": title, "caption": caption, "kind": _kind(drawn)}
    write_json(index, list(listed.values()))


def _kind(drawn: "Figure") -> str:
    """'images' when it shows photographs, which are smaller and sharper as PNG, else 'chart'."""
    shown = [image.get_array() for axes in drawn.axes for image in axes.get_images()]
    colour = any(pixels is not None and np.ndim(pixels) == 3 for pixels in shown)
    return "images" if colour else "chart"
