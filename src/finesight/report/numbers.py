"""Metric values as text, and what an interval lets one say. Entries are {"value", "low", "high", "n"}."""

import math
import re
from collections.abc import Mapping
from typing import Any

from finesight.errors import ConfigError
from finesight.metrics.kinds import Kind, kind

Entry = Mapping[str, Any]

LABELS = {
    "nll": "negative log-likelihood",
    "expected_calibration_error": "expected calibration error",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "f1": "F1",
    "generated_accuracy": "accuracy on repainted source images",
    "mse": "MSE",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "negative_elbo": "negative ELBO",
    "reconstruction_nats": "reconstruction (nats)",
    "kl": "KL divergence",
    "objective": "training objective",
    "auroc": "AUROC",
    **{f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)},
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "meteor": "METEOR",
    "bertscore_precision": "BERTScore precision",
    "bertscore_recall": "BERTScore recall",
    "bertscore_f1": "BERTScore F1",
}

VALIDATORS = ("generated_accuracy", "target_information", "adaptation_score", "oracle_accuracy")
"""Shares that validate a run on two domains: no metrics of a split, but shown like them."""


def label(name: str) -> str:
    """A metric's name for people: 'top_5_accuracy' -> 'top 5 accuracy', 'masked_psnr' -> 'PSNR on masked patches'."""
    if name.startswith("masked_") and unit(name) is not None:
        return f"{label(name.removeprefix('masked_'))} on masked patches"
    return LABELS.get(name, name.replace("_", " "))


def title(name: str) -> str:
    """The name with its unit where neither it nor `number` shows one: 'KL divergence (nats)'."""
    known, called = unit(name), label(name)
    silent = known is not None and known.unit in ("nats", "squared intensity") and known.unit not in called
    return f"{called} ({known.unit})" if known is not None and silent else called


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


def direction(name: str) -> str:
    """Which end is better, and the unit where the values are no shares and have one: 'lower, in nats'."""
    known = unit(name)
    if known is None:
        return ""
    better = "higher" if known.higher_is_better else "lower"
    return better if known.unit in ("fraction", "index") else f"{better}, in {known.unit}"


def main_metric(scores: Mapping[str, Entry]) -> str | None:
    """The metric of the headline: accuracy, or the first there is."""
    return "accuracy" if "accuracy" in scores else next(iter(scores), None)


def is_share(name: str) -> bool:
    known = unit(name)
    return known is not None and known.unit == "fraction"


NOTHING = 1e-7
"""Shares below are shown as 0: what a smoothing constant leaves of a BLEU without a match."""


def percent(value: float, n: int | None = None) -> str:
    """A share as percent: one decimal, two from 2,000 samples on, and more where rounding would claim 0 or 100 %."""
    return f"{_rounded(value, 100, 1 if n is None or n < 2000 else 2)} %"


def _rounded(share: float, scale: int, digits: int) -> str:
    """`scale` times the share, with more digits where rounding would claim all or nothing."""
    share = share if abs(share) >= NOTHING else 0.0
    while share not in (0.0, 1.0) and float(f"{scale * share:.{digits}f}") in (0.0, scale) and digits < 8:
        digits += 1
    return f"{scale * share:.{digits}f}"


def number(name: str, value: float | None, n: int | None = None) -> str:
    """One value of a metric, with its unit where that is % or dB; an em dash for None.

    AUROC stands as it is used to be read: between 0 and 1.
    """
    if value is None:
        return "—"
    if name == "auroc":
        return _rounded(value, 1, 3)
    if is_share(name):
        return percent(value, n)
    return f"{value:,.{_digits(name, value)}f}{_suffix(name)}".replace("-", "−")


def difference(name: str, value: float | None, of: float | None = None) -> str:
    """A signed difference: percentage points for shares, else in the metric's own unit, with the digits of `of`."""
    if value is None:
        return "—"
    if is_share(name):
        return f"{100 * value:+.1f}".replace("-", "−")
    digits = _digits(name, value if of is None else of)
    return f"{value:+,.{digits}f}{_suffix(name)}".replace("-", "−")


def _digits(name: str, value: float) -> int:
    """Decimals of a value that is no share."""
    known = unit(name)
    if known is not None and known.unit == "dB":
        return 2
    return 1 if known is not None and known.unit == "nats" and abs(value) > 100 else 4


def _suffix(name: str) -> str:
    known = unit(name)
    return " dB" if known is not None and known.unit == "dB" else ""


def interval(name: str, entry: Entry) -> str:
    """'96.9 to 99.4 %', or an em dash where there is none."""
    if entry.get("low") is None or entry.get("high") is None:
        return "—"
    low, high = (number(name, entry[end], entry.get("n")) for end in ("low", "high"))
    return f"{low.removesuffix(' %').removesuffix(' dB')} to {high}"


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
