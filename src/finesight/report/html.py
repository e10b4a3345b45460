"""The report of one run: a single self-contained HTML file, made from the files of the run folder only."""

import base64
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finesight.errors import DataError
from finesight.files import write_text
from finesight.metrics.classification import per_class_table
from finesight.report import contents, domain_section, facts, numbers, reconstruction_section, robustness_section
from finesight.report.contents import Contents

__all__ = ["FIGURE_ORDER", "LARGEST_SVG", "page", "render", "write_report"]

FIGURE_ORDER = (
    "accuracy",
    "quality",
    "captions",
    "extremes",
    "attention",
    "panels",
    "curves",
    "lengths",
    "anomaly",
    "samples_prior",
    "traversals",
    "adaptation",
    "domains",
    "translation",
    "diversity",
    "features",
    "losses",
    "confusion",
    "reliability",
    "mistakes",
    "samples",
    "border",
    "augmentation",
    "classes",
    "patch_positions",
)

NUMBERS = (
    "label", "direction", "number", "interval", "zero_width", "is_share", "difference", "level_text", "unit",
    "pieces",
)  # fmt: skip
"""Functions of `numbers` that templates may call."""

LARGEST_SVG = 300_000
"""Bytes; a chart whose SVG is larger is shown as PNG."""


def write_report(run_dir: Path) -> Path:
    """Write report.html into the run folder and return its path.

    The page fetches nothing and holds no script. A file that is missing or unreadable gives a sentence in
    its place. The same files give the same bytes.
    """
    found = contents.read(Path(run_dir))
    write_text(found.folder.report, render("report.html.j2", page(found)))
    return found.folder.report


def render(template: str, values: Mapping[str, Any]) -> str:
    """A template of this folder, with every inserted value escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in NUMBERS:
        environment.globals[name] = getattr(numbers, name)
    return environment.get_template(template).render(values)


def page(found: Contents) -> dict[str, Any]:
    """Everything the template shows, section by section."""
    name = found.run.get("recipe") or found.folder.path.resolve().name
    return {
        "title": f"finesight: {name}",
        "run": found.run,
        "missing": found.missing,
        "level": found.level,
        "headline": headline(found),
        "alarms": found.run.get("alarms"),
        "classifies": found.classifies,
        "improvements": reconstruction_section.improvements(found),
        "anomalies": reconstruction_section.anomalies(found),
        "retention": found.metrics.get("retention"),
        "domains": domain_section.section(found),
        "robustness": robustness(found),
        "names": domain_section.names(found),
        "groups": group_sentences(found),
        "scores": score_rows(found),
        "sizes": {split: _size(found, split) for split in ("test", "validation")},
        "classes": class_rows(found),
        "figures": [shown(found, entry) for entry in _ordered(found.figures)],
        "data": data_rows(found),
        "training": facts.training(found),
        "reproduce": facts.reproduce(found),
        "command": facts.command(found),
        "config_text": found.folder.config.read_text(encoding="utf-8") if found.config else "",
        "files": contents.files(found.folder.path),
    }


def robustness(found: Contents) -> dict[str, Any] | None:
    """The section on the stress test with its figures; None for a run that was never attacked."""
    section, folder = robustness_section.section(found), found.folder.path
    if section is not None:
        directory = folder / "attack" / "figures"
        section["figures"] = [shown(found, entry, directory) for entry in robustness_section.figures(folder)]
    return section


def headline(found: Contents) -> dict[str, Any] | None:
    """The main test metric, what its interval means, and the model beside each baseline; None without metrics."""
    test = found.metrics.get("test") or {}
    name = numbers.main_metric(test)
    if name is None or test[name].get("value") is None:
        return None
    entry, units = test[name], found.units("test")
    beside = []
    for baseline, splits in (found.metrics.get("baselines") or {}).items():
        theirs = (splits.get("test") or {}).get(name)
        if theirs is not None and theirs.get("value") is not None:
            paired = reconstruction_section.paired_verdict(found, baseline, name)
            state, words = paired or numbers.verdict(name, entry, theirs, units, found.level)
            beside.append({"name": baseline, "entry": theirs, "state": state, "words": words})
    return {
        "metric": name,
        "title": numbers.title(name),
        "entry": entry,
        "meaning": numbers.meaning(name, entry, units, found.level),
        "baselines": beside,
        "bounds": numbers.zero_width(entry),
    }


def group_sentences(found: Contents) -> list[str]:
    """One sentence per split whose samples share groups."""
    return [
        f"{split.capitalize()}: {rows.samples:,} samples in {rows.groups:,} groups. "
        "Samples of one group are not independent, so the intervals resample whole groups."
        for split, rows in found.splits.items()
        if rows.groups < rows.samples
    ]


def score_rows(found: Contents) -> list[dict[str, Any]]:
    """Overall metrics of the test and validation split, and the baselines' values beside them."""
    test, validation = found.metrics.get("test") or {}, found.metrics.get("validation") or {}
    names = [name for name in {**test, **validation} if "/" not in name]
    return [{"name": name, "test": test.get(name), "validation": validation.get(name)} for name in names]


def _size(found: Contents, split: str) -> int | None:
    """Samples of a split, from its metrics."""
    return max((entry.get("n") or 0 for entry in (found.metrics.get(split) or {}).values()), default=None)


def class_rows(found: Contents) -> dict[str, Any]:
    """Rows of the per-class table, or the sentences that stand in its place."""
    scores = found.metrics.get("test") or {}
    if not any(name.startswith("f1/") for name in scores):
        return {"rows": [], "problems": ["The metrics hold no scores per class."] if scores else []}
    try:
        rows = per_class_table(scores, found.classes)
    except DataError as error:
        return {"rows": [], "problems": str(error).splitlines()}
    except KeyError as error:
        return {"rows": [], "problems": [f"The metrics lack {error.args[0]}."]}
    split = found.splits.get("test")
    counts = split.support if split else ((found.run.get("data") or {}).get("counts") or {}).get("test", {})
    confused = split.confused if split else {}
    for row in rows:
        row["support"] = counts.get(row["class"], 0)
        row["confused"] = confused.get(row["class"])
    return {"rows": rows, "problems": [], "confused": split is not None}


def data_rows(found: Contents) -> dict[str, Any] | None:
    """Images per class and split, or per split alone; None when run.json says nothing about the data."""
    data = found.run.get("data")
    if not data:
        return None
    counts = data.get("counts") or {}
    names = list(dict.fromkeys([*found.classes, *(name for split in counts.values() for name in split)]))
    return {
        "root": data.get("root"),
        "fingerprint": data.get("fingerprint"),
        "notes": data.get("notes") or [],
        "splits": domain_section.data_counts(counts, domain_section.names(found)),
        "rows": [(name, [split.get(name, 0) for split in counts.values()]) for name in names],
        "totals": [sum(split.values()) for split in counts.values()],
    }


def _ordered(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the order of `FIGURE_ORDER`; one that is not in it ("anomaly_kl") follows the one that begins its name."""
    place = {name: index for index, name in enumerate(FIGURE_ORDER)}

    def key(entry: dict[str, Any]) -> tuple[int, bool]:
        name = entry["name"]
        return place.get(name, place.get(name.partition("_")[0], len(place))), name not in place

    return sorted(figures, key=key)


def shown(found: Contents, entry: Mapping[str, Any], directory: Path | None = None) -> dict[str, Any]:
    """A figure with its image as a data: address; `source` is None when its files are missing.

    `directory` holds the files, the run's own figures where it is not given.
    """
    name = str(entry["name"])
    image: dict[str, Any] = {"name": name, "title": entry.get("title") or name, "caption": entry.get("caption") or ""}
    image.update(source=None, width=None, height=None)
    png, svg = ((directory or found.folder.figures) / f"{name}.{kind}" for kind in ("png", "svg"))
    if not re.fullmatch(r"[a-z0-9_-]+", name) or not (png.is_file() or svg.is_file()):
        return image
    if png.is_file():
        # 150 dots per inch (`figures.save`) onto the 96 pixels per inch of a page.
        wide, high = struct.unpack(">II", png.read_bytes()[16:24].ljust(8, b"\0"))
        image.update(width=round(wide * 96 / 150), height=round(high * 96 / 150))
    small = svg.is_file() and svg.stat().st_size < LARGEST_SVG
    vector = not png.is_file() or (entry.get("kind") == "chart" and small)
    kind, path = ("svg+xml", svg) if vector else ("png", png)
    image["source"] = f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    return image
