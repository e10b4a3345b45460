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

OPTIONS = {
    "transfer": ("iters", "step"),
    "pgd": ("iters", "step", "restarts"),
    "auto": ("auto_iters", "queries"),
    "worst": ("iters", "step", "restarts", "auto_iters", "queries"),
}
SHOWN = ("clean", *OPTIONS)
"""Kinds of conditions that are compared, where the options of their attack agree; the others stand in each report."""

Report = dict[str, Any]
Hits = dict[str, dict[str, bool]]


def table(paths: Sequence[Path], names: Sequence[str], *, resamples: int = 1000, level: float = 0.95) -> dict[str, Any]:
    """{"conditions": [...], "runs": [{name, trainable, total, seconds, accuracy: {condition: entry}}], "pairs": [...],
    "left_out": [sentences]}.

    Of runs that were all attacked; else no conditions. An entry is {value, low, high, n}, a pair
    {a, b, accuracy: {condition: {a, b, difference, low, high, p, n}}} of every run with the first one, on the same
    images with the same resamples, whole groups at once where images have some. Conditions that not all runs share, or
    that were measured on other images or by an attack with other options, are left out and named with the reason.
    """
    found = [_read(path) for path in paths]
    lacking = [name for name, one in zip(names, found, strict=True) if one is None]
    if lacking:
        said = [f"{name}: not attacked, so no attacks are compared; finesight attack RUN." for name in lacking]
        return {"conditions": [], "runs": [], "pairs": [], "left_out": said if len(lacking) < len(names) else []}
    reports, hits = [one[0] for one in found if one], [one[1] for one in found if one]
    groups = next(one[2] for one in found if one)
    every = (item for report in reports for item in report["conditions"].items())
    candidates = list(dict.fromkeys(name for name, condition in every if condition["kind"] in SHOWN))
    reasons = {name: _unlike(name, reports, hits, names) for name in candidates}
    shared = [name for name in candidates if reasons[name] is None]
    left_out = [f"{name}: {reason}." for name, reason in reasons.items() if reason is not None]
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
            of = [groups[key] for key in order]
            together = of if len(set(of)) < len(of) else None
            differences = bootstrap.paired(metric, *both, groups=together, resamples=resamples, level=level)
            entries[condition] = differences["accuracy"]
        pairs.append({"a": names[0], "b": name, "accuracy": entries})
    return {"conditions": shared, "runs": runs, "pairs": pairs, "left_out": left_out}


def _unlike(name: str, reports: Sequence[Report], hits: Sequence[Hits], names: Sequence[str]) -> str | None:
    """Why a condition cannot be compared with that of the same name in the first run; None if it can."""
    if name not in reports[0]["conditions"]:
        return f"{names[0]} was not measured under it"
    for run, report, hit in zip(names[1:], reports[1:], hits[1:], strict=True):
        if name not in report["conditions"]:
            return f"{run} was not measured under it"
        mine, other = (_how(name, each) for each in (reports[0], report))
        if mine != other:
            different = [f"{key} {mine[key]} and {other.get(key)}" for key in mine if mine[key] != other.get(key)]
            return f"{names[0]} and {run} were attacked differently ({', '.join(different)})"
        if hit[name].keys() != hits[0][name].keys():
            return f"{names[0]} and {run} were attacked on other images"
    return None


def _how(name: str, report: Report) -> dict[str, Any]:
    """The options that decide the strength of the attack behind a condition, and its draws."""
    options, condition = report["options"], report["conditions"][name]
    if condition["kind"] == "clean":
        return {}
    found = {key: options[key] for key in ("norm", "seed", *OPTIONS[condition["kind"]])}
    found["pixels"] = report["resolution"]["attacked"]
    if condition["kind"] in ("pgd", "worst"):
        # By the worst-of rule, what a smaller budget broke stays broken.
        curve = [c["eps"] for c in report["conditions"].values() if c["kind"] == "pgd"]
        found["budgets"] = sorted(eps for eps in curve if eps <= condition["eps"])
    if condition["kind"] == "transfer":
        surrogate = report.get("surrogate") or {}
        found["surrogate"] = (surrogate.get("weights") or surrogate.get("name") or "unknown")[:12]
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """The table as text: a row for each run."""
    left_out = [f"Left out: {sentence}" for sentence in found.get("left_out", [])]
    if not found["conditions"]:
        return left_out
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
    text += [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    ]
    return text + [f"    {line}" for pair in found["pairs"] for line in _differences(pair)] + left_out


def _differences(pair: dict[str, Any]) -> list[str]:
    """The paired differences of a run from the first one, in points."""
    found = []
    for name, entry in pair["accuracy"].items():
        interval = "" if entry["low"] is None else f" [{100 * entry['low']:+.1f}, {100 * entry['high']:+.1f}]"
        found.append(f"{pair['b']} - {pair['a']}, {name}: {100 * entry['difference']:+.1f} points{interval}")
    return found


def _percent(entry: dict[str, Any]) -> str:
    interval = "" if entry["low"] is None else f" [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"
    return f"{100 * entry['value']:.1f}{interval}"


def _read(path: Path) -> tuple[Report, Hits, dict[str, str]] | None:
    """attack.json of a run, for each condition which images it got right, and their groups; None where not attacked."""
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
    return report, right, dict(zip(rows["id"], rows["group"], strict=True))
