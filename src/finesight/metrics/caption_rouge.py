"""ROUGE-L of captions: longest common subsequences by the bits of integers."""

from collections.abc import Sequence

import numpy as np

from finesight.metrics.bootstrap import Floats

BETA = 1.2
"""How much more recall weighs than precision, as in COCO's evaluation."""


def rouge_l(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Floats:
    """ROUGE-L [N] in [0, 1] as `pycocoevalcap` has it: largest precision and largest recall of all references.

    Lin 2004, with beta 1.2. The two may come from different references. 0 of an empty candidate.
    """
    return np.array([_best(candidate, texts) for candidate, texts in zip(candidates, references, strict=True)])


def _best(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    bits: dict[str, int] = {}
    for position, word in enumerate(candidate):
        bits[word] = bits.get(word, 0) | 1 << position
    size = len(candidate)
    precision = recall = 0.0
    for reference in references:
        common = _common(bits, size, reference)
        if common:
            precision, recall = max(precision, common / size), max(recall, common / len(reference))
    if recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(bits: dict[str, int], size: int, reference: Sequence[str]) -> int:
    """Length of the longest common subsequence (Hyyrö 2004): a zero bit for each word that is in it.

    `bits` has the positions of each word of a text of `size` words.
    """
    full = (1 << size) - 1
    row = full
    for word in reference:
        if positions := bits.get(word):
            kept = row & positions
            row = (row + kept) | (row - kept)
    return size - (row & full).bit_count()
