"""What a run folder holds, read for its report: whatever is missing or unreadable is named, never fatal."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finesight import config as configuration
from finesight.errors import UserError
from finesight.files import human_bytes, read_json
from finesight.run_folder import RunFolder

WHAT = {
    "config.yaml": "every option of the run",
    "run.json": "provenance: command, versions, hardware, data, model",
    "history.jsonl": "losses and metrics of each epoch",
    "start.json": "test predictions of the model before training",
    "metrics.json": "every metric with its interval, and the baselines",
    "predictions.parquet": "each held-out sample and its scores; for a classifier reference and prediction too",
    "checkpoints": "weights and training state",
    "model": "what rebuilds the architecture, and frozen weights",
    "figures": "the figures as PNG and SVG",
    "attack": "accuracy under attacks and corruptions, and the stored adversarial images",
    "stored": "accuracy on the adversarial images of other runs",
    "report.html": "this page",
}


CLASSIFYING = (None, "classification", "domain-adaptation", "robustness", "contrastive")
"""Tasks that give images a class."""


@dataclass
class Split:
    """What predictions.parquet says of one split."""

    samples: int
    groups: int
    support: dict[str, int]
    confused: dict[str, tuple[str, int]]


@dataclass
class Contents:
    """The files of a run folder; `missing` maps a file to the sentence that stands in its place."""

    folder: RunFolder
    config: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, Split] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def level(self) -> float:
        """Coverage of the intervals, a fraction."""
        return float((self.config.get("evaluation") or {}).get("level") or 0.95)

    @property
    def classifies(self) -> bool:
        """Whether the task gives images a class; taken for granted where no file names it."""
        return (self.run.get("task") or self.config.get("task")) in CLASSIFYING

    @property
    def classes(self) -> list[str]:
        known = self.run.get("classes")
        return known or [name[3:] for name in self.metrics.get("test", {}) if name.startswith("f1/")]

    def units(self, split: str) -> int:
        """Independent units of a split: its groups where samples share them, else its samples."""
        if split in self.splits:
            return self.splits[split].groups
        return max((entry.get("n") or 0 for entry in self.metrics.get(split, {}).values()), default=0)


def read(run_dir: Path) -> Contents:
    """Read a run folder, tolerating every missing file."""
    folder = RunFolder(run_dir)
    found = Contents(folder)
    readers: dict[str, tuple[Path, Any]] = {
        "config": (folder.config, configuration.read_yaml),
        "run": (folder.path / "run.json", read_json),
        "history": (folder.history, lambda _: folder.read_history()),
        "metrics": (folder.metrics, read_json),
        "splits": (folder.predictions, _splits),
        "figures": (folder.figures / "figures.json", read_json),
    }
    for name, (path, reader) in readers.items():
        where = path.relative_to(folder.path)
        if not path.is_file():
            found.missing[name] = f"{where} is not in the run folder, so this part of the report is empty."
            continue
        try:
            content = reader(path)
            if type(content) is not type(getattr(found, name)):
                raise ValueError(f"it holds a {type(content).__name__}")
            setattr(found, name, content)
        except (OSError, ValueError, KeyError, UserError) as error:
            found.missing[name] = f"{where} cannot be read, so this part of the report is empty: {error}"
    return found


def _splits(path: Path) -> dict[str, Split]:
    import pyarrow.parquet as pq

    columns = ["split", "group"]
    if {"reference", "prediction"} <= set(pq.read_schema(path).names):
        columns += ["reference", "prediction"]
    table = pq.read_table(path, columns=columns)
    rows: dict[str, list[tuple[str, ...]]] = {}
    for split, *row in zip(*(table.column(name).to_pylist() for name in columns), strict=True):
        rows.setdefault(split, []).append(tuple(row))
    return {split: _split(of_split) for split, of_split in rows.items()}


def _split(rows: list[tuple[str, ...]]) -> Split:
    """Rows are (group, reference, prediction), or (group,) where images have no class."""
    judged = [(row[1], row[2]) for row in rows if len(row) == 3]
    wrong: dict[str, Counter[str]] = {}
    for reference, prediction in judged:
        if reference != prediction:
            wrong.setdefault(reference, Counter())[prediction] += 1
    return Split(
        samples=len(rows),
        groups=len({row[0] for row in rows}),
        support=dict(Counter(reference for reference, _ in judged)),
        confused={name: min(counts.items(), key=lambda item: (-item[1], item[0])) for name, counts in wrong.items()},
    )


def files(folder: Path) -> list[dict[str, str]]:
    """Name, content and size of what the run folder holds, in a fixed order; the report has no size yet."""
    found = {entry.name: entry for entry in folder.iterdir() if not entry.name.startswith(".")}
    found.setdefault("report.html", folder / "report.html")
    order = [name for name in WHAT if name in found] + sorted(set(found) - set(WHAT))
    return [
        {
            "name": name + ("/" if found[name].is_dir() else ""),
            "what": WHAT.get(name, ""),
            "size": "" if name == "report.html" else _size(found[name]),
        }
        for name in order
    ]


def _size(path: Path) -> str:
    if path.is_file():
        return human_bytes(path.stat().st_size)
    inside = [entry for entry in path.rglob("*") if entry.is_file()]
    return f"{human_bytes(sum(entry.stat().st_size for entry in inside))} in {len(inside)} files"
