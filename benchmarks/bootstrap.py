"""Bootstrap intervals of a ten-class evaluation against the loop everybody writes with scikit-learn."""

import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as peer

from finesight.metrics.bootstrap import intervals
from finesight.metrics.classification import ClassificationMetric

SAMPLES, CLASSES, RESAMPLES = 10_000, 10, 1000
PEER_RESAMPLES, ROUNDS = 20, 5


def main() -> None:
    """Print how many times faster `intervals` is; both are measured in turn, table building counted.

    The peer draws indices and calls scikit-learn for the same scores but the calibration error, which
    it does not have; its time for 20 resamples is multiplied by 50.
    """
    probabilities, labels = _data()
    metric = ClassificationMetric([str(index) for index in range(CLASSES)])
    ours, theirs, ratios = [], [], []
    _ours(metric, probabilities, labels)
    _plain_loop(probabilities, labels, 1)
    for _ in range(ROUNDS):
        ours.append(_seconds(lambda: _ours(metric, probabilities, labels)))
        sample = _seconds(lambda: _plain_loop(probabilities, labels, PEER_RESAMPLES))
        theirs.append(sample * RESAMPLES / PEER_RESAMPLES)
        ratios.append(theirs[-1] / ours[-1])
    print(
        f"bootstrap, {RESAMPLES} resamples of {SAMPLES} samples, {CLASSES} classes: "
        f"{statistics.median(ratios):.0f}x a scikit-learn loop ({min(ratios):.0f}-{max(ratios):.0f}x over "
        f"{ROUNDS} rounds; {statistics.median(ours):.3f} s against {statistics.median(theirs):.1f} s, "
        f"the latter extrapolated from {PEER_RESAMPLES} resamples)"
    )


def _data() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    labels = generator.integers(CLASSES, size=SAMPLES)
    logits = 2 * generator.normal(size=(SAMPLES, CLASSES))
    logits[np.arange(SAMPLES), labels] += 3
    probabilities = np.exp(logits)
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def _ours(metric: ClassificationMetric, probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
    intervals(metric, metric.statistics(probabilities, labels), resamples=RESAMPLES)


def _plain_loop(probabilities: NDArray[np.float64], labels: NDArray[np.int64], resamples: int) -> None:
    generator = np.random.default_rng(0)
    predicted = probabilities.argmax(axis=1)
    every = np.arange(CLASSES)
    found = []
    for _ in range(resamples):
        draw = generator.integers(SAMPLES, size=SAMPLES)
        reference, guess, scores = labels[draw], predicted[draw], probabilities[draw]
        row = [
            peer.accuracy_score(reference, guess),
            peer.top_k_accuracy_score(reference, scores, k=5, labels=every),
            peer.log_loss(reference, scores, labels=every),
        ]
        for average in ("macro", "weighted", None):
            parts = peer.precision_recall_fscore_support(
                reference, guess, labels=every, average=average, zero_division=0
            )
            row.extend(np.concatenate([np.atleast_1d(part) for part in parts[:3]]))
        found.append(row)
    np.percentile(found, [2.5, 97.5], axis=0)


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
