"""What the report says of a run on two domains: its splits by their domains, and the epoch the oracle would pick."""

from collections.abc import Mapping
from typing import Any

from finesight.report import numbers
from finesight.report.contents import Contents
from finesight.report.oracle import Oracle, kept_epoch, oracle

ORDER = ("test", "target_train", "source_test", "validation")
SHOWN = ("accuracy", "macro_f1", "expected_calibration_error")


def of_two_domains(found: Contents) -> bool:
    """Whether the run has splits of two domains."""
    extra = set(found.metrics) - {"test", "validation", "baselines"}
    return bool(extra & set(ORDER)) or found.run.get("task") == "domain-adaptation"


def split_names(*, labelled: bool, supervised: bool) -> dict[str, str]:
    """What each split is called: with its domain. `labelled`: the target has labels; `supervised`: to learn from."""
    first = "target" if supervised else "source"
    return {
        "train": f"{first} train",
        "validation": f"{first} validation",
        "target_train": "target train",
        "source_test": "source test",
        "test": "target test" if labelled else "source test",
    }


def names(found: Contents) -> dict[str, str]:
    """The name of every split for this run: with its domain where there are two."""
    if not of_two_domains(found):
        return {split: split for split in ("train", "validation", "test")}
    return split_names(labelled=_labelled(found), supervised=_method(found) == "target-only")


def _labelled(found: Contents) -> bool:
    counts = (found.run.get("data") or {}).get("counts") or {}
    return "source_test" in found.metrics or "source_test" in counts


def _method(found: Contents) -> str | None:
    return found.config.get("method")


def _data(found: Contents) -> dict[str, Any]:
    return found.config.get("data") or {}


def section(found: Contents) -> dict[str, Any] | None:
    """The section "Domains"; None for a run on one domain."""
    if not of_two_domains(found):
        return None
    called, about = names(found), _descriptions(found)
    rows = [
        {"name": called[split], "about": about[split], "scores": [found.metrics[split].get(name) for name in SHOWN]}
        for split in ORDER
        if found.metrics.get(split)
    ]
    return {
        "rows": rows,
        "columns": SHOWN,
        "labelled": _labelled(found),
        "method": _method(found),
        "lost": _lost(found),
        "sentences": choice(found),
    }


def _descriptions(found: Contents) -> dict[str, str]:
    method = _method(found)
    if method == "target-only":
        trained = "target training images: the model learnt from most of them with their labels"
        validation = "target validation (picked the epoch), with labels"
    else:
        used = "the images were trained on without labels" if method in ("pixelda", "dann") else "not trained on"
        trained = f"target training images: transductive, {used}"
        if method == "source-only":
            trained = "target training images: the model never saw them"
        validation = "source validation (picked the epoch)"
    if _labelled(found):
        made = _data(found).get("backgrounds") and not _data(found).get("target")
        test = "target test, never used for training or selection"
        test += ": made from the source's test digits and other photographs" if made else ""
    else:
        test = "source test: the target has no labels"
    return {"test": test, "target_train": trained, "source_test": "source test", "validation": validation}


def _lost(found: Contents) -> float | None:
    """Accuracy on the source test minus that on the target test, as a share."""
    source, target = (
        ((found.metrics.get(split) or {}).get("accuracy") or {}).get("value") for split in ("source_test", "test")
    )
    return None if source is None or target is None else float(source - target)


def choice(found: Contents) -> list[str]:
    """Which epoch was kept by what, which one the target's labels would have picked, and the gap."""
    run, selection = found.run, found.run.get("selection") or {}
    kept = run.get("best_epoch") or kept_epoch(found.history)
    if kept is None:
        return ["No epoch was kept yet."]
    chosen = selection.get("metric") or (found.config.get("train") or {}).get("select")
    value = selection.get("value")
    sentence = f"Epoch {kept} of {run.get('epochs') or len(found.history)} was kept"
    if chosen:
        sentence += f" by {numbers.label(chosen)}" + (f": {numbers.number(chosen, value)}" if value is not None else "")
    n = max((entry.get("n") or 0 for entry in (found.metrics.get("test") or {}).values()), default=None)
    known = oracle(found.history, kept)
    if known is None:
        return [f"{sentence}.", "What the target's labels would have picked is not known."]
    return [f"{sentence}.", oracle_sentence(known, n)]


def oracle_sentence(known: Oracle, n: int | None) -> str:
    """Both accuracies on the target test and the gap in points."""
    ours, best = numbers.percent(known.kept_accuracy, n), numbers.percent(known.best_accuracy, n)
    who = "The oracle (target test labels, never used)"
    if known.best == known.kept:
        return f"{who} would have picked the same epoch, with {ours} on the target test."
    return (
        f"{who} would have picked epoch {known.best}: {best} on the target test "
        f"instead of {ours}, a gap of {100 * known.gap:.1f} points."
    )


def data_counts(counts: Mapping[str, Mapping[str, int]], called: Mapping[str, str]) -> list[dict[str, Any]]:
    """Columns of the data table; `unlabelled` where no image of a split has a class."""
    return [
        {
            "name": called.get(split, split.replace("_", " ")),
            "unlabelled": bool(numbers_) and not sum(numbers_.values()),
        }
        for split, numbers_ in counts.items()
    ]
