"""What looks wrong with a domain adaptation run, in sentences that say what to do."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finesight.metrics.information import information
from finesight.report import inference
from finesight.report.domain_measures import diversity
from finesight.report.oracle import oracle

if TYPE_CHECKING:
    from finesight.tasks.domain_adaptation import DomainAdaptation

LARGEST_GAP = 0.05
"""Accuracy that choosing the epoch without labels may cost."""

LEAST_DIVERSITY = 0.01
"""Root mean squared difference over the noise, of the range [0, 1]."""

LARGEST_SHIFT = 0.25
"""Total variation distance between the classes predicted on the target and those of the source's training images."""

SURE, WRONG = 0.9, 0.8
REPAINTED = 500
"""Source validation images whose repainted versions are judged."""

LAST = 3
"""Final epochs over which the discriminator is judged."""


def from_task(task: "DomainAdaptation", metrics: Mapping[str, Any]) -> list[str]:
    """Alarms on the metrics, and on what the networks say of the target's training images."""
    found = [*_trivial(metrics), *_perfect(metrics, task.labelled_target)]
    if not task.labelled_target:
        found.append(
            "The accuracy on the target is unknown: it has no labels, and the test accuracy is the source's. Label a "
            "few hundred target images and give --data.target one folder per class: the labels only measure."
        )
    judged = inference.probabilities(task, task.held_out("judged").columns["image"])
    found += _predictions(task, judged)
    if task.config.method == "pixelda":
        spread = diversity(task, judged).mean
        if spread < LEAST_DIVERSITY:
            found.append(
                f"The generator ignores its noise: two paintings of one image differ by {100 * spread:.2g} % of the "
                f"range (less than {100 * LEAST_DIVERSITY:g} %). It is one fixed filter, not a set of styles; train "
                "longer, or raise pixelda.adversarial_weight or pixelda.noise."
            )
    return found


def from_history(history: Sequence[Mapping[str, Any]], kept: int | None) -> list[str]:
    """Alarms on what the epochs recorded: the oracle's gap, and an adversary that won or gave up."""
    found = []
    chosen = oracle(history, kept)
    if chosen is not None and chosen.gap > LARGEST_GAP:
        found.append(
            f"The kept epoch {chosen.kept} is {100 * chosen.gap:.1f} points below the best on the target test "
            f"({100 * chosen.kept_accuracy:.1f} % against {100 * chosen.best_accuracy:.1f} % in epoch {chosen.best}): "
            "what it was chosen by does not follow the target. Report the kept epoch: to choose anew because of this "
            "number would be to choose by the test labels."
        )
    told = _last(history, "told_apart")
    if told is not None and told > 0.99:
        found.append(
            f"The discriminator tells {100 * told:.1f} % of real and generated images apart in the last epochs: the "
            "generator lost and learns little from it. Lower pixelda.discriminator_weight or train.lr."
        )
    elif told is not None and told < 0.51:
        found.append(
            f"The discriminator tells nothing apart in the last epochs ({100 * told:.1f} %): either the generated "
            "images are perfect, or it stopped learning. Look at the repainted images; if they do not look like the "
            "target, raise pixelda.discriminator_weight."
        )
    domain = _last(history, "domain_accuracy")
    if domain is not None and domain > 0.99:
        found.append(
            f"The domain classifier tells {100 * domain:.1f} % of the features apart in the last epochs: they were not "
            "made alike. Train longer or with a higher train.lr, or use --method pixelda."
        )
    return found


def _trivial(metrics: Mapping[str, Any]) -> list[str]:
    test, found = metrics["test"]["accuracy"], []
    for name, splits in metrics["baselines"].items():
        trivial = splits["test"]["accuracy"]["value"]
        if (test["low"] if test["low"] is not None else test["value"]) <= trivial:
            worse = test["high"] is not None and test["high"] < trivial
            found.append(
                f"{'Worse than' if worse else 'Not clearly better than'} the trivial baseline '{name}': "
                f"{test['value']:.1%} against {trivial:.1%}. Compare with --method source-only, train longer, or look "
                "whether the classes of the two domains mean the same."
            )
    return found


def _perfect(metrics: Mapping[str, Any], labelled: bool) -> list[str]:
    test = metrics["test"]["accuracy"]
    if test["value"] < 1.0:
        return []
    whose = "target test" if labelled else "source test"
    return [
        f"Every one of the {test['n']:,} {whose} images is right. Before believing it, look whether copies of them are "
        "among the training images of either domain, with: finesight data check"
    ]


def _predictions(task: "DomainAdaptation", judged: NDArray[np.float64]) -> list[str]:
    """Alarms on the classes that the target's training images are given; their labels are not looked at."""
    found = []
    shares = np.bincount(judged.argmax(1), minlength=len(task.classes)) / len(judged)
    expected = np.bincount(task.labels["train"], minlength=len(task.classes)) / len(task.labels["train"])
    excess = shares - expected
    if np.abs(excess).sum() / 2 > LARGEST_SHIFT:
        most, least = int(excess.argmax()), int(excess.argmin())
        found.append(
            f"The predictions on the target collapse to few classes: {100 * shares[most]:.0f} % are given "
            f"'{task.classes[most]}' (source {100 * expected[most]:.0f} %), {100 * shares[least]:.0f} % "
            f"'{task.classes[least]}' (source {100 * expected[least]:.0f} %). Unless the target truly holds so many, "
            "do not trust the validators; try another seed, a lower train.lr, or another method."
        )
    if task.config.method == "pixelda":
        sure = information(judged)
        painted, labels = task.held_out("generated").columns, task.labels["generated"]
        rows = np.unique(np.linspace(0, len(labels) - 1, REPAINTED).astype(np.int64))
        with_noise = inference.painted_probabilities(task, painted["image"][rows], painted["noise"][rows])
        right = float((with_noise.argmax(1) == labels[rows]).mean())
        if sure > SURE and right < WRONG:
            found.append(
                f"Sure of the target (information {100 * sure:.0f} %) but right on only {100 * right:.0f} % of the "
                "repainted source images: the classifier may be confidently wrong. Raise pixelda.task_weight, or "
                "choose by --train.select generated_accuracy."
            )
    return found


def _last(history: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Mean of a training quantity over the last epochs; None where they do not hold it."""
    values = [(row.get("train") or {}).get(key) for row in history[-LAST:]]
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None
