"""BLEU, ROUGE-L and CIDEr of 10,000 captions with 5 references each, against pycocoevalcap."""

import json
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from benchmarks.timing import interleaved, machine, ratio, test_data
from finesight.metrics.captions import CaptionStatistics

SAMPLES, REFERENCES, ROUNDS = 10_000, 5, 3


def main() -> None:
    """Print how many times faster the table of statistics and its scores are than three scorers of the peer.

    Both are given tokenised text, both split it at spaces. Ours counts ROUGE-1 and ROUGE-2 too; METEOR, whose
    peer is Java, and tokenisation are left out. The 500 images of the real data are repeated. The scores are
    compared before the times are.
    """
    folder = test_data()
    if folder is None:
        print("captions: FINESIGHT_TEST_DATA is not set, so there are no captions to score")
        return
    captions, references = _data(folder / "caption_metrics")
    _check(captions, references)
    ours, theirs = interleaved(lambda: _ours(captions, references), lambda: _theirs(captions, references), ROUNDS)
    print(
        f"captions, {SAMPLES} x {REFERENCES} references, BLEU + ROUGE-L + CIDEr: {ratio(ours, theirs)} as fast as "
        f"pycocoevalcap ({min(ours):.2f} s against {min(theirs):.1f} s at best; {machine()})"
    )


def _data(folder: Path) -> tuple[list[str], list[list[str]]]:
    references = json.loads((folder / "gts.json").read_text())
    captions = json.loads((folder / "res.json").read_text())
    names = list(references) * (SAMPLES // len(references))
    return [captions[name][0] for name in names], [references[name][:REFERENCES] for name in names]


def _ours(captions: list[str], references: list[list[str]]) -> dict[str, float]:
    metric = CaptionStatistics(tokenize=False, meteor=False)
    scores = metric.reduce(metric.statistics(captions, references).sum(axis=0))
    return {name: float(value) for name, value in scores.items()}


def _theirs(captions: list[str], references: list[list[str]]) -> dict[str, float]:
    truth = dict(enumerate(references))
    written = {index: [caption] for index, caption in enumerate(captions)}
    bleu, _ = Bleu(4).compute_score(truth, written, verbose=0)
    rouge, _ = Rouge().compute_score(truth, written)
    cider, _ = Cider().compute_score(truth, written)
    return {**{f"bleu_{order}": value for order, value in enumerate(bleu, 1)}, "rouge_l": rouge, "cider": cider}


def _check(captions: list[str], references: list[list[str]]) -> None:
    first = slice(500)
    ours, theirs = _ours(captions[first], references[first]), _theirs(captions[first], references[first])
    for name, value in theirs.items():
        assert np.isclose(ours[name], value, rtol=0, atol=1e-9), (name, ours[name], value)


if __name__ == "__main__":
    main()
