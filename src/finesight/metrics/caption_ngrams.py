"""What n-gram scores count, for all captions at once: words as integers, n-grams as ranks of integers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from finesight.metrics.bootstrap import Floats

ORDER = 4
"""Longest n-gram of BLEU and CIDEr."""

SIGMA = 6.0
"""Standard deviation of CIDEr-D's penalty for a difference in length, in words."""

Indices = NDArray[np.int64]


@dataclass
class Corpus:
    """Captions of N samples and all their references, as integers.

    Captions 0 to N - 1 are the candidates, the others the references, sample by sample; `owner` [M] names
    the sample of each reference.
    """

    candidates: Sequence[Sequence[str]]
    references: Sequence[Sequence[Sequence[str]]]
    samples: int = field(init=False)
    owner: Indices = field(init=False)
    lengths: Indices = field(init=False)
    words: Indices = field(init=False)
    of_word: Indices = field(init=False)

    def __post_init__(self) -> None:
        self.samples = len(self.candidates)
        texts = [*self.candidates, *(text for texts in self.references for text in texts)]
        self.owner = np.repeat(np.arange(self.samples), [len(texts) for texts in self.references])
        self.lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        known: dict[str, int] = {}
        flat = [known.setdefault(word, len(known)) for text in texts for word in text]
        self.words = np.array(flat, np.int64)
        self.of_word = np.repeat(np.arange(len(texts)), self.lengths)


@dataclass(frozen=True)
class Overlaps:
    """Statistics of n-grams: of each sample, BLEU's counts; of each pair of candidate and reference, the rest.

    `clipped` and `guessed` float64 [N, 4]; `shared` float64 [M, 2], words and pairs of words in both texts;
    `cosine` float64 [M, 4], CIDEr's similarity before the penalty for length.
    """

    clipped: Floats
    guessed: Floats
    shared: Floats
    cosine: Floats


def overlaps(corpus: Corpus) -> Overlaps:
    """All n-gram statistics of a corpus, n from 1 to 4; CIDEr's document frequencies are those of its references."""
    samples, pairs = corpus.samples, len(corpus.owner)
    clipped, cosine, shared = np.zeros((samples, ORDER)), np.zeros((pairs, ORDER)), np.zeros((pairs, 2))
    grams, of_gram, begins = corpus.words, corpus.of_word, np.arange(len(corpus.words))
    for order in range(1, ORDER + 1):
        if order > 1:
            # An n-gram is the rank of its first n - 1 words, followed by one word more.
            inside = np.flatnonzero(begins + order - 1 < len(corpus.words))
            inside = inside[corpus.of_word[begins[inside] + order - 1] == of_gram[inside]]
            begins, of_gram = begins[inside], of_gram[inside]
            keys = grams[inside] * (corpus.words.max(initial=0) + 1) + corpus.words[begins + order - 1]
            _, grams = np.unique(keys, return_inverse=True)
        text, gram, count = _counted(of_gram, grams)
        found, other = _matched(text, gram, corpus)
        least = np.minimum(count[found], count[other])
        reference = text[other] - samples
        if order <= 2:
            shared[:, order - 1] = np.bincount(reference, least, pairs)
        most = np.zeros(len(text))
        np.maximum.at(most, found, least)
        clipped[:, order - 1] = np.bincount(text, most, len(corpus.lengths))[:samples]
        weight = _inverse_frequencies(text, gram, corpus)
        squares = weight * weight
        norm = np.sqrt(np.bincount(text, count * count * squares[gram], len(corpus.lengths)))
        product = np.bincount(reference, least * count[other] * squares[gram[found]], pairs)
        norms = norm[corpus.owner] * norm[samples:]
        cosine[:, order - 1] = np.divide(product, norms, out=np.zeros(pairs), where=norms > 0)
    guessed = np.maximum(corpus.lengths[:samples, None] - np.arange(ORDER), 0).astype(np.float64)
    return Overlaps(clipped, guessed, shared, cosine)


def cider(corpus: Corpus, cosine: Floats) -> Floats:
    """CIDEr-D [N] of each sample, 0 to 10: Vedantam et al. 2015, as `pycocoevalcap` computes it."""
    # There the length of a caption is its number of pairs of words.
    length = np.maximum(corpus.lengths - 1, 0)
    difference = length[corpus.owner] - length[corpus.samples :]
    each = cosine.mean(axis=1) * np.exp(-(difference**2) / (2 * SIGMA**2))
    return 10 * np.bincount(corpus.owner, each, corpus.samples) / np.bincount(corpus.owner, minlength=corpus.samples)


def closest_lengths(corpus: Corpus) -> Floats:
    """Length [N] of the reference nearest to the candidate in length, the shorter of two as near: BLEU's "closest"."""
    lengths = corpus.lengths[corpus.samples :]
    distance = np.abs(lengths - corpus.lengths[corpus.owner])
    order = np.lexsort((lengths, distance, corpus.owner))
    first = np.searchsorted(corpus.owner, np.arange(corpus.samples))
    return lengths[order[first]].astype(np.float64)


def rouge_n(corpus: Corpus, shared: Floats, order: int) -> Floats:
    """ROUGE-N F1 [N], of the best reference: `rouge-score` without stemming, on the tokens given."""
    grams = np.maximum(corpus.lengths - order + 1, 0)
    both = (grams[corpus.owner] + grams[corpus.samples :]).astype(np.float64)
    f1 = np.divide(2 * shared[:, order - 1], both, out=np.zeros(len(both)), where=both > 0)
    return best_of(corpus, f1)


def best_of(corpus: Corpus, values: Floats) -> Floats:
    """The largest value [N] among the references of each sample."""
    return np.maximum.reduceat(values, np.searchsorted(corpus.owner, np.arange(corpus.samples)))


def _counted(of_gram: Indices, grams: Indices) -> tuple[Indices, Indices, Floats]:
    """Text, n-gram and count [U] of all n-grams of all texts, in order of text, then n-gram."""
    size = grams.max(initial=0) + 1
    keys = np.sort(of_gram * size + grams)
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    text, gram = np.divmod(keys[starts], size)
    return text, gram, np.diff(starts, append=len(keys)).astype(np.float64)


def _matched(text: Indices, gram: Indices, corpus: Corpus) -> tuple[Indices, Indices]:
    """Where an n-gram of a reference stands in its candidate too: positions [V] there, and here."""
    size = gram.max(initial=0) + 1
    split = np.searchsorted(text, corpus.samples)
    have = text[:split] * size + gram[:split]
    need = corpus.owner[text[split:] - corpus.samples] * size + gram[split:]
    at = np.searchsorted(have, need)
    if len(have) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    here = np.flatnonzero(have[np.minimum(at, len(have) - 1)] == need)
    return at[here], here + split


def _inverse_frequencies(text: Indices, gram: Indices, corpus: Corpus) -> Floats:
    """ln(samples / samples whose references have it) of each n-gram; of one that no reference has, ln(samples)."""
    size = gram.max(initial=0) + 1
    split = np.searchsorted(text, corpus.samples)
    holders = np.sort(corpus.owner[text[split:] - corpus.samples] * size + gram[split:])
    once = holders[np.flatnonzero(np.diff(holders, prepend=-1))] % size
    return np.log(float(corpus.samples)) - np.log(np.maximum(1.0, np.bincount(once, minlength=size)))
