"""Accuracy under each condition with its interval, from what the model made of each image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesight.metrics import bootstrap
from finesight.metrics.means import MeanMetric


@dataclass(frozen=True)
class Condition:
    """What the model made of the images `rows` [M] under one condition: class numbers, int64 [M].

    kind: clean, noise, fgsm, pgd, steps, huge, transfer, auto, worst, corruption or stored; about: budget, steps,
    severity.
    """

    kind: str
    rows: NDArray[np.int64]
    predictions: NDArray[np.int64]
    seconds: float
    about: dict[str, Any]

    def correct(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of `rows` is right; labels: those of all images."""
        return self.predictions == labels[self.rows]

    def accuracy(self, labels: NDArray[np.int64]) -> float:
        return float(self.correct(labels).mean())


def interval_entries(
    conditions: Mapping[str, Condition], labels: NDArray[np.int64], groups: NDArray[Any] | None, **how: Any
) -> dict[str, dict[str, Any]]:
    """{condition: {"accuracy": {value, low, high, n}}}, in their order; `how` is resamples, seed and level.

    Conditions on the same images share their resamples. Whole groups are drawn where there are some.
    """
    together: dict[bytes, list[str]] = {}
    for name, condition in conditions.items():
        together.setdefault(condition.rows.tobytes(), []).append(name)
    found: dict[str, Any] = {}
    for names in together.values():
        rows = conditions[names[0]].rows
        right = np.stack([conditions[name].correct(labels) for name in names], axis=1)
        found |= _means(names, right, None if groups is None else groups[rows], **how)
    return {name: {"accuracy": found[name]} for name in conditions}


def mean_entries(
    conditions: Mapping[str, Condition], labels: NDArray[np.int64], groups: NDArray[Any] | None, **how: Any
) -> dict[str, Any]:
    """Means over corruptions, each {value, low, high, n}; {} where none was measured.

    accuracy: the mean over kinds and severities; mean_corruption_error: one less that, the mCE of Hendrycks &
    Dietterich (2019) without their division by AlexNet's errors; relative: how much of it the corruptions add to
    the error on clean images; by_kind and by_severity: accuracies.
    """
    corrupted = [c for c in conditions.values() if c.kind == "corruption"]
    if not corrupted:
        return {}
    right = np.stack([c.correct(labels) for c in corrupted], axis=1).astype(np.float64)
    kinds, severities = (np.array([c.about[key] for c in corrupted]) for key in ("corruption", "severity"))
    mean, clean = right.mean(1), conditions["clean"].correct(labels).astype(np.float64)
    columns = {"accuracy": mean, "mean_corruption_error": 1 - mean, "relative": clean - mean}
    columns |= {f"kind/{kind}": right[:, kinds == kind].mean(1) for kind in dict.fromkeys(kinds.tolist())}
    columns |= {f"severity/{level}": right[:, severities == level].mean(1) for level in sorted(set(severities))}
    found = _means(list(columns), np.stack(list(columns.values()), axis=1), groups, **how)
    result: dict[str, Any] = {name: found[name] for name in ("accuracy", "mean_corruption_error", "relative")}
    for part in ("kind", "severity"):
        result[f"by_{part}"] = {
            name.partition("/")[2]: entry for name, entry in found.items() if name.startswith(f"{part}/")
        }
    return result


def _means(names: list[str], values: NDArray[Any], groups: NDArray[Any] | None, **how: Any) -> dict[str, Any]:
    metric = MeanMetric(names, names[0])
    return bootstrap.intervals(metric, metric.statistics(values), groups=groups, **how)
