"""The page that compares runs on one test set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finesight.files import write_text
from finesight.report import numbers
from finesight.report.html import render

ROUNDING = 1e-9
"""Differences below come from rounding or a smoothing constant, however steadily."""


def write_comparison(
    title: str,
    runs: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]],
    path: Path,
    stress: Mapping[str, Any] | None = None,
) -> None:
    """Write one self-contained HTML page; the same input gives the same bytes.

    `runs` are {"name", "path", "metrics": {metric: {value, low, high, n}}}, `pairs` are
    {"a", "b", "metrics": {metric: {a, b, difference, low, high, p, n}}} with difference = b - a.
    `stress` is `stress_table.table` of the runs.
    """
    overall = [name for name in (runs[0]["metrics"] if runs else {}) if "/" not in name]
    values = {
        "title": title,
        "runs": runs,
        "names": overall,
        "main": numbers.main_metric(runs[0]["metrics"]) if runs else None,
        "pairs": [_pair(pair, overall) for pair in pairs],
        "stress": stress if stress and (stress["conditions"] or stress.get("left_out")) else None,
    }
    write_text(Path(path), render("comparison.html.j2", values))


def judge(name: str, pair: Mapping[str, Any], entry: Mapping[str, Any]) -> tuple[str, str]:
    """('better' | 'worse' | 'unclear' for b against a, words): clear where the interval leaves out zero."""
    known = numbers.unit(name)
    if entry.get("low") is None or entry.get("high") is None:
        return "unclear", "too few samples for an interval"
    if known is None or entry["low"] <= 0 <= entry["high"] or abs(entry["difference"]) < ROUNDING:
        return "unclear", "no clear difference"
    better = (entry["low"] > 0) == known.higher_is_better
    return ("better", f"{pair['b']} is better") if better else ("worse", f"{pair['a']} is better")


def _pair(pair: Mapping[str, Any], overall: Sequence[str]) -> dict[str, Any]:
    rows, classes = [], []
    for name, entry in pair["metrics"].items():
        state, words = judge(name, pair, entry)
        row = {"name": name, "entry": entry, "state": state, "words": words}
        if name in overall:
            rows.append(row)
        elif name.startswith("f1/"):
            classes.append({**row, "class": name.removeprefix("f1/"), "name": "f1"})
    return {"a": pair["a"], "b": pair["b"], "rows": rows, "classes": classes}
