"""The page on runs that differ in their seed: what varies, and how much."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finesight.files import write_text
from finesight.report import facts, numbers
from finesight.report.html import render

Spread = Mapping[str, Any]


def write_seeds(summary: Mapping[str, Any], path: Path) -> None:
    """Write one self-contained HTML page; the same input gives the same bytes.

    `summary` is the content of seeds.json (`seeds.summarise`); the page links to each seed's report beside it.
    """
    test = summary["metrics"].get("test", {})
    splits = [split for split in summary["metrics"] if split != "baselines"]
    values = {
        "title": f"finesight: {summary['recipe']}, {len(summary['seeds'])} seeds",
        "recipe": summary["recipe"],
        "seeds": summary["seeds"],
        "runs": [run | {"time": duration(run.get("wall_s"))} for run in summary["runs"]],
        "main": numbers.main_metric(test),
        "test": test,
        "splits": [_split(split, summary) for split in sorted(splits, key=lambda split: split != "test")],
        "differing": summary["differing"],
        "command": summary.get("command"),
        "spread_text": spread_text,
        "counts": counts,
    }
    write_text(Path(path), render("seeds.html.j2", values))


def _split(split: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    found = summary["metrics"][split]
    baselines = []
    for baseline, theirs in summary["metrics"].get("baselines", {}).items():
        name = numbers.main_metric(theirs.get(split, {}))
        if name is not None:
            baselines.append({"name": name, "of": baseline, "spread": theirs[split][name]})
    rows = [{"name": name, "of": None, "spread": spread} for name, spread in found.items() if "/" not in name]
    return {
        "name": split,
        "rows": rows + baselines,
        "counts": counts(found[name]["n"]) if (name := numbers.main_metric(found)) else "no",
        "differs": split in summary["differing"],
    }


def spread_text(name: str, spread: Spread) -> str:
    """'96.3 ± 0.4 %': mean and standard deviation in the metric's unit; the mean alone where one seed defines it."""
    if spread["mean"] is None:
        return "—"
    n = max((count for count in spread["n"] if count), default=None)
    mean = numbers.number(name, spread["mean"], n)
    if spread["sd"] is None:
        return mean
    value, _, unit = mean.partition(" ")
    digits = len(value.partition(".")[2])
    scale = 100 if unit == "%" else 1
    return f"{value} ± {scale * spread['sd']:.{digits}f} {unit}".rstrip()


def counts(found: list[int | None]) -> str:
    """How many samples the seeds were measured on: one number, or a range."""
    known = sorted({count for count in found if count is not None})
    return " to ".join(f"{count:,}" for count in dict.fromkeys((known[0], known[-1]))) if known else "no"


def duration(seconds: float | None) -> str:
    return "—" if seconds is None else facts.duration(seconds)
