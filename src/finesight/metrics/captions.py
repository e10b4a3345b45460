"""Scores of captions against references: BLEU, ROUGE, CIDEr-D and METEOR, with intervals and a signature.

BLEU, ROUGE-L and CIDEr-D are those of COCO's evaluation (`pycocoevalcap`), ROUGE-1 and ROUGE-2 those of
`rouge-score` on the same tokens. Report 000 printed BLEU 0 beside ROUGE 0.942: un-nested references and
padding left in the text do such things. The first is refused, the rest is found by `contradictions`.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finesight import __version__
from finesight.metrics import caption_meteor, caption_ngrams, ptb, wordnet
from finesight.metrics.bootstrap import Floats, intervals
from finesight.metrics.caption_inputs import check_texts, in_order
from finesight.metrics.caption_ngrams import ORDER
from finesight.metrics.caption_rouge import BETA, rouge_l

if TYPE_CHECKING:
    from finesight.metrics.bertscore import BertScore

BLEU = tuple(f"bleu_{order}" for order in range(1, ORDER + 1))
MEANS = ("rouge_1", "rouge_2", "rouge_l", "cider")

_TINY, _SMALL = 1e-15, 1e-9
"""What `pycocoevalcap` adds above and below the line, so that no precision is 0 / 0."""

# As exact as Python's own floats: NumPy's may differ in the last bit from one processor to the next.
_exponential = np.vectorize(math.exp, otypes=[np.float64])
_power = np.vectorize(math.pow, otypes=[np.float64])


class CaptionStatistics:
    """BLEU-1 to 4, ROUGE-1, 2 and L, CIDEr-D and METEOR as a table of per-sample statistics and its reduction.

    All are fractions but `cider`, from 0 to 10; more is better. A sample is one caption and a list of
    references; an empty caption scores 0.

    - `bleu_1` … `bleu_4`: of the corpus, from summed clipped counts and lengths, against the reference
      length closest to the caption's (Papineni et al. 2002). No mean over samples.
    - `rouge_1`, `rouge_2`: mean F1 of words and of pairs of words with the best reference, no stemming.
    - `rouge_l`: mean F of the longest common subsequence, beta 1.2, from the largest precision and the
      largest recall of all references (Lin 2004).
    - `cider`: mean CIDEr-D, n from 1 to 4, sigma 6 (Vedantam et al. 2015). How rare an n-gram is depends on
      all references of one call of `statistics`, so a split is given whole, never in batches, and
      resamples keep these frequencies. Of a single sample it is 0: nothing is rare in one document.
    - `meteor`: of the corpus as in METEOR 1.5, from summed matches and chunks; see `caption_meteor`.
      With a local WordNet (see `wordnet.local`) synonyms match; `signature` says which it was.

    `tokenize` puts texts through `ptb.tokenize`; without it they are split at spaces. `meteor=False` leaves
    METEOR out, the slowest of them. No score is a loss: where one is asked for, `cider` stands.
    """

    loss = "cider"

    def __init__(self, tokenize: bool = True, meteor: bool = True) -> None:
        self.tokenize = tokenize
        self.meteor = caption_meteor.Meteor(wordnet.local()) if meteor else None
        self.names = (*BLEU, *MEANS, *(["meteor"] if meteor else []))
        self.columns = 14 + (caption_meteor.COLUMNS if meteor else 0)

    @property
    def signature(self) -> str:
        """What the scores are, in words: variants, tokeniser and version."""
        parts = [
            "bleu (corpus, closest length)",
            "rouge_1, rouge_2 (F1, best reference)",
            f"rouge_l (beta {BETA})",
            f"cider (CIDEr-D, sigma {caption_ngrams.SIGMA:g}, frequencies of these references)",
        ]
        if self.meteor:
            known = self.meteor.wordnet
            parts.append(f"meteor (exact+stem+synonym, WordNet {known.version})" if known else "meteor (exact+stem)")
        parts.append(f"tokens {ptb.NAME if self.tokenize else 'as given'}")
        return "; ".join([*parts, f"finesight {__version__}"])

    def statistics(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
        """Table float64 [N, 20] of N captions and their lists of references, one or more each; [N, 14] without METEOR.

        Columns: one; matched n-grams (4), n-grams (4); closest length; ROUGE-1, 2, L; CIDEr; METEOR's.
        Raises `DataError` with all that is wrong: other lengths, no list, an empty list, no text.
        """
        captions, texts = list(predictions), list(references)
        check_texts(captions, texts)
        words = ptb.tokenize if self.tokenize else str.split
        candidates = [words(text) for text in captions]
        lists = [[words(text) for text in found] for found in texts]
        corpus = caption_ngrams.Corpus(candidates, lists)
        found = caption_ngrams.overlaps(corpus)
        columns: list[Any] = [
            np.ones(corpus.samples),
            found.clipped,
            found.guessed,
            caption_ngrams.closest_lengths(corpus),
            caption_ngrams.rouge_n(corpus, found.shared, 1),
            caption_ngrams.rouge_n(corpus, found.shared, 2),
            rouge_l(candidates, lists),
            caption_ngrams.cider(corpus, found.cosine),
        ]
        if self.meteor:
            columns += [[self.meteor.statistics(*pair) for pair in zip(candidates, lists, strict=True)]]
        return np.column_stack(columns)

    def reduce(self, total: Floats) -> dict[str, NDArray[Any]]:
        """Scores [...] by name, from sums [..., 20] of rows of `statistics`, or [..., 14] without METEOR."""
        clipped, guessed, closest = total[..., 1 : 1 + ORDER], total[..., 1 + ORDER : 1 + 2 * ORDER], total[..., 9]
        ratio = np.minimum((guessed[..., 0] + _TINY) / (closest + _SMALL), 1)
        brevity = _exponential(1 - 1 / ratio)
        scores: dict[str, NDArray[Any]] = {}
        product = np.ones_like(closest)
        for order, name in enumerate(BLEU, start=1):
            product = product * ((clipped[..., order - 1] + _TINY) / (guessed[..., order - 1] + _SMALL))
            scores[name] = _power(product, 1 / order) * brevity
        with np.errstate(invalid="ignore"):
            for index, name in enumerate(MEANS, start=10):
                scores[name] = total[..., index] / total[..., 0]
        if self.meteor:
            scores["meteor"] = caption_meteor.score(total[..., 14:])
        return scores


def score(
    candidates: Mapping[Any, str],
    references: Mapping[Any, Sequence[str]],
    tokenize: bool = True,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    groups: Mapping[Any, Any] | None = None,
    bertscore: "BertScore | None" = None,
) -> dict[str, Any]:
    """{"bleu_1": {"value", "low", "high", "n"}, …, "meteor": {…}, "signature": text}: scores with intervals.

    `candidates` {id: caption} and `references` {id: [reference, …]} have the same ids; `groups` {id: group}
    names samples that share an origin. Which score is what: `CaptionStatistics`; intervals and the other
    arguments: `bootstrap.intervals`. With `bertscore`, a `bertscore.BertScore`, its three scores stand beside them,
    of the texts as given. The signature says variants, tokeniser, version and counts.

    Raises `DataError` with all that is wrong: ids that one side lacks, a reference that is no list (a text
    would be read letter by letter), an empty list, None, blank references.
    """
    captions, lists, of_sample = in_order(candidates, references, groups)
    metric = CaptionStatistics(tokenize)
    table = metric.statistics(captions, lists)
    drawn: dict[str, Any] = {"groups": of_sample, "resamples": resamples, "seed": seed, "level": level}
    found: dict[str, Any] = intervals(metric, table, **drawn)
    signature = metric.signature
    if bertscore is not None:
        found |= intervals(bertscore, bertscore.statistics(captions, lists), **drawn)
        signature += f"; {bertscore.signature}"
    return {**found, "signature": f"{signature}; {_counts(table, lists)}"}


def contradictions(scores: Mapping[str, Any]) -> list[str]:
    """Sentences about scores that cannot stand together, none where all is well.

    `scores` {name: value, or {"value": …}}; other names and None are left out. Scores outside their
    range, longer n-grams that match better than shorter ones, and BLEU near 0 beside high others.
    """
    values = {
        name: float(value)
        for name, entry in scores.items()
        if (value := entry.get("value") if isinstance(entry, Mapping) else entry) is not None
        and isinstance(value, (int, float, np.number))
    }
    found = [
        f"{name} is {values[name]:.3g}, outside 0 to {most}: it is a percentage, or was not computed. "
        "Divide by 100, or score again."
        for name, most in [*((name, 1) for name in (*BLEU, "rouge_1", "rouge_2", "rouge_l", "meteor")), ("cider", 10)]
        if name in values and not -1e-9 <= values[name] <= most + 1e-9
    ]
    for shorter, longer in [*pairwise(BLEU), ("bleu_1", "bleu_4"), ("rouge_1", "rouge_2")]:
        if values.get(longer, -math.inf) > values.get(shorter, math.inf) + 1e-9:
            found.append(
                f"{longer} is {values[longer]:.3g}, above {shorter} with {values[shorter]:.3g}: a long match holds the "
                "short ones, so only captions of a word or two could do this. Look at the captions."
            )
    found += _without_bleu(values)
    low = [name for name in ("rouge_1", "rouge_l") if values.get(name, 1) < 0.05]
    if values.get("bleu_1", 0) > 0.5 and low:
        found.append(
            f"bleu_1 is {values['bleu_1']:.3g} beside {low[0]} {values[low[0]]:.3g}: both count the words that "
            "captions and references share. Score both on the same captions, tokens and references."
        )
    return found


def _without_bleu(values: Mapping[str, float]) -> list[str]:
    """BLEU near 0 beside scores that say the captions are good."""
    for bleu, reason in (
        ("bleu_1", "no word of the captions is in a reference"),
        ("bleu_4", "no four words in a row are in a reference, which good captions have unless all are shorter"),
    ):
        high = [
            f"{name} {values[name]:.3g}"
            for name, limit in (("rouge_1", 0.5), ("rouge_l", 0.5), ("rouge_2", 0.5), ("meteor", 0.5), ("cider", 2))
            if values.get(name, 0) > limit
        ]
        if values.get(bleu, 1) < 0.01 and high:
            return [
                f"{bleu} is {values[bleu]:.3g} beside {', '.join(high)}: by BLEU {reason}. Check that references are "
                "lists of texts, and that padding and special tokens are not part of the texts."
            ]
    return []


def _counts(table: Floats, lists: Sequence[Sequence[str]]) -> str:
    each = sorted({len(found) for found in lists})
    empty = int((table[:, 1 + ORDER] == 0).sum())
    number = f"{each[0]} to {each[-1]}" if len(each) > 1 else f"{each[0]}"
    return f"samples {len(lists)}; references {number}" + (f"; empty captions {empty}" if empty else "")
