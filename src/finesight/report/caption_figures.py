"""Figures of captions: images beside what was and what should be said of them, lengths, and where words looked."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finesight.report import style
from finesight.report.grids import bare

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE, LINES = 122, 4
"""Letters of a line of text beside an image, and lines of each text; what is longer is cut."""
MOST_WORDS = 23


class Card(NamedTuple):
    """An image uint8 [H, W, 3], its reference, the caption that was written, and a note such as its score."""

    image: NDArray[np.uint8]
    reference: str
    caption: str
    note: str


@style.styled
def cards(rows: Sequence[Card]) -> "Figure":
    """A row for each image: the reference and the written caption at its right, the note in front."""
    texts = [[_lines(f"Reference: {row.reference}"), _lines(f"Written: {row.caption or '(nothing)'}")] for row in rows]
    heights = [max(1.15, 0.3 + 0.17 * sum(map(len, pair))) for pair in texts] or [1.0]
    fig = style.figure(style.WIDTH, 0.1 + sum(heights))
    if not rows:
        axes = fig.subplots()
        bare(axes)
        style.empty(axes, "no image")
        return fig
    panels = fig.subplots(len(rows), 2, width_ratios=[1, 6.4], height_ratios=heights, squeeze=False)
    for (left, right), row, (true, own), height in zip(panels, rows, texts, heights, strict=True):
        left.imshow(row.image)
        bare(left)
        bare(right)
        step = 0.16 / height
        place = _write(right, 0.98, step, [row.note], style.QUIET, "bold")
        place = _write(right, place, step, true, style.INK, "normal")
        _write(right, place, step, own, style.BLUE, "normal")
    return fig


def _write(axes: "Axes", place: float, step: float, lines: Sequence[str], colour: str, weight: str) -> float:
    for line in lines:
        axes.text(
            0.0, place, line.replace("$", r"\$"), va="top", fontsize=8.5, color=colour, fontweight=weight,
            transform=axes.transAxes,
        )  # fmt: skip
        place -= step
    return place


def _lines(text: str) -> list[str]:
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return textwrap.wrap(plain, LINE, max_lines=LINES, placeholder=" …") or [""]


@style.styled
def lengths(references: Sequence[int], captions: Sequence[int]) -> "Figure":
    """Words of each reference and of each written caption as histograms with shared bins, medians marked."""
    fig = style.figure(8.0, 3.4)
    axes = fig.subplots()
    longest = max([*references, *captions, 1])
    edges = np.linspace(0, longest + 1, min(longest + 1, 24) + 1)
    sets = (("references", references, style.QUIET), ("written captions", captions, style.BLUE))
    for name, values, colour in sets:
        counts = np.histogram(values, edges)[0]
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.35)
        middle = float(np.median(values)) if len(values) else 0.0
        axes.stairs(counts, edges, color=colour, linewidth=1.6, label=f"{name}, median {middle:g} words")
        axes.axvline(middle, color=colour, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlabel="words", ylabel="captions", ylim=(0, None), xlim=(0, longest + 1))
    locator: Any = axes.yaxis.get_major_locator()
    locator.set_params(integer=True)
    axes.grid(axis="y")
    axes.legend()
    return fig


@style.styled
def attention(image: NDArray[np.uint8], words: Sequence[tuple[str, NDArray[np.float64]]]) -> "Figure":
    """The image (uint8 [S, S, 3]), then for each word its attention [P, P] over the image's patches, laid on it.

    One colour scale for all words, from the least to the most that any patch got; at most 23 words.
    """
    shown = list(words)[:MOST_WORDS]
    columns = 6
    rows = -(-(len(shown) + 1) // columns)
    fig = style.figure(style.WIDTH, 0.2 + 1.75 * rows)
    panels = fig.subplots(rows, columns, squeeze=False).ravel()
    grey = image.mean(2) / 255
    low = min((float(of_word.min()) for _, of_word in shown), default=0.0)
    top = max((float(of_word.max()) for _, of_word in shown), default=1.0)
    panels[0].imshow(image)
    panels[0].set_title("image", fontsize=9, fontweight="normal", loc="center")
    names = style.shorten([word for word, _ in shown], 16) if shown else []
    height, width = image.shape[:2]
    drawn = None
    for axes, name, (_, of_word) in zip(panels[1:], names, shown, strict=False):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1)
        drawn = axes.imshow(
            of_word, cmap="inferno", vmin=low, vmax=top, alpha=0.6, interpolation="bilinear",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )  # fmt: skip
        axes.set_title(name, fontsize=9, fontweight="normal", loc="center")
    for axes in panels:
        bare(axes)
    for axes in panels[len(shown) + 1 :]:
        axes.remove()
    if drawn is not None:
        bar = fig.colorbar(drawn, ax=list(panels[: len(shown) + 1]), fraction=0.02, pad=0.01)
        bar.set_label("attention of one patch")
        bar.outline.set_visible(False)
    return fig
