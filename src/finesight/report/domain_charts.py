"""Charts of two domains: losses and validators by epoch, and where the images lie before and after."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finesight.report import style
from finesight.report.domain_measures import evenly
from finesight.report.figures import series
from finesight.report.oracle import Oracle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
DASHED = (0, (4, 3))
DOTTED = (0, (1, 2))


@style.styled
def adversarial_losses(rows: Rows, kept: int | None = None, minimax: bool = False) -> "Figure":
    """PixelDA's losses, each a mean over the epoch's training batches, and how well the discriminator sees through.

    `rows` are those of history.jsonl. The dashed levels are those of a discriminator that tells nothing apart.
    """
    fig = style.figure(style.WIDTH, 6.6)
    (adversarial, told), (first, second) = fig.subplots(2, 2)
    level = -math.log(2) if minimax else math.log(2)
    _lines(
        adversarial,
        rows,
        {
            "discrimination": ("discriminator", style.BLUE, "o"),
            "fooling": ("generator (fooling)", style.VERMILION, "s"),
            "content": ("content similarity", style.GREEN, "^"),
        },
    )
    for value, colour in ((2 * math.log(2), style.BLUE), (level, style.VERMILION)):
        adversarial.axhline(value, color=colour, linewidth=1, linestyle=DASHED, zorder=0)
    adversarial.plot([], [], color=style.QUIET, linewidth=1, linestyle=DASHED, label="if nothing is told apart")
    adversarial.set(title="Adversarial losses, without their weights", ylabel="loss (nats)")
    _lines(
        told,
        rows,
        {
            "told_apart": ("real and generated told apart", style.BLUE, "o"),
            "accuracy": ("classes of source images", style.ORANGE, "s"),
            "generated_accuracy": ("classes of generated images", style.VERMILION, "^"),
        },
        100,
    )
    told.axhline(50, color=style.BLUE, linewidth=1, linestyle=DASHED, zorder=0)
    told.set(title="Right answers in training", ylabel="training batches (%)")
    _lines(first, rows, {"discriminator_loss": ("discriminator and classifier", style.BLUE, "o")})
    first.set(title="Step of discriminator and classifier", ylabel="weighted loss")
    _lines(second, rows, {"generator_loss": ("generator", style.VERMILION, "s")})
    second.set(title="Step of the generator", ylabel="weighted loss")
    for axes in (adversarial, told, first, second):
        _finish(axes, kept, rows, keyed=axes in (adversarial, told))
    return fig


@style.styled
def reversal_losses(rows: Rows, kept: int | None = None) -> "Figure":
    """DANN: the training loss, and how many features the domain classifier assigns to their domain."""
    fig = style.figure(style.WIDTH, 3.8)
    left, right = fig.subplots(1, 2)
    _lines(left, rows, {"loss": ("classes and domains, training", style.BLUE, "o")})
    _lines(left, rows, {"loss": ("classes, source validation", style.ORANGE, "s")}, split="validation")
    left.set(title="Loss", ylabel="loss (nats)")
    named = {
        "domain_accuracy": ("domains told apart", style.BLUE, "o"),
        "accuracy": ("classes of source images", style.ORANGE, "s"),
    }
    _lines(right, rows, named, 100)
    right.axhline(50, color=style.BLUE, linewidth=1, linestyle=DASHED, zorder=0)
    right.set(title="Right answers in training", ylabel="training batches (%)")
    for axes in (left, right):
        _finish(axes, kept, rows)
    return fig


@style.styled
def adaptation(
    rows: Rows, select: str, oracle: Oracle | None = None, kept: int | None = None, validation: str = "source"
) -> "Figure":
    """What could be known of the target without labels by epoch, and, dashed, what they would have said.

    Marked are the epoch that `select` kept, and the one that the oracle would have picked.
    """
    fig = style.figure(style.WIDTH, 4.6)
    axes = fig.subplots()
    named = {
        "accuracy": (f"accuracy, {validation} validation", style.ORANGE, "s"),
        "generated_accuracy": ("accuracy, repainted validation", style.PURPLE, "^"),
        "target_information": ("target information (of ln C)", style.BLUE, "v"),
        "adaptation_score": ("adaptation score", style.INK, "o"),
    }
    _lines(axes, rows, named, 100, "validation")
    _lines(
        axes,
        rows,
        {"oracle_accuracy": ("oracle: never used", style.VERMILION, "")},
        100,
        "validation",
        linestyle=DASHED,
    )
    if kept is not None:
        label = f"kept: epoch {kept}" + (f", oracle {100 * oracle.kept_accuracy:.1f} %" if oracle else "")
        axes.axvline(kept, color=style.QUIET, linewidth=1.2, linestyle=DASHED, zorder=0, label=label)
        epochs, values = series(rows, "validation", select)
        if select in named and kept in epochs:
            height = 100 * values[epochs.index(kept)]
            axes.plot([kept], [height], "o", markersize=11, markerfacecolor="none", color=style.INK)
    if oracle is not None:
        axes.plot(
            [oracle.best],
            [100 * oracle.best_accuracy],
            marker="*",
            markersize=15,
            linewidth=0,
            color=style.VERMILION,
            label=f"oracle's pick: epoch {oracle.best}, {100 * oracle.best_accuracy:.1f} %",
        )
        axes.axvline(oracle.best, color=style.VERMILION, linewidth=1.2, linestyle=DOTTED, zorder=0)
    axes.set(xlabel="epoch", ylabel="accuracy, information, score (%)", title=f"Kept by {select.replace('_', ' ')}")
    _whole_epochs(axes, rows)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        style.empty(axes, "no validation was recorded")
    return fig


@style.styled
def feature_maps(
    maps: Sequence[tuple[str, NDArray[np.float64], NDArray[np.float64]]],
    classes: Sequence[str],
    source_labels: NDArray[np.int64],
    target_labels: NDArray[np.int64],
) -> "Figure":
    """Panels (title, points [N + M, 2], shares of the variance [2]) side by side; first N of the source, then M.

    Colours are classes (-1: no label), markers are domains. Of more than ten classes, nine have a colour.
    """
    fig = style.figure(style.WIDTH, 5.9)
    panels = fig.subplots(1, len(maps), squeeze=False)[0]
    shown = evenly(range(len(classes)), 10 if len(classes) <= 10 else 9)
    colours = {label: style.CLASS_COLOURS[place] for place, label in enumerate(shown)}
    domains = (("source", source_labels, "o"), ("target", target_labels, "x"))
    for number, (axes, (title, points, shares)) in enumerate(zip(panels, maps, strict=True)):
        parts = (points[: len(source_labels)], points[len(source_labels) :])
        for (_, labels, marker), part in zip(domains, parts, strict=True):
            dyed = [colours.get(int(label), "#9aa5b1") for label in labels]
            look = {"linewidths": 0.9} if marker == "x" else {"linewidths": 0}
            axes.scatter(part[:, 0], part[:, 1], s=15, c=dyed, marker=marker, alpha=0.62, **look)
        if number:  # The pixels do not separate the classes, so their names would lie on one another.
            _name_classes(axes, parts[0], source_labels, shown, classes)
        percent = [f"{100 * share:.1f} % of the variance" for share in shares]
        axes.set(title=title, xlabel=f"component 1 ({percent[0]})", ylabel=f"component 2 ({percent[1]})")
        axes.tick_params(labelsize=8)
    first = panels[0]
    keys = [
        first.scatter([], [], s=30, c=style.INK, marker=marker, linewidths=1, label=f"{name} ({len(labels):,})")
        for name, labels, marker in domains
    ]
    names = dict(zip(range(len(classes)), style.shorten(list(classes), 22), strict=True))
    keys += [first.scatter([], [], s=34, c=colour, marker="s", label=names[label]) for label, colour in colours.items()]
    others = []
    if len(shown) < len(classes):
        others.append("other classes")
    if (target_labels < 0).any():
        others.append("no label")
    if others:
        keys.append(first.scatter([], [], s=34, c="#9aa5b1", marker="s", label=", ".join(others)))
    widest = max(len(str(key.get_label())) for key in keys)
    columns = max(1, min(len(keys), int(style.WIDTH / (0.45 + 0.085 * widest))))
    fig.legend(handles=keys, loc="outside lower center", ncols=columns, columnspacing=1.1, handletextpad=0.2)
    return fig


def _name_classes(
    axes: "Axes",
    points: NDArray[np.float64],
    labels: NDArray[np.int64],
    shown: Sequence[int],
    classes: Sequence[str],
) -> None:
    """The names of the classes at the median of their source images."""
    from matplotlib import patheffects

    outline = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    names = style.shorten([classes[label] for label in shown], 12)
    for label, name in zip(shown, names, strict=True):
        part = points[labels == label]
        if len(part):
            x, y = np.median(part, axis=0)
            axes.text(x, y, name, fontweight="bold", ha="center", va="center", path_effects=outline)


def _lines(
    axes: "Axes",
    rows: Rows,
    named: Mapping[str, tuple[str, str, str]],
    scale: float = 1,
    split: str = "train",
    linestyle: Any = "-",
) -> None:
    """One line for each quantity {key: (label, colour, marker)} that the history holds."""
    for key, (label, colour, marker) in named.items():
        epochs, values = series(rows, split, key)
        if values:
            marked = marker if len(values) <= 40 else ""
            # A single epoch has no line, so a line without markers would not be seen.
            marked = marked or ("D" if len(values) == 1 else "")
            scaled = [scale * value for value in values]
            axes.plot(epochs, scaled, color=colour, marker=marked, markersize=4, linestyle=linestyle, label=label)


def _finish(axes: "Axes", kept: int | None, rows: Rows, keyed: bool = True) -> None:
    axes.set_xlabel("epoch")
    _whole_epochs(axes, rows)
    if not any(len(line.get_xdata()) and line.get_linestyle() == "-" for line in axes.lines):  # type: ignore[arg-type]
        style.empty(axes, "nothing was recorded")
        return
    if kept is not None:
        axes.axvline(kept, color=style.QUIET, linewidth=1, linestyle=DOTTED, zorder=0, label=f"kept: epoch {kept}")
    if keyed:
        axes.set_title(axes.get_title(loc="left"), pad=38)
        axes.legend(fontsize=8.5, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2)


def _whole_epochs(axes: "Axes", rows: Rows) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.grid(axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(rows) == 1:
        axes.set_xlim(rows[0]["epoch"] - 1, rows[0]["epoch"] + 1)
