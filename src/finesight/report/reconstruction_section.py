"""What the report says of a model that rebuilds images: the paired improvement, and how it tells anomalies.

Read from metrics.json: "improvement" {earlier state: {metric: {"a", "b", "difference", "low", "high", "p", "n"}}}, b
the trained model on the same test images and masks (`metrics.bootstrap.paired`); "anomaly" {score: its AUROC as
{"value", "low", "high", "n"}}, normal images being the test split; "anomalies" {metric: entry} on the anomalous ones.
"""

from collections.abc import Mapping
from typing import Any

from finesight.report import numbers
from finesight.report.contents import Contents

CHANCE = 0.5


def improvements(found: Contents) -> list[dict[str, Any]]:
    """The trained model beside each earlier state: rows of the table, and a sentence on the metric of the headline."""
    shown = []
    for earlier, pair in (found.metrics.get("improvement") or {}).items():
        rows = []
        for name, entry in pair.items():
            if "/" in name or entry.get("a") is None or entry.get("b") is None:
                continue  # of one class alone, or not defined for one of the two
            state, words = judged(name, entry)
            text = {"difference": difference(name, entry), "interval": difference_interval(name, entry)}
            rows.append({"name": name, "entry": entry, "state": state, "words": words, **text})
        main = numbers.main_metric(found.metrics.get("test") or pair)
        sentence = None
        if main is not None and main in pair:
            sentence = improvement_sentence(earlier, main, pair[main], found.level)
        shown.append({"earlier": earlier, "rows": rows, "sentence": sentence, "masks": any(map(_masked, pair))})
    return shown


def _masked(name: str) -> bool:
    return name.startswith("masked_")


def judged(name: str, entry: Mapping[str, Any]) -> tuple[str, str]:
    """('better' | 'worse' | 'unclear', words) for the trained model against its earlier state."""
    from finesight.report.comparison import judge  # at the top it would import this module in a circle

    state, words = judge(name, {"a": "the earlier state", "b": "this model"}, entry)
    return state, {"better": "clearly better", "worse": "clearly worse"}.get(state, words)


def difference(name: str, entry: Mapping[str, Any]) -> str:
    """'+3.21 dB', for shares '+3.2 points'; with the digits of the two values."""
    return _unit(name, _signed(name, entry, "difference"))


def difference_interval(name: str, entry: Mapping[str, Any]) -> str:
    """'+2.90 to +3.50 dB', or an em dash where there is none."""
    if entry.get("low") is None or entry.get("high") is None:
        return "—"
    low, high = (_signed(name, entry, end) for end in ("low", "high"))
    return f"{low.removesuffix(' dB')} to {_unit(name, high)}"


def _signed(name: str, entry: Mapping[str, Any], part: str) -> str:
    sides = [abs(entry[side]) for side in ("a", "b") if entry.get(side) is not None]
    return numbers.difference(name, entry.get(part), max(sides, default=None))


def _unit(name: str, text: str) -> str:
    return f"{text} points" if numbers.is_share(name) and text != "—" else text


def improvement_sentence(earlier: str, name: str, entry: Mapping[str, Any], level: float | None = None) -> str:
    """'PSNR on masked patches is clearly better than before training: +3.21 dB (95 % interval …, p = 0.002).'"""
    state, _ = judged(name, entry)
    said = {"better": "is clearly better than", "worse": "is clearly worse than"}
    verdict = said.get(state, "is not clearly different from")
    return f"{numbers.title(name)} {verdict} {earlier}: {paired(name, entry, level)}."


def paired(name: str, entry: Mapping[str, Any], level: float | None = None) -> str:
    """'+3.21 dB (95 % interval +2.90 to +3.50 dB, p = 0.002)'."""
    if entry.get("low") is None or entry.get("high") is None:
        return f"{difference(name, entry)} (too few samples for an interval)"
    kind = "interval" if level is None else f"{numbers.level_text(level)} interval"
    p = "" if entry.get("p") is None else f", p = {entry['p']:.3f}"
    return f"{difference(name, entry)} ({kind} {difference_interval(name, entry)}{p})"


def paired_verdict(found: Contents, baseline: str, name: str) -> tuple[str, str] | None:
    """State and words for the model beside a baseline that was paired with it, which says more than two intervals."""
    entry = ((found.metrics.get("improvement") or {}).get(baseline) or {}).get(name)
    if entry is None:
        return None
    if entry.get("low") is None or entry.get("high") is None:
        return "unclear", "cannot be told apart without intervals"
    state, _ = judged(name, entry)
    words = {
        "better": "clearly beaten: the paired difference leaves out zero",
        "worse": "better than the model: the paired difference leaves out zero",
    }
    return state, words.get(state, "not clearly beaten: the paired difference does not leave out zero")


def anomalies(found: Contents) -> dict[str, Any] | None:
    """AUROC of each score with what it shows, n of both sides, and the metrics of both; None where not measured."""
    scores = found.metrics.get("anomaly") or {}
    if not scores:
        return None
    normal, anomalous = (found.metrics.get(split) or {} for split in ("test", "anomalies"))
    return {
        "rows": [{"name": name, "entry": entry, **against_chance(entry)} for name, entry in scores.items()],
        "normal": _size(found, "test"),
        "anomalous": _size(found, "anomalies"),
        "metrics": [
            {"name": name, "normal": normal.get(name), "anomalous": entry}
            for name, entry in anomalous.items()
            if "/" not in name
        ],
    }


def _size(found: Contents, split: str) -> int | None:
    """Images of a split, by its metrics, or else by run.json."""
    measured = [entry.get("n") or 0 for entry in (found.metrics.get(split) or {}).values()]
    counts = ((found.run.get("data") or {}).get("counts") or {}).get(split) or {}
    return max(measured, default=0) or sum(counts.values()) or None


def against_chance(entry: Mapping[str, Any]) -> dict[str, str]:
    """State and words for an AUROC: clear where its interval leaves out one half."""
    if entry.get("low") is None or entry.get("high") is None:
        return {"state": "unclear", "words": "no interval"}
    if entry["low"] > CHANCE:
        return {"state": "better", "words": "clearly better than chance"}
    if entry["high"] < CHANCE:
        return {"state": "worse", "words": "clearly worse than chance: anomalies get the lower scores"}
    return {"state": "unclear", "words": "not clearly better than chance"}
