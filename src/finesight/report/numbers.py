"""Metric values as text, and what an interval lets one say. Entries are {"value", "low", "high", "n"}."""

import math
import re
from collections.abc import Mapping
from typing import Any

from finesight.errors import ConfigError
from finesight.metrics.classification import Kind, kind

Entry = Mapping[str, Any]

LABELS = {
    "nll": "negative log-likelihood",
    "expected_calibration_error": "expected calibration error",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "f1": "F1",
    "generated_accuracy": "accuracy on repainted source images",
}

VALIDATORS = ("generated_accuracy", "target_information", "adaptation_score", "oracle_accuracy")
"""Shares that validate a run on two domains: no metrics of a split, but shown like them."""


def label(name: str) -> str:
    """A metric's name for people: 'top_5_accuracy' -> 'top 5 accuracy'."""
    return LABELS.get(name, name.replace("_", " "))


def pieces(name: object) -> list[str]:
    """A class or run name cut where a line may break: after its underscores."""
    return re.split(r"(?<=_)(?=[^_])", str(name))


def unit(name: str) -> Kind | None:
    """Unit and direction, None for a metric that finesight does not know."""
    if name in VALIDATORS:
        return Kind("fraction", True)
    try:
        return kind(name)
    except ConfigError:
        return None


def main_metric(scores: Mapping[str, Entry]) -> str | None:
    """The metric of the headline: accuracy, or the first there is."""
    return "accuracy" if "accuracy" in scores else next(iter(scores), None)


def is_share(name: str) -> bool:
    known = unit(name)
    return known is not None and known.unit == "fraction"


def percent(value: float, n: int | None = None) -> str:
    """A share as percent: one decimal, two from 2,000 samples on, and more where rounding would claim 0 or 100 %."""
    digits = 1 if n is None or n < 2000 else 2
    while value not in (0.0, 1.0) and float(f"{100 * value:.{digits}f}") in (0.0, 100.0) and digits < 8:
        digits += 1
    return f"{100 * value:.{digits}f} %"


def number(name: str, value: float | None, n: int | None = None) -> str:
    """One value of a metric in its unit; an em dash for None."""
    if value is None:
        return "—"
    return percent(value, n) if is_share(name) else f"{value:.4f}"


def difference(name: str, value: float | None) -> str:
    """A signed difference: percentage points for shares, else the metric's own unit."""
    if value is None:
        return "—"
    return (f"{100 * value:+.1f}" if is_share(name) else f"{value:+.4f}").replace("-", "−")


def interval(name: str, entry: Entry) -> str:
    """'96.9 to 99.4 %', or an em dash where there is none."""
    if entry.get("low") is None or entry.get("high") is None:
        return "—"
    low, high = (number(name, entry[end], entry.get("n")) for end in ("low", "high"))
    return f"{low.removesuffix(' %')} to {high}"


def zero_width(entry: Entry) -> bool:
    """Whether the interval has no width: every resample gave the same value, which proves no certainty."""
    return entry.get("low") is not None and entry["low"] == entry["high"]


def level_text(level: float) -> str:
    return f"{100 * level:g} %"


def error_bound(units: int, level: float) -> float:
    """Upper bound of a rate of which `units` independent samples show no case: 1 - (1 - level)^(1 / units).

    Close to 3 / units at a level of 0.95 (Hanley & Lippman-Hand 1983, the rule of three).
    """
    return float(-math.expm1(math.log1p(-level) / max(units, 1)))


def bounds(name: str, entry: Entry, units: int, level: float) -> tuple[float, float] | None:
    """The interval, widened by the rule of three where a share of 0 or 1 left it no width; None if there is none."""
    if entry.get("low") is None or entry.get("high") is None or entry.get("value") is None:
        return None
    if is_share(name) and zero_width(entry) and entry["value"] in (0.0, 1.0):
        margin = error_bound(units, level)
        return (1 - margin, 1.0) if entry["value"] == 1.0 else (0.0, margin)
    return entry["low"], entry["high"]


def meaning(name: str, entry: Entry, units: int, level: float, split: str = "test") -> str:
    """One plain sentence on what the interval of the headline says and what it leaves out."""
    n, what = entry["n"], label(name)
    grouped = "" if units == n else f" in {units:,} independent groups"
    if entry.get("low") is None:
        return f"There is no interval: {units:,} independent sample{'' if units == 1 else 's'} cannot show its spread."
    if name == "accuracy" and zero_width(entry) and entry["value"] in (0.0, 1.0):
        rate, case = ("error rate", "errors") if entry["value"] == 1.0 else ("accuracy", "right answers")
        factor = f"{-math.log1p(-level):.2g}"
        return (
            f"No {case} among {n:,}{grouped}; the {level_text(level)} bound on the {rate} is about "
            f"{factor}/{units:,}, that is {percent(error_bound(units, level))}: the interval has zero width because "
            "resampling cannot show what the sample does not hold."
        )
    if zero_width(entry):
        return "The interval has zero width: the sample shows no variation, which is not the same as certainty."
    return (
        f"The interval says how far the chance choice of these {n:,} {split} samples{grouped} may have moved the "
        f"number: of intervals made this way, about {level_text(level)} hold the {what} on all samples of this kind. "
        "It does not cover training again with another seed."
    )


def verdict(name: str, model: Entry, baseline: Entry, units: int, level: float) -> tuple[str, str]:
    """('better' | 'unclear' | 'worse', words) for the model beside a baseline, by whether the intervals overlap."""
    ours, theirs = bounds(name, model, units, level), bounds(name, baseline, units, level)
    known = unit(name)
    if ours is None or theirs is None or known is None:
        return "unclear", "cannot be told apart without intervals"
    above, below = ours[0] > theirs[1], ours[1] < theirs[0]
    if not above and not below:
        return "unclear", "not clearly beaten: the intervals overlap"
    if above == known.higher_is_better:
        return "better", "clearly beaten: the intervals do not overlap"
    return "worse", "better than the model: the intervals do not overlap"
