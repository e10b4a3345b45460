"""Stress tests of several runs side by side: the table of S12, with trained parameters and time."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from finesight.metrics import bootstrap
from finesight.metrics.means import MeanMetric
from finesight.run_folder import open_run

SHOWN = ("clean", "transfer", "pgd", "auto")
"""Kinds of conditions that are compared; the others stand in each run's own report."""


def table(paths: Sequence[Path], names: Sequence[str], *, resamples: int = 1000, level: float = 0.95) -> dict[str, Any]:
    """{"conditions": [...], "runs": [{name, trainable, total, seconds, accuracy: {condition: entry}}], "pairs": [...]}.

    Of runs that were all attacked; else no conditions. An entry is {value, low, high, n}, a pair
    {a, b, accuracy: {condition: {a, b, difference, low, high, p, n}}} of every run with the first one, on the same
    images with the same resamples. Conditions that not all runs share, or that were measured on other images, are left
    out.
    """
    found = [_read(path) for path in paths]
    if any(one is None for one in found):
        return {"conditions": [], "runs": [], "pairs": []}
    reports, hits = [one[0] for one in found if one], [one[1] for one in found if one]
    first = reports[0]["conditions"]
    shared = [
        name
        for name, condition in first.items()
        if condition["kind"] in SHOWN
        and all(name in report["conditions"] for report in reports)
        and all(hit[name].keys() == hits[0][name].keys() for hit in hits)
    ]
    runs = []
    for path, name, report in zip(paths, names, reports, strict=True):
        run = open_run(path).read_run()
        accuracy = {condition: report["conditions"][condition]["accuracy"] for condition in shared}
        size = {key: run["model"][key] for key in ("trainable", "total")}
        runs.append({"name": name, **size, "seconds": run.get("timing", {}).get("wall_s"), "accuracy": accuracy})
    metric = MeanMetric(["accuracy"], "accuracy")
    pairs: list[dict[str, Any]] = []
    for name, hit in zip(names[1:], hits[1:], strict=True):
        entries = {}
        for condition in shared:
            order = sorted(hits[0][condition])
            rows = [np.array([[one[condition][key]] for key in order], float) for one in (hits[0], hit)]
            both = [metric.statistics(values) for values in rows]
            entries[condition] = bootstrap.paired(metric, *both, resamples=resamples, level=level)["accuracy"]
        pairs.append({"a": names[0], "b": name, "accuracy": entries})
    return {"conditions": shared, "runs": runs, "pairs": pairs}


def lines(found: dict[str, Any]) -> list[str]:
    """The table as text: a row for each run."""
    if not found["conditions"]:
        return []
    head = ["run", "trained", "minutes", *found["conditions"]]
    rows = [
        [
            run["name"], f"{run['trainable']:,}", "" if run["seconds"] is None else f"{run['seconds'] / 60:.1f}",
            *(_percent(run["accuracy"][name]) for name in found["conditions"]),
        ]
        for run in found["runs"]
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    text = ["Accuracy in % under attack, with intervals (minutes are those of the whole run without the attacks)"]
    return text + [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    ]


def _percent(entry: dict[str, Any]) -> str:
    interval = "" if entry["low"] is None else f" [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"
    return f"{100 * entry['value']:.1f}{interval}"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, bool]]] | None:
    """attack.json of a run, and for each condition which images it got right; None where it was not attacked."""
    place = open_run(path).path / "attack"
    if not (place / "attack.json").is_file():
        return None
    report = json.loads((place / "attack.json").read_text(encoding="utf-8"))
    rows = pq.read_table(place / "predictions.parquet").to_pydict()
    right = {
        name: {
            key: said == truth
            for key, truth, said in zip(rows["id"], rows["reference"], rows[name], strict=True)
            if said is not None
        }
        for name in report["conditions"]
        if name in rows
    }
    return report, right
