"""METEOR of captions: words aligned one to one by form, stem and, where WordNet is there, synonym.

Parameters and weights are those that METEOR 1.5 publishes for English (Denkowski and Lavie 2014). Left
out are its table of paraphrases and its own tokenisation, which cuts words at hyphens and slashes. With
exact and stem matching, COCO's captions of plain letters score as in METEOR 1.5 with these two modules,
each of them; in long captions full of repetitions the two beams may end in different alignments.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from finesight.metrics.bootstrap import Floats
from finesight.metrics.stemmer import stem
from finesight.metrics.wordnet import WordNet

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
"""Weight of recall in the mean; exponent and weight of the penalty for chunks; weight of content words."""

EXACT, STEM, SYNONYM = 1.0, 0.6, 0.8
"""What a pair of words counts, by the first way in which they match."""

COLUMNS = 6
"""Statistics of a caption: matched weight and weight of the candidate, the same of the reference, matches, chunks."""

_FREQUENT = (
    "'s 't a about after all also an and are as at be been but by can could first for from had has have he her his i "
    "if in into is it its last more new no not of on one or other out over people s said she so some than that the "
    "their there they this time to two up was we were what when which who will with would year years you -lrb- -rrb- $"
)
FUNCTION_WORDS = frozenset(_FREQUENT.split())
"""What METEOR 1.5 calls function words: the English words more frequent than one in a thousand."""

_BEAM, _NEAR = 40, 6
KEPT = 128
"""Other words that a word remembers not to match."""

_Pair = tuple[int, int]
_Path = tuple[int, float, int, int, int, Any]
"""Words left out, lightness, chunks, distance, positions used as bits, (rest of the path, last pair): small is good."""

_rank = itemgetter(0, 1, 2, 3)


class _Matches(dict[str, float]):
    """Weight of a word with another, found when first asked for; all matches are kept, and some words without one."""

    def __init__(self, word: str, wordnet: WordNet | None) -> None:
        self.word = word
        self.wordnet = wordnet

    def __missing__(self, other: str) -> float:
        weight = 0.0
        if self.word == other:
            weight = EXACT
        elif stem(self.word) == stem(other):
            weight = STEM
        elif self.wordnet and not self.wordnet.synonyms(self.word).isdisjoint(self.wordnet.synonyms(other)):
            weight = SYNONYM
        if weight or len(self) < KEPT:
            self[other] = weight
        return weight


class Meteor:
    """Statistics of captions given as words. With `wordnet`, synonyms match too."""

    def __init__(self, wordnet: WordNet | None) -> None:
        self.wordnet = wordnet
        self._matches: dict[str, _Matches] = {}

    def statistics(self, candidate: Sequence[str], references: Iterable[Sequence[str]]) -> tuple[float, ...]:
        """`COLUMNS` numbers: those against the reference with the highest score, the first of equals."""
        best, highest = (0.0,) * COLUMNS, -1.0
        for reference in references:
            found = self._against(candidate, reference)
            value = _formula(*found) if found[-2] else 0.0
            if value > highest:
                best, highest = found, value
        return best

    def align(self, candidate: Sequence[str], reference: Sequence[str]) -> list[_Pair]:
        """Pairs of positions, in order of the candidate: most pairs, then most weight, fewest chunks, shortest way.

        At most 40 alignments are followed at once, as in METEOR 1.5, and of a word that the reference repeats more
        than 6 times the nearest: of a long caption full of repetitions the best can be missed.
        """
        return _align([self._row(word, reference) for word in candidate])

    def _row(self, word: str, reference: Sequence[str]) -> dict[int, float]:
        matches = self._matches.get(word)
        if matches is None:
            matches = self._matches[word] = _Matches(word, self.wordnet)
        return {to: weight for to, other in enumerate(reference) if (weight := matches[other])}

    def _against(self, candidate: Sequence[str], reference: Sequence[str]) -> tuple[float, ...]:
        rows = [self._row(word, reference) for word in candidate]
        of_candidate = of_reference = 0.0
        chunks, before = 0, (-2, -2)
        pairs = _align(rows)
        for at, to in pairs:
            of_candidate += rows[at][to] * _importance(candidate[at])
            of_reference += rows[at][to] * _importance(reference[to])
            chunks += before != (at - 1, to - 1)
            before = (at, to)
        if chunks == 1 and len(pairs) == len(candidate) == len(reference):
            chunks = 0
        return (
            of_candidate,
            sum(map(_importance, candidate)),
            of_reference,
            sum(map(_importance, reference)),
            len(pairs),
            chunks,
        )


def score(total: Floats) -> Floats:
    """METEOR [...] in [0, 1], from statistics or sums of them [..., `COLUMNS`]; 0 where nothing matches.

    Of a sum it is METEOR 1.5's system score, which COCO reports: not the mean of the captions' scores.
    """
    columns = np.moveaxis(np.asarray(total, np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(columns[4] > 0, _formula(*columns), 0.0)


def _formula(of_candidate: Any, candidate: Any, of_reference: Any, reference: Any, matches: Any, chunks: Any) -> Any:
    precision, recall = of_candidate / candidate, of_reference / reference
    mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    return mean * (1 - GAMMA * (chunks / matches) ** BETA)


def _importance(word: str) -> float:
    return 1 - DELTA if word in FUNCTION_WORDS else DELTA


def _align(rows: list[dict[int, float]]) -> list[_Pair]:
    """Pairs of the best alignment, from the weight by position of the reference for each word of the candidate."""
    wanted = [to for row in rows for to in row]
    contested = {to for to, times in Counter(wanted).items() if times > 1} if len(set(wanted)) < len(wanted) else set()
    paths: list[_Path] = [(0, 0.0, 0, 0, 0, None)]
    for at, row in enumerate(rows):
        if not row:
            continue
        nearest = sorted(row, key=lambda to: (-row[to], abs(at - to))) if len(row) > _NEAR else list(row)
        longer = [_extended(path, at, to, row[to]) for path in paths for to in _free(path, at, nearest)]
        if not contested.isdisjoint(row):
            longer += [(path[0] + 1, *path[1:]) for path in paths]
        if len(longer) > _BEAM:
            longer = sorted(longer, key=_rank)[:_BEAM]
        paths = longer
    pairs: list[_Pair] = []
    rest = min(paths, key=_rank)[-1]
    while rest:
        rest, pair = rest
        pairs.append(pair)
    return pairs[::-1]


def _free(path: _Path, at: int, nearest: list[int]) -> list[int]:
    """Positions of the reference that the path may take: the nearest few, and the one that goes on with its chunk."""
    used = path[4]
    free = [to for to in nearest if not used >> to & 1]
    if len(free) <= _NEAR:
        return free
    following = path[5][1][1] + 1 if path[5] and path[5][1][0] == at - 1 else -1
    return [*free[:_NEAR], following] if following in free[_NEAR:] else free[:_NEAR]


def _extended(path: _Path, at: int, to: int, weight: float) -> _Path:
    left_out, lightness, chunks, distance, used, rest = path
    begins = rest is None or rest[1] != (at - 1, to - 1)
    return left_out, lightness - weight, chunks + begins, distance + abs(at - to), used | 1 << to, (rest, (at, to))
