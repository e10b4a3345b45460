"""The report of one run: a single self-contained HTML file, made from the files of the run folder only."""

import base64
import re
import shlex
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finesight.errors import DataError
from finesight.files import human_bytes, write_text
from finesight.metrics.classification import per_class_table
from finesight.report import contents, numbers
from finesight.report.contents import Contents

FIGURE_ORDER = (
    "accuracy",
    "curves",
    "confusion",
    "reliability",
    "mistakes",
    "samples",
    "augmentation",
    "classes",
    "patch_positions",
)

LARGEST_SVG = 300_000
"""Bytes; a chart whose SVG is larger is shown as PNG."""

SUMMARY_LINES = 8


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
    for name in ("label", "number", "interval", "zero_width", "is_share", "difference", "level_text", "unit", "pieces"):
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
        "groups": group_sentences(found),
        "scores": score_rows(found),
        "sizes": {split: _size(found, split) for split in ("test", "validation")},
        "classes": class_rows(found),
        "figures": [shown(found, entry) for entry in _ordered(found.figures)],
        "data": data_rows(found),
        "training": training_facts(found),
        "reproduce": reproduce_facts(found),
        "command": _command(found),
        "config_text": found.folder.config.read_text(encoding="utf-8") if found.config else "",
        "files": contents.files(found.folder.path),
    }


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
            state, words = numbers.verdict(name, entry, theirs, units, found.level)
            beside.append({"name": baseline, "entry": theirs, "state": state, "words": words})
    return {
        "metric": name,
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
    """Images per class and split; None when run.json says nothing about the data."""
    data = found.run.get("data")
    if not data:
        return None
    counts = data.get("counts") or {}
    names = list(dict.fromkeys([*found.classes, *(name for split in counts.values() for name in split)]))
    return {
        "root": data.get("root"),
        "fingerprint": data.get("fingerprint"),
        "notes": data.get("notes") or [],
        "splits": list(counts),
        "rows": [(name, [split.get(name, 0) for split in counts.values()]) for name in names],
        "totals": [sum(split.values()) for split in counts.values()],
    }


def training_facts(found: Contents) -> list[tuple[str, str]]:
    """How the model was trained and which epoch was kept, as (term, text)."""
    config, run = found.config, found.run
    train = config.get("train") or {}
    facts: list[tuple[str, Any]] = [
        ("epochs", _epochs(found)),
        ("kept epoch", _kept(found)),
        ("optimizer", train.get("optimizer")),
        ("learning rate", _rate(train)),
        ("weight decay", train.get("weight_decay")),
        ("batch size", _batch(train)),
        ("images per class and epoch", train.get("balance")),
        ("largest gradient norm", train.get("clip")),
        ("label smoothing", config.get("label_smoothing") or None),
        ("augmentation", _augmentation(config.get("augment") or {}) if config else None),
        ("precision", run.get("precision")),
    ]
    return [(term, str(text)) for term, text in facts if text is not None]


def _epochs(found: Contents) -> str | None:
    done = found.run.get("epochs") or len(found.history)
    planned = (found.config.get("train") or {}).get("epochs")
    steps = f", {found.run['steps']:,} optimiser steps" if found.run.get("steps") else ""
    return f"{done}{f' of {planned}' if planned else ''}{steps}" if done else None


def _kept(found: Contents) -> str | None:
    """The best epoch and by what it was chosen."""
    best, selection = found.run.get("best_epoch"), found.run.get("selection") or {}
    if best is None:
        return None
    name, value = selection.get("metric"), selection.get("value")
    if name is None or value is None:
        return str(best)
    return f"{best}, chosen by {numbers.label(name)} on {selection.get('split')}: {numbers.number(name, value)}"


def _rate(train: Mapping[str, Any]) -> str | None:
    if "lr" not in train:
        return None
    warm = f", {train['warmup_steps']:,} steps of warm-up" if train.get("warmup_steps") else ""
    return f"{train['lr']:g}, {train.get('schedule')} schedule{warm}"


def _batch(train: Mapping[str, Any]) -> str | None:
    if "batch_size" not in train:
        return None
    parts = train.get("accumulation") or 1
    return f"{train['batch_size']}" + (f", in {parts} parts" if parts > 1 else "")


def _augmentation(augment: Mapping[str, Any]) -> str:
    kinds = ("crop", "rotate", "flip", "jitter", "holes")
    used = [f"{name} with probability {augment[name]:g}" for name in kinds if augment.get(name)]
    return ", ".join(used) or "none"


def reproduce_facts(found: Contents) -> list[tuple[str, str]]:
    """Seed, versions, hardware, time and memory, as (term, text)."""
    run = found.run
    hardware, git = run.get("hardware") or {}, run.get("git") or {}
    seconds, memory = (run.get("timing") or {}).get("wall_s"), run.get("peak_memory_bytes")
    ram = hardware.get("memory_bytes")
    machine = [
        hardware.get("processor"),
        f"{hardware['cores']} cores" if hardware.get("cores") else None,
        f"{human_bytes(ram)} memory" if ram else None,
        *(hardware.get("gpus") or []),
        hardware.get("platform"),
    ]
    facts: list[tuple[str, Any]] = [
        ("seed", (run.get("seeds") or {}).get("seed")),
        ("started", run.get("started")),
        ("wall time", None if seconds is None else duration(seconds)),
        ("peak memory", human_bytes(memory) if memory else None),
        ("hardware", ", ".join(part for part in machine if part) or None),
        ("device", run.get("device")),
        ("processes, threads", f"{run.get('processes', 1)}, {run['threads']}" if run.get("threads") else None),
        ("versions", ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items()) or None),
        ("code", f"{git['commit']}{', with local changes' if git.get('changed_files') else ''}" if git else None),
    ]
    return [(term, str(text)) for term, text in facts if text is not None]


def duration(seconds: float) -> str:
    """3,725 -> '1 h 2 min 5 s'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours} h ' if hours else ''}{minutes} min {rest} s"


def _command(found: Contents) -> str:
    """The command that started the run; a run from Python has none, but its config.yaml serves."""
    return found.run.get("command") or f"finesight run {shlex.quote(str(found.folder.config))} --output NEW_FOLDER"


def _ordered(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    place = {name: index for index, name in enumerate(FIGURE_ORDER)}
    return sorted(figures, key=lambda entry: place.get(entry["name"], len(place)))


def shown(found: Contents, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A figure with its image as a data: address; `source` is None when its files are missing."""
    name = str(entry["name"])
    image: dict[str, Any] = {"name": name, "title": entry.get("title") or name, "caption": entry.get("caption") or ""}
    image.update(source=None, width=None, height=None)
    png, svg = (found.folder.figures / f"{name}.{kind}" for kind in ("png", "svg"))
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


def summary_lines(metrics: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """What the command line prints at the end: result with interval and n, baselines, kept epoch, alarms."""
    test = metrics.get("test") or {}
    name = numbers.main_metric(test)
    if name is None:
        return ["There are no test metrics."]
    lines = [f"Test {_summary(name, test[name])}"]
    validation = (metrics.get("validation") or {}).get(name)
    if validation is not None:
        lines.append(f"Validation {_summary(name, validation)}: it picked the epoch, so it is optimistic")
    for baseline, splits in (metrics.get("baselines") or {}).items():
        if name in (splits.get("test") or {}):
            lines.append(f"  Baseline, {baseline}: {_summary('', splits['test'][name], name)}")
    if run.get("best_epoch") is not None:
        lines.append(f"Kept epoch {run['best_epoch']} of {run.get('epochs', '?')}")
    alarms = list(run.get("alarms") or [])
    room = max(SUMMARY_LINES - len(lines), 1)
    if len(alarms) > room:
        alarms = [*alarms[: room - 1], f"and {len(alarms) - room + 1} more, in the report"]
    return lines + [f"ALARM: {alarm}" for alarm in alarms]


def _summary(shown_as: str, entry: Mapping[str, Any], name: str | None = None) -> str:
    name = name or shown_as
    title = f"{numbers.label(shown_as)} " if shown_as else ""
    value, n = numbers.number(name, entry["value"], entry["n"]), f"n = {entry['n']:,}"
    if entry.get("low") is None:
        return f"{title}{value} ({n}, too few for an interval)"
    if numbers.zero_width(entry):
        return f"{title}{value} ({n}; the interval has zero width, see the report)"
    return f"{title}{value} (interval {numbers.interval(name, entry)}, {n})"
