"""The pages of `finesight data check --output`: samples, class chart, duplicates, and all findings in HTML."""

import base64
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from PIL import Image

from finesight.data import check_text, images
from finesight.files import replacing, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from finesight.data.check_report import Alike, CheckReport

EACH = 6
"""Samples shown per class."""
MOST_PAIRS = 24
MOST_ROWS = 500
"""Rows of one table of the page; check.json holds all."""
_PIXELS = 160


def write(report: "CheckReport", folder: Path) -> None:
    """Write check.html (self-contained, escaped), check.json, and the figures as PNG into `folder`.

    Raises `OSError` where that cannot be written.
    """
    from finesight.report import figures, html

    folder.mkdir(parents=True, exist_ok=True)
    pictures = _Pictures(report)
    drawn: dict[str, tuple[str, Figure]] = {
        "contact_sheet": ("Samples per class", _samples(report, pictures)),
        "class_chart": ("Images per class", figures.class_chart(report.splits)),
    }
    pairs = _shown_pairs(report)
    if pairs:
        drawn["duplicates"] = (_pairs_title(report, len(pairs)), pair_sheet(pairs, pictures))
    sources = []
    for name, (title, figure) in drawn.items():
        path = folder / f"{name}.png"
        with replacing(path) as temporary, warnings.catch_warnings():
            # A class name in a script that no installed font holds: the tables show it.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
        encoded = base64.b64encode(path.read_bytes()).decode("ascii")
        width, height = (round(side * 96) for side in figure.get_size_inches())
        sources.append({"title": title, "source": f"data:image/png;base64,{encoded}", "width": width, "height": height})
    if not pairs:
        (folder / "duplicates.png").unlink(missing_ok=True)
    write_text(folder / "check.html", html.render("check.html.j2", _page(report, sources)))
    write_json(folder / "check.json", report.to_json())


class _Pictures:
    """Decodes the few images that are shown, each once, at most 160 pixels wide or high."""

    def __init__(self, report: "CheckReport") -> None:
        self._entries = report.dataset.select_columns(["id", "image"]).cast_column(
            "image", datasets.Image(decode=False)
        )
        self._made: dict[int, np.ndarray] = {}

    def __getitem__(self, row: int) -> np.ndarray:
        if row not in self._made:
            entry = self._entries[row]
            pixels = images.decode(images.read(entry["image"]), entry["id"], "full")
            image = Image.fromarray(pixels)
            image.thumbnail((_PIXELS, _PIXELS))
            self._made[row] = np.asarray(image)
        return self._made[row]


def _samples(report: "CheckReport", pictures: _Pictures) -> "Figure":
    from finesight.report import grids

    labels = np.array(report.dataset["label"])
    shown: dict[str, list[np.ndarray]] = {}
    for number, name in enumerate(report.classes):
        rows = np.flatnonzero((labels == number) & report.readable)
        places = np.linspace(0, len(rows) - 1, min(EACH, len(rows))).astype(int)
        shown[name] = [pictures[int(row)] for row in rows[places]]
    figure = grids.samples_per_class(shown)
    for axes in figure.axes:
        axes.set_xlabel("samples")
    return figure


def _shown_pairs(report: "CheckReport") -> list["Alike"]:
    """Leaks first, then different classes, then the others; in each the least similar first, to be judged."""
    found = report.exact + report.near
    found.sort(key=lambda alike: (not alike.across, not alike.conflicting, alike.similarity))
    return found[:MOST_PAIRS]


def _pairs_title(report: "CheckReport", shown: int) -> str:
    total = len(report.exact) + len(report.near)
    return f"Duplicates: {shown} of {total:,}, leaks first" if shown < total else "Duplicates"


def pair_sheet(pairs: list["Alike"], pictures: Any) -> "Figure":
    """The first two images of each set side by side, with split, class and similarity.

    `pictures[row]` is the image of a row, uint8 [H, W, 3].
    """
    from finesight.report import style

    columns = min(4, len(pairs))
    rows = -(-len(pairs) // columns)
    classes = list(dict.fromkeys(name for pair in pairs for name in pair.classes))
    short = dict(zip(classes, style.shorten(classes, 22), strict=True))
    with style.look():
        figure = style.figure(max(2.5 * columns, 3.2), 1.75 * rows + 0.1)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, pair in zip(panels, pairs, strict=False):
            for place, row in enumerate(two_of(pair)):
                tall, wide = pictures[row].shape[:2]
                scale = 0.97 / max(tall, wide)
                x, y = place + 0.5, 0.5
                half_x, half_y = wide * scale / 2, tall * scale / 2
                axes.imshow(pictures[row], extent=(x - half_x, x + half_x, y + half_y, y - half_y))
            axes.set(xlim=(0, 2), ylim=(1, 0), aspect="equal", xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            title = pair.how + (f" ({pair.similarity:.2f})" if pair.similarity < 1 else "")
            if pair.across:
                title = f"{' | '.join(dict.fromkeys(pair.splits))}\n{title}"
            colour = style.VERMILION if pair.across else style.INK
            axes.set_title(title, fontsize=7, fontweight="normal", color=colour, loc="center")
            names = list(dict.fromkeys(short[name] for name in pair.classes))[:2]
            axes.set_xlabel(" | ".join(names), fontsize=7)
        for axes in panels[len(pairs) :]:
            axes.remove()
    return figure


def two_of(pair: "Alike") -> list[int]:
    """Two rows to show: of different splits or else classes, where there are such."""
    first = pair.rows[0]
    told = pair.splits if pair.across else pair.classes
    return [first, next((row for row, name in zip(pair.rows, told, strict=True) if name != told[0]), pair.rows[1])]


def _page(report: "CheckReport", sources: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything the template shows."""
    duplicates = []
    for name, found in (("Exact duplicates", report.exact), ("Near duplicates", report.near)):
        ordered = sorted(found, key=lambda alike: (not alike.across, not alike.conflicting, -alike.similarity))
        counts = f"{sum(alike.across for alike in found):,} across splits, " if report.given else ""
        counts += f"{sum(alike.conflicting for alike in found):,} with different classes"
        duplicates.append({"title": name, "all": len(found), "rows": ordered[:MOST_ROWS], "counts": counts})
    files = [
        {"title": name, "all": len(entries), "rows": entries[:MOST_ROWS]}
        for name, entries in (("Corrupt files", report.corrupt), ("Unusual files", report.odd))
    ]
    columns = list(report.splits)
    return {
        "title": f"finesight data check: {report.path}",
        "report": report,
        "verdict": check_text.verdict(report),
        "remedies": check_text.remedies(report),
        "facts": check_text.facts(report),
        "problems": [*report.errors, *report.warnings, *check_text.imbalance(report)],
        "columns": columns,
        "counts": [(name, [report.splits[split][name] for split in columns]) for name in report.classes],
        "totals": [sum(report.splits[split].values()) for split in columns],
        "files": files,
        "duplicates": duplicates,
        "groups": report.groups["across"][:MOST_ROWS],
        "figures": sources,
    }
