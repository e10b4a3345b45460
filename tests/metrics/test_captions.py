"""Caption scores: parity with COCO's and Google's scorers, what sums do, what is refused, what contradicts itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

from finesight import __version__
from finesight.errors import DataError
from finesight.metrics import captions, wordnet
from finesight.metrics.bootstrap import intervals, paired, total
from finesight.metrics.caption_rouge import rouge_l
from finesight.metrics.captions import CaptionStatistics, contradictions, score
from finesight.metrics.kinds import kind

NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "cider", "meteor")
Texts = tuple[dict[str, str], dict[str, list[str]]]


@pytest.fixture(autouse=True)
def no_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of a machine without WordNet, whatever this one has."""
    monkeypatch.setattr(wordnet, "local", lambda: None)


@pytest.fixture(scope="session")
def coco(real_data: Path) -> Texts:
    """500 generated captions and their five or six references, tokenised."""
    folder = real_data / "caption_metrics"
    references = json.loads((folder / "gts.json").read_text())
    written = json.loads((folder / "res.json").read_text())
    return {name: texts[0] for name, texts in written.items()}, references


@pytest.fixture(scope="session")
def coco_table(coco: Texts) -> np.ndarray:
    metric = CaptionStatistics(tokenize=False, meteor=False)
    return metric.statistics(list(coco[0].values()), [coco[1][name] for name in coco[0]])


def by_coco(candidates: dict[str, str], references: dict[str, list[str]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Scores, and scores per caption, of `pycocoevalcap`."""
    written = {name: [text] for name, text in candidates.items()}
    truth = {name: references[name] for name in candidates}
    bleu, bleus = Bleu(4).compute_score(truth, written, verbose=0)
    rouge, rouges = Rouge().compute_score(truth, written)
    cider, ciders = Cider().compute_score(truth, written)
    return (
        {**{f"bleu_{order}": value for order, value in enumerate(bleu, 1)}, "rouge_l": rouge, "cider": cider},
        {"bleu_4": np.array(bleus[3]), "rouge_l": rouges, "cider": ciders},
    )


def random_texts(seed: int, samples: int, words: str = "a b c d e", longest: int = 9) -> Texts:
    generator = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(generator.choice(words.split(), generator.integers(1, longest)))

    names = [f"n{row}" for row in range(samples)]
    return (
        {name: text() for name in names},
        {name: [text() for _ in range(generator.integers(1, 5))] for name in names},
    )


def test_scores_are_those_of_coco(coco: Texts) -> None:
    candidates, references = coco
    found = score(candidates, references, tokenize=False, resamples=10)
    expected, _ = by_coco(candidates, references)
    for order in range(1, 5):
        assert found[f"bleu_{order}"]["value"] == expected[f"bleu_{order}"], order
    assert found["rouge_l"]["value"] == pytest.approx(expected["rouge_l"], abs=1e-9)
    assert found["cider"]["value"] == pytest.approx(expected["cider"], abs=1e-9)
    assert expected["bleu_4"] > 0.15
    assert expected["cider"] > 0.5


def test_each_caption_scores_as_at_coco(coco: Texts, coco_table: np.ndarray) -> None:
    _, expected = by_coco(*coco)
    rows = CaptionStatistics(meteor=False).reduce(coco_table)
    for name, values in expected.items():
        assert rows[name] == pytest.approx(values, abs=1e-9), name


@pytest.mark.parametrize("seed", range(8))
def test_small_vocabularies_with_many_repetitions_score_as_at_coco(seed: int) -> None:
    candidates, references = random_texts(seed, 30)
    found = score(candidates, references, tokenize=False, resamples=2)
    for name, value in by_coco(candidates, references)[0].items():
        assert found[name]["value"] == pytest.approx(value, rel=1e-12, abs=1e-15), name


class Spaces:
    """The tokeniser of `rouge-score` replaced: words are what stands between spaces."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def test_rouge_1_and_2_are_those_of_rouge_score_on_the_same_tokens(coco: Texts) -> None:
    candidates, references = coco
    peer = RougeScorer(["rouge1", "rouge2"], tokenizer=Spaces())
    each = [peer.score_multi(references[name], text) for name, text in candidates.items()]
    found = score(candidates, references, tokenize=False, resamples=2)
    for name, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2")):
        assert found[name]["value"] == pytest.approx(np.mean([one[theirs].fmeasure for one in each]), abs=1e-12)


def test_scores_by_hand() -> None:
    # Three of four words, two of three pairs, one of two triples, no four: lengths 4 and 5.
    found = score({1: "a b c x"}, {1: ["a b c d e"]}, tokenize=False)
    brevity = np.exp(1 - 5 / 4)
    assert found["bleu_1"]["value"] == pytest.approx(3 / 4 * brevity)
    assert found["bleu_2"]["value"] == pytest.approx((3 / 4 * 2 / 3) ** (1 / 2) * brevity)
    assert found["bleu_3"]["value"] == pytest.approx((3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3) * brevity)
    assert found["bleu_4"]["value"] < 1e-3
    assert found["rouge_1"]["value"] == pytest.approx(2 * 3 / 9)
    assert found["rouge_2"]["value"] == pytest.approx(2 * 2 / 7)
    assert found["rouge_l"]["value"] == pytest.approx(2.44 * (3 / 4) * (3 / 5) / (3 / 5 + 1.44 * 3 / 4))
    # Nothing is rare in one document.
    assert found["cider"]["value"] == 0


def test_the_closest_length_is_the_shorter_of_two_as_near() -> None:
    found = score({1: "a b c d"}, {1: ["a b c d e", "a b c"]}, tokenize=False)
    assert found["bleu_1"]["value"] == pytest.approx(1, abs=1e-8)
    found = score({1: "a b c d"}, {1: ["a b c d e", "a b"]}, tokenize=False)
    assert found["bleu_1"]["value"] == pytest.approx(np.exp(1 - 5 / 4))


def test_rouge_l_takes_precision_and_recall_from_different_references() -> None:
    found = rouge_l([["a", "b", "c"]], [[["a", "b", "c", "d", "e", "f"], ["a"]]])
    assert found == pytest.approx([1.0])
    assert rouge_l([["a", "b", "c"]], [[["c", "b", "a"]]]) == pytest.approx([1 / 3])


def longest_common(first: list[str], second: list[str]) -> int:
    table = np.zeros((len(first) + 1, len(second) + 1), int)
    for row, word in enumerate(first):
        for column, other in enumerate(second):
            longer = max(table[row, column + 1], table[row + 1, column])
            table[row + 1, column + 1] = table[row, column] + 1 if word == other else longer
    return int(table[-1, -1])


def test_longest_common_subsequences_of_texts_longer_than_a_machine_word() -> None:
    generator = np.random.default_rng(0)
    for size, words in ((70, 3), (200, 40), (130, 2)):
        first, second = (list(map(str, generator.integers(words, size=size + extra))) for extra in (0, 9))
        common = longest_common(first, second)
        precision, recall = common / len(first), common / len(second)
        expected = 2.44 * precision * recall / (recall + 1.44 * precision)
        assert rouge_l([first], [[second]]) == pytest.approx([expected], rel=1e-12)


def test_scores_are_functions_of_sums(coco: Texts, coco_table: np.ndarray) -> None:
    candidates, references = coco
    metric = CaptionStatistics(tokenize=False, meteor=False)
    chosen = list(range(0, 500, 3))
    names = [list(candidates)[row] for row in chosen]
    found = metric.reduce(total(coco_table[chosen]))
    expected, _ = by_coco({name: candidates[name] for name in names}, references)
    for order in range(1, 5):
        assert found[f"bleu_{order}"] == expected[f"bleu_{order}"]
    assert found["rouge_l"] == pytest.approx(expected["rouge_l"], abs=1e-12)
    # CIDEr keeps the document frequencies of all 500; those of the part are others.
    assert abs(found["cider"] - expected["cider"]) > 1e-3
    parts = total(coco_table[:200]) + total(coco_table[200:])
    assert parts[:10] == pytest.approx(total(coco_table)[:10], abs=0)


def test_scores_do_not_depend_on_the_order_of_samples_or_references(coco: Texts) -> None:
    candidates, references = ({name: side[name] for name in list(side)[:60]} for side in coco)
    found = score(candidates, references, resamples=2)
    turned = score(candidates, {name: texts[::-1] for name, texts in list(references.items())[::-1]}, resamples=2)
    for name in NAMES:
        assert turned[name]["value"] == pytest.approx(found[name]["value"], rel=1e-12), name


def test_texts_are_tokenised_unless_said_otherwise() -> None:
    written, truth = {1: "A dog's bone.", 2: "The U.S. flag"}, {1: ['"a dog \'s bone"'], 2: ["the u.s. flag!"]}
    assert score(written, truth)["rouge_1"]["value"] == 1
    assert score(written, truth, tokenize=False)["rouge_1"]["value"] < 0.5


def test_the_result_has_the_stable_names_intervals_and_a_signature(coco: Texts) -> None:
    candidates, references = ({name: side[name] for name in list(side)[:100]} for side in coco)
    found = score(candidates, references, False, resamples=200, seed=3)
    assert tuple(found) == (*NAMES, "signature")
    for name in NAMES:
        assert set(found[name]) == {"value", "low", "high", "n"}
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
        assert found[name]["n"] == 100
        assert kind(name) == ("index" if name == "cider" else "fraction", True)
    for said in (
        "bleu (corpus, closest length)",
        "cider (CIDEr-D, sigma 6, frequencies of these references)",
        "meteor (exact+stem);",
        "tokens as given",
        f"finesight {__version__}",
        "samples 100; references 5",
    ):
        assert said in found["signature"]
    assert "tokens ptb-coco" in score({1: "a"}, {1: ["a"]})["signature"]


def test_intervals_are_the_bootstrap_of_the_table_and_know_groups(coco: Texts) -> None:
    candidates, references = ({name: side[name] for name in list(side)[:80]} for side in coco)
    found = score(candidates, references, False, resamples=300, seed=5, level=0.9)
    metric = CaptionStatistics(tokenize=False)
    table = metric.statistics(list(candidates.values()), list(references.values()))
    assert {name: found[name] for name in NAMES} == intervals(metric, table, resamples=300, seed=5, level=0.9)
    # The same picture eight times, as one group: intervals as wide as those of one copy.
    copies = {(name, copy): candidates[name] for name in candidates for copy in range(8)}
    truth = {key: references[key[0]] for key in copies}
    width = {}
    for what, groups in (("alone", None), ("grouped", {key: key[0] for key in copies})):
        bleu = score(copies, truth, False, resamples=300, groups=groups)["bleu_1"]
        width[what] = bleu["high"] - bleu["low"]
    assert width["grouped"] > 2 * width["alone"]


def test_two_systems_can_be_compared_in_pairs(coco: Texts) -> None:
    metric = CaptionStatistics(tokenize=False, meteor=False)
    written, truth = list(coco[0].values())[:150], [coco[1][name] for name in coco[0]][:150]
    worse = [" ".join(text.split()[:-3]) for text in written]
    tables = [metric.statistics(texts, truth) for texts in (worse, written)]
    found = paired(metric, *tables, resamples=200)
    assert found["bleu_4"]["difference"] > 0.02
    assert found["cider"]["low"] > 0


def test_empty_captions_are_allowed_score_0_and_are_counted() -> None:
    found = score({1: "", 2: " . "}, {1: ["a dog"], 2: ["a cat", "one cat"]})
    assert all(found[name]["value"] == 0 for name in NAMES)
    assert "empty captions 2" in found["signature"]
    assert "references 1 to 2" in found["signature"]
    half = score({1: "", 2: "a cat sits on a mat"}, {1: ["a dog"], 2: ["a cat sits on a mat"]})
    assert half["rouge_l"]["value"] == pytest.approx(0.5)
    assert half["bleu_1"]["value"] < 1


def test_padding_left_in_the_texts_raises_rouge(coco: Texts) -> None:
    candidates, references = ({name: side[name] for name in list(side)[:100]} for side in coco)

    def padded(text: str) -> str:
        return " ".join([*text.split(), *["<pad>"] * 40][:40])

    right = score(candidates, references, False, resamples=2)
    wrong = score(
        {name: padded(text) for name, text in candidates.items()},
        {name: [padded(text) for text in texts] for name, texts in references.items()},
        False,
        resamples=2,
    )
    assert right["rouge_l"]["value"] < 0.45
    assert wrong["rouge_l"]["value"] > 0.75


def test_references_that_are_not_nested_are_refused_where_the_peer_scores_letters(coco: Texts) -> None:
    candidates, references = ({name: side[name] for name in list(side)[:20]} for side in coco)
    flat: Any = {name: texts[0] for name, texts in references.items()}
    with pytest.raises(DataError, match="20 samples have one text where a list of references is needed"):
        score(candidates, flat)
    lettered, _ = by_coco(candidates, {name: list(text) for name, text in flat.items()})
    assert lettered["bleu_4"] < 1e-3 < score(candidates, references, False)["bleu_4"]["value"]


def test_the_mean_of_sentence_bleu_is_another_number(coco: Texts, coco_table: np.ndarray) -> None:
    metric = CaptionStatistics(meteor=False)
    assert abs(metric.reduce(coco_table)["bleu_4"].mean() - metric.reduce(total(coco_table))["bleu_4"]) > 0.02


def test_cider_by_batches_is_another_number(coco: Texts, coco_table: np.ndarray) -> None:
    metric = CaptionStatistics(tokenize=False, meteor=False)
    written, truth = list(coco[0].values()), [coco[1][name] for name in coco[0]]
    batches = [metric.statistics(written[at : at + 50], truth[at : at + 50]) for at in range(0, 500, 50)]
    whole, parts = metric.reduce(total(coco_table)), metric.reduce(sum(total(batch) for batch in batches))
    assert parts["bleu_4"] == whole["bleu_4"]
    assert abs(parts["cider"] - whole["cider"]) > 0.01


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"bleu_1": 0, "rouge_l": 0.942}, "bleu_1 is 0 beside rouge_l 0.942"),
        ({"bleu_4": 0.0, "meteor": 0.735, "cider": 8.44}, "bleu_4 is 0 beside meteor 0.735, cider 8.44"),
        ({"bleu_1": 0.2, "bleu_4": 0.3}, "bleu_4 is 0.3, above bleu_1 with 0.2"),
        ({"bleu_2": 0.2, "bleu_3": 0.3}, "bleu_3 is 0.3, above bleu_2 with 0.2"),
        ({"rouge_1": 0.2, "rouge_2": 0.3}, "rouge_2 is 0.3, above rouge_1 with 0.2"),
        ({"rouge_1": 42.0}, "rouge_1 is 42, outside 0 to 1"),
        ({"cider": -0.1}, "cider is -0.1, outside 0 to 10"),
        ({"bleu_1": 0.7, "rouge_1": 0.01}, "bleu_1 is 0.7 beside rouge_1 0.01"),
    ],
)
def test_scores_that_contradict_each_other_are_named(scores: dict[str, float], said: str) -> None:
    for form in (scores, {name: {"value": value, "low": None} for name, value in scores.items()}):
        found = contradictions(form)
        assert [sentence.startswith(said) for sentence in found] == [True], found


def test_the_scores_of_report_000_contradict_each_other_and_real_ones_do_not(coco: Texts) -> None:
    report = {"bleu_1": 0.0, "bleu_4": 0.0, "cider": 8.44, "rouge_l": 0.942, "meteor": 0.735}
    assert len(contradictions(report)) == 1
    candidates, references = coco
    found = score(candidates, references, False, resamples=2)
    assert contradictions(found) == []
    assert contradictions({"nll": 3.0, "bleu_1": None, "signature": "bleu"}) == []
    perfect = {name: texts[0] for name, texts in references.items()}
    assert contradictions(score(perfect, references, False, resamples=2)) == []
    bad = dict.fromkeys(references, "zebra zebra")
    assert contradictions(score(bad, references, False, resamples=2)) == []


def test_metrics_of_captions_are_the_names_of_the_score() -> None:
    assert CaptionStatistics().names == NAMES
    assert CaptionStatistics(meteor=False).names == NAMES[:-1] == (*captions.BLEU, *captions.MEANS)
