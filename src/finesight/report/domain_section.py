"""The section of a report on a run between two domains: every split, and the choice of the epoch."""

from typing import Any

from finesight.report.contents import Contents
from finesight.report.domain_charts import oracle_epoch

WHAT = {
    "test": "target test: no part in training or in choosing the epoch",
    "target_train": "target training images: transductive, trained on without their labels",
    "source_test": "source test",
    "validation": "source validation: part of what picked the epoch, optimistic",
}


def section(found: Contents) -> dict[str, Any] | None:
    """Rows of the splits and sentences on the choice of the epoch; None for a run within one domain."""
    if not {"source_test", "target_train"} & set(found.metrics):
        return None
    method = found.config.get("method")
    what = dict(WHAT)
    if method == "target-only":
        what |= {
            "target_train": "target training and validation images: trained on with their labels",
            "validation": "target validation: picked the epoch, optimistic",
        }
    if "source_test" not in found.metrics:
        what["test"] = "source test; the target has no labels"
    rows = [{"what": text, "scores": found.metrics[split]} for split, text in what.items() if split in found.metrics]
    return {"rows": rows, "sentences": _choice(found), "labelled": "source_test" in found.metrics}


def _choice(found: Contents) -> list[str]:
    """Which epoch was kept and why, and which one the target's labels would have chosen."""
    kept = next((row for row in reversed(found.history) if row.get("best")), None)
    if kept is None:
        return []
    by = (found.run.get("selection") or {}).get("metric", "")
    value = kept["validation"].get(by)
    sentences = [
        f"Epoch {kept['epoch']} of {len(found.history)} was kept, by {by.replace('_', ' ')}"
        + ("." if value is None else f": {value:.4f}.")
    ]
    oracle, own = oracle_epoch(found.history), kept["validation"].get("oracle_accuracy")
    if oracle is not None and own is not None:
        sentences.append(
            f"The oracle, which sees the target's test labels, would have taken epoch {oracle[0]}: {oracle[1]:.2%} "
            f"instead of {own:.2%}, a gap of {100 * (oracle[1] - own):.2f} points. It is shown to judge the "
            "validator, and was never used."
        )
    return sentences
