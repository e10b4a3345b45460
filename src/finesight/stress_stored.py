"""A finished run on the adversarial images that another run's stress test stored."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from finesight import surrogates
from finesight.attacks import stored
from finesight.attacks.bench import Bench
from finesight.attacks.config import AttackConfig
from finesight.attacks.scores import interval_entries
from finesight.errors import DataError
from finesight.run_folder import RunFolder


def measured_on(
    folder: RunFolder, task: Any, found: stored.StoredSet, file: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary, and the columns of the table of samples."""
    unknown = [name for name in found.classes if name not in task.classes]
    if unknown:
        raise DataError(
            f"{file}: has classes that this run does not know: {', '.join(unknown[:8])}. It knows "
            f"{', '.join(task.classes[:12])}; both runs need the same class names."
        )
    labels = np.array([task.classes.index(name) for name in found.classes], dtype=np.int64)[found.labels]
    bench = Bench(surrogates.pixel_model(task), found.images, labels, found.ids, AttackConfig(), bf16=task.engine.bf16)
    since = time.monotonic()
    bench.record("stored", "stored", bench.everything, bench.over("stored", bench.everything, lambda x, *_: x), since)
    own, alarms = _own_of_stored(folder, task, found)
    if own is not None:
        bench.record("clean", "clean", bench.everything, own.argmax(1), since)
    evaluation = task.config.evaluation
    groups = np.asarray(found.groups) if len(set(found.groups)) < len(found.groups) else None
    entries = interval_entries(
        bench.conditions, labels, groups, resamples=evaluation.resamples, seed=task.config.seed, level=evaluation.level
    )
    summary = {
        "format": stored.FORMAT,
        "file": file,
        "source": found.about,
        "accuracy": entries["stored"]["accuracy"],
        "clean": entries["clean"]["accuracy"] if own is not None else None,
        "alarms": alarms,
    }
    said = bench.conditions["stored"].predictions
    rows = {
        "id": found.ids,
        "group": found.groups,
        "reference": [task.classes[label] for label in labels],
        "prediction": [task.classes[label] for label in said],
    }
    return summary, rows


def _own_of_stored(
    folder: RunFolder, task: Any, found: stored.StoredSet
) -> tuple[NDArray[np.float64] | None, list[str]]:
    """What the run gave the stored images without the attack, None where they are not all its own; and alarms."""
    own, alarms, data = own_probabilities(folder, found.ids), [], folder.recorded("data")
    stamps = data.get("fingerprint"), data.get("fingerprints", {}).get("test")
    theirs = found.about.get("data") or {}
    same = [a == b for a, b in zip(stamps, (theirs.get("fingerprint"), theirs.get("test")), strict=True) if a and b]
    if own is None:
        alarms.append(
            "Not all of the stored images are in this run's test split: it may have been trained on some of them, and "
            "its accuracy without the attack is not known."
        )
    elif not any(same):
        own = None
        alarms.append(
            "The stored images have the names of this run's test images, but were made from other data (another "
            "fingerprint): it may have been trained on some of them, and its accuracy without the attack is not known."
        )
    size = task.held_size
    if found.images.shape[-1] != size:
        alarms.append(
            f"The stored images are {found.images.shape[-1]} pixels wide, and this run holds its own at {size}: it "
            "sees them at another resolution, so the two accuracies differ by more than the attack."
        )
    return own, alarms


def lines(summary: Mapping[str, Any]) -> list[str]:
    from finesight.report import numbers

    def text(entry: Mapping[str, Any] | None) -> str:
        if entry is None:
            return "not known"
        value = numbers.number("accuracy", entry["value"], entry["n"])
        return f"{value} (interval {numbers.interval('accuracy', entry)}, n = {entry['n']:,})"

    source = summary["source"]
    return [
        f"Images of {source['model']['name']}: {source['attack']}",
        f"Accuracy on them: {text(summary['accuracy'])}",
        f"Accuracy on the same images without the attack: {text(summary['clean'])}",
        *(f"ALARM: {alarm}" for alarm in summary["alarms"]),
    ]


def own_probabilities(folder: RunFolder, ids: Sequence[str]) -> NDArray[np.float64] | None:
    """What the run gave test images, [N, C], from predictions.parquet; None where one of them is not there."""
    if not folder.predictions.is_file():
        return None
    rows = pq.read_table(folder.predictions, columns=["id", "scores"], filters=[("split", "==", "test")])
    known = dict(zip(*(rows.column(name).to_pylist() for name in ("id", "scores")), strict=True))
    return np.array([known[name] for name in ids]) if all(name in known for name in ids) else None
