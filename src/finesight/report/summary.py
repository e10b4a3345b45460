"""What the command line prints at the end of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from finesight.report import numbers, reconstruction_section
from finesight.report.oracle import oracle

SUMMARY_LINES = 8
"""Lines that alarms may fill up to; a run on two domains has more of other kinds."""

LEAST_ALARMS = 4

FURTHER = {"source_test": "Source test", "target_train": "Target training images"}


def summary_lines(
    metrics: Mapping[str, Any],
    run: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """Result with interval and n, further splits, baselines, improvement, AUROC, kept epoch, the oracle's, alarms.

    `config` is the content of config.yaml, which names the level of the intervals and the method, and
    `history` the rows of history.jsonl.
    """
    test = metrics.get("test") or {}
    name = numbers.main_metric(test)
    if name is None:
        return ["There are no test metrics."]
    level, method = ((config or {}).get("evaluation") or {}).get("level"), (config or {}).get("method")
    two = run.get("task") == "domain-adaptation" or any(split in metrics for split in FURTHER)
    title = (
        "Test" if not two else "Target test" if "source_test" in metrics else "Source test (the target has no labels)"
    )
    lines = [f"{title} {_summary(name, test[name], level)}"]
    validation = (metrics.get("validation") or {}).get(name)
    if validation is not None:
        whose = "Source validation" if method in ("pixelda", "dann", "source-only") else "Validation"
        chosen = ": it picked the epoch, so it is optimistic" if run.get("best_epoch") is not None else ""
        lines.append(f"{whose} {_summary(name, validation, level)}{chosen}")
    for split, called in FURTHER.items():
        if name in (metrics.get(split) or {}):
            aside = " (transductive)" if split == "target_train" and method in ("pixelda", "dann") else ""
            lines.append(f"{called}{aside} {_summary(name, metrics[split][name], level)}")
    for baseline, splits in (metrics.get("baselines") or {}).items():
        if name in (splits.get("test") or {}):
            lines.append(f"  Baseline, {baseline}: {_summary('', splits['test'][name], level, name)}")
    for earlier, pair in (metrics.get("improvement") or {}).items():
        if name in pair:
            lines.append(
                reconstruction_section.improvement_sentence(earlier, name, pair[name], level).removesuffix(".")
            )
    for scored, entry in (metrics.get("anomaly") or {}).items():
        lines.append(f"Anomalies by {numbers.label(scored)}: {_summary('auroc', entry, level)}; 0.5 is chance")
    if run.get("best_epoch") is not None:
        lines.append(f"Kept epoch {run['best_epoch']} of {run.get('epochs', '?')}")
    known = oracle(history, run.get("best_epoch"))
    if known is not None and known.best != known.kept:
        value = numbers.percent(known.best_accuracy, test[name].get("n"))
        lines.append(f"Oracle epoch {known.best} of {run.get('epochs', '?')} would have given {value} (never used)")
    return lines + _alarms(run, max(SUMMARY_LINES - len(lines), LEAST_ALARMS))


def _alarms(run: Mapping[str, Any], room: int) -> list[str]:
    alarms = list(run.get("alarms") or [])
    if len(alarms) > room:
        alarms = [*alarms[: room - 1], f"and {len(alarms) - room + 1} more, in the report"]
    return [f"ALARM: {alarm}" for alarm in alarms]


def _summary(shown_as: str, entry: Mapping[str, Any], level: float | None, name: str | None = None) -> str:
    name = name or shown_as
    title = f"{numbers.title(shown_as)} " if shown_as else ""
    value, n = numbers.number(name, entry["value"], entry["n"]), f"n = {entry['n']:,}"
    if entry.get("low") is None:
        return f"{title}{value} ({n}, too few for an interval)"
    if numbers.zero_width(entry):
        return f"{title}{value} ({n}; the interval has zero width, see the report)"
    kind = "interval" if level is None else f"{numbers.level_text(level)} interval"
    return f"{title}{value} ({kind} {numbers.interval(name, entry)}, {n})"
