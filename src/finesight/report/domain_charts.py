"""What the figures of a domain adaptation run are drawn with: arrays in, figures out."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finesight.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORES = {
    "accuracy": ("source validation accuracy", style.BLUE, "-"),
    "generated_accuracy": ("accuracy on repainted validation images", style.GREEN, "-"),
    "target_information": ("target information", style.PURPLE, "-"),
    "adaptation_score": ("adaptation score", style.INK, "-"),
    "oracle_accuracy": ("oracle: target test accuracy, never used", style.VERMILION, "--"),
}


@style.styled
def image_rows(rows: Mapping[str, Sequence[NDArray[np.uint8]]], columns: Sequence[str], across: str) -> "Figure":
    """Labelled rows of images uint8 [H, W, 3], one column each; an empty name leaves a column without its label."""
    widest = max([len(images) for images in rows.values()] + [1])
    cell = min(0.95, (style.WIDTH - 1.9) / widest)
    fig = style.figure(1.9 + cell * widest, 0.6 + cell * len(rows))
    axes = fig.subplots()
    for top, images in enumerate(rows.values()):
        for left, image in enumerate(images):
            axes.imshow(image, extent=(left + 0.04, left + 0.96, top + 0.96, top + 0.04), interpolation="nearest")
    axes.set(xlim=(0, widest), ylim=(len(rows), 0), aspect="equal", anchor="W")
    axes.set_yticks(np.arange(len(rows)) + 0.5, style.shorten(list(rows), 26), fontsize=8.5)
    axes.set_xticks(np.arange(len(columns)) + 0.5, style.shorten(list(columns), 12), fontsize=8)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(across)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return fig


@style.styled
def scores(rows: Sequence[Mapping[str, Any]], kept: int | None, chosen_by: str) -> "Figure":
    """What is measured after each epoch, in percent; the kept epoch and the oracle's are marked."""
    fig = style.figure(style.WIDTH, 3.9)
    axes = fig.subplots()
    for name, (label, colour, line) in SCORES.items():
        points = [(row["epoch"], 100 * row["validation"][name]) for row in rows if name in row["validation"]]
        if points:
            axes.plot(*zip(*points, strict=True), line, marker="o", markersize=3.5, color=colour, label=label)
    if kept is not None:
        axes.axvline(kept, color=style.QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.plot([], [], color=style.QUIET, linewidth=1, linestyle=(0, (4, 3)), label=f"kept: epoch {kept}")
    best = oracle_epoch(rows)
    if best is not None:
        value = 100 * best[1]
        axes.plot([best[0]], [value], marker="D", markersize=9, markerfacecolor="none", color=style.VERMILION,
                  linestyle="", label=f"the oracle's choice: epoch {best[0]}, {value:.1f} %")  # fmt: skip
    axes.set(xlabel="epoch", ylabel="score (%)", title=f"Chosen by {chosen_by.replace('_', ' ')}")
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def oracle_epoch(rows: Sequence[Mapping[str, Any]]) -> tuple[int, float] | None:
    """The epoch that target test labels would have chosen, and its accuracy on them; the first of equals."""
    known = [(row["epoch"], row["validation"].get("oracle_accuracy")) for row in rows]
    known = [(epoch, value) for epoch, value in known if value is not None]
    return max(known, key=lambda pair: pair[1], default=None)


@style.styled
def losses(rows: Sequence[Mapping[str, Any]], panels: Mapping[str, Mapping[str, str]]) -> "Figure":
    """Means over each epoch of training: {panel title: {key of history's train: label}}; shares as percent."""
    fig = style.figure(style.WIDTH, 3.4)
    colours = (style.BLUE, style.VERMILION, style.GREEN, style.PURPLE)
    for axes, (title, keys) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        scale = 100 if "%" in title else 1
        for colour, (key, label) in zip(colours, keys.items(), strict=False):
            points = [(row["epoch"], scale * row["train"][key]) for row in rows if key in row["train"]]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, color=colour, label=label)
        axes.set(xlabel="epoch", ylabel=title)
        axes.locator_params(axis="x", integer=True)
        axes.grid(axis="y")
        axes.legend(fontsize=8.5)
    return fig


@style.styled
def scatter(
    spaces: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    labels: NDArray[np.int64],
    of_target: NDArray[np.bool_],
    classes: Sequence[str],
) -> "Figure":
    """Points of both domains in the plane: {title: (points [N, 2], share of variance of each axis [2])}.

    Colours are the classes (grey where the label is -1), crosses the target, discs the source.
    """
    import matplotlib

    fig = style.figure(style.WIDTH, 5.0)
    colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "turbo"](np.linspace(0, 1, max(len(classes), 2)))
    if len(classes) <= 10:
        colours = matplotlib.colormaps["tab10"](np.arange(len(classes)))
    grey = np.array(matplotlib.colors.to_rgba(style.QUIET))
    of_point = np.where(labels[:, None] >= 0, colours[np.clip(labels, 0, None)], grey)
    panels = fig.subplots(1, len(spaces), squeeze=False)[0]
    for axes, (title, (points, share)) in zip(panels, spaces.items(), strict=True):
        for rows, marker, size in ((~of_target, "o", 9), (of_target, "x", 13)):
            axes.scatter(*points[rows].T, c=of_point[rows], marker=marker, s=size, linewidths=0.8, alpha=0.65)
        axes.set(title=title, xticks=[], yticks=[])
        axes.set_xlabel(f"1st component, {100 * share[0]:.0f} % of the variance")
        axes.set_ylabel(f"2nd component, {100 * share[1]:.0f} %")
    _legend(panels[-1], classes, colours)
    return fig


def _legend(axes: "Axes", classes: Sequence[str], colours: NDArray[np.float64]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="", color=style.INK, label="source", markersize=5),
        Line2D([], [], marker="x", linestyle="", color=style.INK, label="target", markersize=5),
    ]
    if len(classes) <= 20:
        names = style.shorten(list(classes), 18)
        handles += [
            Line2D([], [], marker="s", linestyle="", color=colour, label=name)
            for name, colour in zip(names, colours, strict=False)
        ]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5)
