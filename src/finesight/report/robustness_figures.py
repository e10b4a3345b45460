"""The figures of a stress test: accuracy by budget and by steps, corruptions, and what an attack does to an image."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finesight.report import style
from finesight.report.grids import bare
from finesight.tasks.base import Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from finesight.attacks.protocol import Measured

EXAMPLES = 6
MARKS = {
    "noise": ("P", style.QUIET, 0.015),
    "transfer": ("s", style.PURPLE, 0.045),
    "auto": ("D", style.INK, 0.03),
}
"""Symbol, colour, and how far beside its budget, so that one does not cover another."""

CALLED = {"noise": "random noise", "transfer": "transferred attack", "auto": "ensemble of attacks"}
Entry = Mapping[str, Any]


def drawn(about: Mapping[str, Any], images: "Tensor", found: "Measured", labels: NDArray[np.int64]) -> Figures:
    """{name: (figure, title, caption)}. about: the content of attack.json; images: uint8 [N, 3, H, W]; labels [N]."""
    conditions, norm = about["conditions"], about["options"]["norm"]
    whiskers = "Whiskers are bootstrap intervals."
    charts: Figures = {
        "attack_budget": (
            budget_curve(conditions, norm, len(about["classes"])),
            "Accuracy by budget",
            f"Accuracy on {about['images']:,} test images by budget: the largest change of a pixel (linf), or the "
            "length of the whole change (l2). PGD by the worst-of rule: what a smaller budget broke stays broken. The "
            f"ensemble may have seen fewer images. {whiskers}",
        )
    }
    steps = [c for c in conditions.values() if c["kind"] == "steps"]
    if steps:
        charts["attack_steps"] = (
            steps_curve(steps, about["options"]["iters"]),
            "Accuracy by number of steps",
            "PGD with each number of steps by itself, at the budget that comes nearest to halving the accuracy. A "
            f"curve that has not become level says that more steps are needed. {whiskers}",
        )
    if about["corruption"]:
        charts["attack_corruptions"] = (
            corruption_map(conditions, about["corruption"]),
            "Accuracy under corruptions",
            "Percent of the images still right; the strengths are those of CIFAR-10-C below 96 pixels and of "
            "ImageNet-C from there on.",
        )
    chosen = example_rows(found, labels)
    if len(chosen):
        pairs = [tuple(part[row].permute(1, 2, 0).numpy() for part in (images, found.adversarial)) for row in chosen]
        says = [found.conditions[name].predictions[chosen] for name in ("clean", "stored")]
        named = [[about["classes"][label] for label in part] for part in (labels[chosen], *says)]
        charts["attack_examples"] = (
            examples(pairs, *named),
            "What the attack does",
            f"Test images that the model gets right, the change, and the stored image ({about_budget(about)}).",
        )
    return charts


def about_budget(about: Mapping[str, Any]) -> str:
    from finesight.attacks.config import written

    largest = max(c["eps"] for c in about["conditions"].values() if c["kind"] == "pgd")
    return f"PGD, eps {written(largest, about['options']['norm'])}, {about['options']['norm']}, 8 bits"


@style.styled
def budget_curve(conditions: Mapping[str, Entry], norm: str, classes: int) -> "Figure":
    """Accuracy under PGD and FGSM by budget, other attacks as marks, chance as a line.

    conditions: those of attack.json, {name: {"kind", "eps", "accuracy": {value, low, high, n}, ...}}.
    """
    scale = 255 if norm == "linf" else 1
    fig = style.figure(8.4, 4.2)
    axes = fig.subplots()
    clean = next(c for c in conditions.values() if c["kind"] == "clean")
    for kind, name, look in (
        ("fgsm", "FGSM, one step", {"color": style.SKY, "linestyle": "--", "marker": "v"}),
        ("pgd", "PGD", {"color": style.BLUE, "linestyle": "-", "marker": "o"}),
    ):
        curve = sorted((c for c in conditions.values() if c["kind"] == kind), key=lambda c: c["eps"])
        _whiskered(axes, [0, *(scale * c["eps"] for c in curve)], [clean, *curve], name, **look)
    widest = scale * max(c["eps"] for c in conditions.values() if c["kind"] == "pgd")
    for kind, (marker, colour, aside) in MARKS.items():
        marked = [c for c in conditions.values() if c["kind"] == kind and c.get("last", True)]
        if marked:
            name = CALLED[kind] + (f" (n = {marked[0]['accuracy']['n']:,})" if kind == "auto" else "")
            _whiskered(
                axes, [scale * c["eps"] + aside * widest for c in marked], marked, name,
                color=colour, marker=marker, linestyle="none",
            )  # fmt: skip
    axes.axhline(100 / classes, color=style.VERMILION, linewidth=1, linestyle=(0, (4, 3)), label="chance")
    unit = "1/255 of a pixel's range" if norm == "linf" else "length, in a pixel's range"
    axes.set(xlabel=f"budget eps ({unit})", ylabel="accuracy (%)", ylim=(-2, 102))
    axes.set_xlim(left=0 - 0.01 * axes.get_xlim()[1])
    axes.grid(axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


@style.styled
def steps_curve(steps: Sequence[Entry], used: int) -> "Figure":
    """Accuracy by the number of PGD's steps, on a logarithmic axis; `used` is the number used elsewhere."""
    fig = style.figure(6.4, 3.4)
    axes = fig.subplots()
    curve = sorted(steps, key=lambda c: c["iters"])
    places = [c["iters"] for c in curve]
    _whiskered(axes, places, curve, None, color=style.BLUE, marker="o", linestyle="-")
    axes.axvline(used, color=style.QUIET, linewidth=1, linestyle=(0, (4, 3)), label=f"used: {used} steps")
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    top = max((c["accuracy"]["high"] or c["accuracy"]["value"]) for c in curve)
    axes.set(xlabel="steps", ylabel="accuracy (%)", ylim=(-2, min(102, 100 * top * 1.25 + 4)))
    axes.grid(axis="y")
    axes.legend()
    return fig


def _whiskered(axes: "Axes", places: Sequence[float], curve: Sequence[Entry], name: str | None, **look: Any) -> None:
    values = [100 * c["accuracy"]["value"] for c in curve]
    axes.plot(places, values, label=name, markersize=5, **look)
    for place, value, condition in zip(places, values, curve, strict=True):
        low, high = condition["accuracy"]["low"], condition["accuracy"]["high"]
        if low is not None and high is not None:
            ends = [[max(value - 100 * low, 0)], [max(100 * high - value, 0)]]
            axes.errorbar([place], [value], ends, fmt="none", ecolor=look["color"], elinewidth=1, capsize=2.5)


@style.styled
def corruption_map(conditions: Mapping[str, Entry], means: Mapping[str, Any]) -> "Figure":
    """Accuracy in percent by kind and severity, with the mean of each kind; darker is more accurate."""
    kinds = list(means["by_kind"])
    levels = sorted({c["severity"] for c in conditions.values() if c["kind"] == "corruption"})
    table = np.full((len(kinds), len(levels) + 1), np.nan)
    for condition in conditions.values():
        if condition["kind"] == "corruption":
            place = kinds.index(condition["corruption"]), levels.index(condition["severity"])
            table[place] = 100 * condition["accuracy"]["value"]
    table[:, -1] = [100 * means["by_kind"][kind]["value"] for kind in kinds]
    fig = style.figure(7.4, 1.1 + 0.36 * len(kinds))
    axes = fig.subplots()
    axes.imshow(table, cmap="Blues", vmin=0, vmax=100, aspect="auto", interpolation="none")
    for (row, column), value in np.ndenumerate(table):
        colour = "white" if value > 60 else style.INK
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=9, color=colour)
    axes.axvline(len(levels) - 0.5, color="white", linewidth=3)
    axes.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axes.set_xticks(range(len(levels) + 1), [*map(str, levels), "mean"])
    axes.set(xlabel="severity", ylabel="corruption")
    clean = next(c for c in conditions.values() if c["kind"] == "clean")["accuracy"]["value"]
    axes.set_title(f"Accuracy (%); without corruption {100 * clean:.1f}, mean {100 * means['accuracy']['value']:.1f}")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return fig


def example_rows(found: "Measured", labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Images that are right without the attack and wrong as stored, of different classes where possible, int64."""
    clean, attacked = found.conditions["clean"].predictions, found.conditions["stored"].predictions
    fooled = np.flatnonzero((clean == labels) & (attacked != labels))
    rounds = np.zeros(len(fooled), dtype=np.int64)
    for label in np.unique(labels[fooled]):
        same = np.flatnonzero(labels[fooled] == label)
        rounds[same] = np.arange(len(same))
    return fooled[np.argsort(rounds, kind="stable")][:EXAMPLES]


@style.styled
def examples(
    pairs: Sequence[tuple[NDArray[np.uint8], ...]],
    references: Sequence[str],
    before: Sequence[str],
    after: Sequence[str],
) -> "Figure":
    """Original, change and adversarial image in columns: uint8 [H, W, 3] each, with what the model said of both.

    The change is drawn around grey, as many times larger as still fits for all examples; the figure says how many.
    """
    changes = [changed.astype(np.int64) - original for original, changed in pairs]
    most = max(int(np.abs(change).max()) for change in changes)
    times = max(1, 127 // max(most, 1))
    columns = len(pairs)
    cell = min(1.9, (style.WIDTH - 0.9) / columns)
    fig = style.figure(0.9 + cell * columns, 3 * cell + 1.1)
    panels = fig.subplots(3, columns, squeeze=False)
    names = [style.shorten(list(part), 16) for part in (references, before, after)]
    for column, ((original, changed), change) in enumerate(zip(pairs, changes, strict=True)):
        shown = np.clip(128 + times * change, 0, 255).astype(np.uint8)
        for axes, image in zip(panels[:, column], (original, shown, changed), strict=True):
            axes.imshow(image)
            bare(axes)
        panels[0, column].set_title(f"is {names[0][column]}", fontsize=8.5, loc="center")
        panels[0, column].set_xlabel(f"said {names[1][column]}", fontsize=8.5)
        panels[2, column].set_xlabel(f"said {names[2][column]}", fontsize=8.5, color=style.VERMILION)
    for row, label in enumerate(("original", f"change × {times}", "adversarial")):
        panels[row, 0].set_ylabel(label, fontsize=9.5)
    return fig
