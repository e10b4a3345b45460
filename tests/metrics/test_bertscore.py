"""BERTScore: parity with the authors' package, closed forms, what it is a function of, and models that are refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finesight.errors import ConfigError, DataError, ModelError
from finesight.metrics import bertscore as module
from finesight.metrics.bertscore import NAMES, BertScore
from finesight.metrics.bootstrap import intervals, paired, total
from finesight.metrics.captions import score
from finesight.metrics.kinds import kind
from finesight.models import tokenizers

WORDS = (
    "a an the in on of with and is are two three small large red blue dog dogs cat cats car cars bird man woman child "
    "runs sits stands plays near grass street water tree chest x ray shows opacity left right lung ##s ##ing . ,"
)
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
CAPTIONS = ["a dog runs on the grass", "two cats sits near the tree .", "the chest x ray shows opacity", "red car",
            "a man"]  # fmt: skip
REFERENCES = [
    ["the dogs runs on grass"],
    ["a cat sits near a tree", "two small cats near the tree", "birds"],
    ["chest x ray shows a small opacity of the left lung , right"],
    ["a large blue bird with a woman", "cars"],
    ["a man", "the man stands"],
]


def filled(model: Any) -> Any:
    """Weights that are a function of their names, so that stored numbers outlive versions of libraries."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = 0.3 * np.random.default_rng(list(name.encode())).standard_normal(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(drawn + 1 if name.endswith("LayerNorm.weight") else drawn))
    return model.eval()


def save_bert(folder: Path, **changed: Any) -> Path:
    """A small BERT with the words above."""
    from transformers import BertConfig, BertModel

    options = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
               "max_position_embeddings": 24, "vocab_size": len(VOCABULARY)}  # fmt: skip
    filled(BertModel(BertConfig(**(options | changed)))).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


# ---- the numbers --------------------------------------------------------------------------------

BY_AUTHORS = {
    False: [[0.876638, 0.865125, 0.870844], [0.946992, 0.947013, 0.947002], [0.859594, 0.784564, 0.820367],
            [0.84638, 0.899528, 0.872145], [1.0, 1.0, 1.0]],
    True: [[0.873451, 0.860981, 0.867171], [0.948663, 0.951756, 0.950207], [0.854781, 0.775426, 0.813172],
           [0.84638, 0.900283, 0.872499], [1.0, 1.0, 1.0]],
}  # fmt: skip
"""What bert-score 0.3.13 gives for these texts and layer 2 of this model, the best of the references of each."""


@pytest.mark.parametrize("idf", [False, True])
def test_scores_are_those_of_the_authors_package(bert: Path, idf: bool) -> None:
    found = BertScore(bert, 2, idf).statistics(CAPTIONS, REFERENCES)
    assert found[:, 0].tolist() == [1] * 5
    np.testing.assert_allclose(found[:, 1:], BY_AUTHORS[idf], atol=2e-6)


def one_hot(folder: Path) -> Path:
    """A BERT whose layer 0 knows nothing but which word stands there: unequal words have the cosine -1 / (D - 1)."""
    from transformers import BertModel

    size = len(VOCABULARY)
    save_bert(folder, hidden_size=size + size % 2)
    model = BertModel.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.embeddings.parameters():
            parameter.zero_()
        model.embeddings.word_embeddings.weight.copy_(torch.eye(size, size + size % 2))
        model.embeddings.LayerNorm.weight.fill_(1)
    model.save_pretrained(folder)
    return folder


def test_matching_is_greedy_by_cosine_and_ends_do_not_count(tmp_path: Path) -> None:
    metric = BertScore(one_hot(tmp_path / "bert"), 0)
    other = -1 / (metric.model.config.hidden_size - 1)
    rows = metric.statistics(["a dog a car", "red"], [["dog dog blue"], ["red", "a red bird"]])
    precision, recall = (1 + 3 * other) / 4, (2 + other) / 3  # "dog" is matched by both, "a" by nothing
    np.testing.assert_allclose(rows[0, 1:3], [precision, recall], atol=1e-6)
    assert rows[0, 3] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-6)
    np.testing.assert_allclose(rows[1, 1:], 1, atol=1e-6)


def test_idf_weighs_by_the_share_of_references_that_hold_a_token(tmp_path: Path) -> None:
    metric = BertScore(one_hot(tmp_path / "bert"), 0, idf=True)
    other = -1 / (metric.model.config.hidden_size - 1)
    rows = metric.statistics(["a dog", "cat"], [["a cat", "a a bird"], ["the cat"]])
    of_a, of_new = np.log(4 / 3), np.log(4 / 1)  # "a" is in two of three references, "dog" in none
    assert rows[0, 1] == pytest.approx((of_a + of_new * other) / (of_a + of_new), abs=1e-6)
    everywhere = metric.statistics(["a"], [["a"]])  # what all references hold weighs nothing
    assert everywhere[0].tolist() == [1, 0, 0, 0]


def test_the_best_reference_counts_for_each_score_on_its_own(tmp_path: Path) -> None:
    metric = BertScore(one_hot(tmp_path / "bert"), 0)
    texts = ["birds", "a dog", "a large red dog runs with a man on the street"]
    each = np.stack([metric.statistics(["a dog runs"], [[text]])[0, 1:] for text in texts])
    assert each.argmax(0).tolist()[:2] == [2, 1]
    np.testing.assert_allclose(metric.statistics(["a dog runs"], [texts])[0, 1:], each.max(0), atol=1e-6)


def test_an_empty_caption_scores_nothing_and_blank_references_are_refused(bert: Path) -> None:
    metric = BertScore(bert, 2)
    assert metric.statistics(["", "  "], [["a dog"], ["a cat"]])[:, 1:].tolist() == [[0, 0, 0]] * 2
    for references in ([[" "]], ["a dog"], [[]]):
        with pytest.raises(DataError):
            metric.statistics(["a dog"], references)


# ---- what they are a function of ------------------------------------------------------------------


def test_references_are_encoded_once_and_the_bits_do_not_depend_on_what_was_asked_before(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric, encoded = BertScore(bert, 2, batch_size=3), []
    encode = metric._encoded
    monkeypatch.setattr(metric, "_encoded", lambda texts: encoded.append(list(texts)) or encode(texts))
    first = metric.statistics(CAPTIONS, REFERENCES)
    metric.statistics(CAPTIONS[::-1], REFERENCES)
    metric.statistics(["a dog"], [["a dog"]])
    again = metric.statistics(CAPTIONS, REFERENCES)
    assert (first == again).all()
    assert (BertScore(bert, 2, batch_size=3).statistics(CAPTIONS, REFERENCES) == first).all()
    assert sum(len(texts) > 1 and "birds" in texts for texts in encoded) == 1


def test_the_memory_of_references_is_bounded(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 2500)  # 32 numbers of 4 bytes for each token
    metric = BertScore(bert, 2)
    for caption in CAPTIONS:
        metric.statistics([caption], [[caption, "a dog runs on the grass near the tree"]])
    assert len(metric._kept) == 1
    assert CAPTIONS[-1] in next(iter(metric._kept.values()))


def test_neither_batches_nor_blocks_change_the_scores(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = BertScore(bert, 3).statistics(CAPTIONS, REFERENCES)
    monkeypatch.setattr(module, "BLOCK", 2)
    found = BertScore(bert, 3, batch_size=1).statistics(CAPTIONS, REFERENCES)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_loading_draws_nothing(bert: Path) -> None:
    before = torch.random.get_rng_state()
    BertScore(bert, 2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_long_texts_are_cut_at_the_models_longest_input(bert: Path) -> None:
    metric = BertScore(bert, 2)
    long = " ".join(["a dog runs on the grass"] * 20)
    assert {len(ids) for ids in metric._tokens([long])} == {24}
    np.testing.assert_allclose(metric.statistics([long], [[long]])[0, 1:], 1, atol=1e-6)


def test_intervals_pairing_and_the_scores_beside_the_others(bert: Path) -> None:
    metric = BertScore(bert, 2)
    assert all(kind(name) == ("index", True) for name in NAMES)
    table = metric.statistics(CAPTIONS, REFERENCES)
    assert metric.reduce(total(table))["bertscore_f1"] == pytest.approx(np.mean(table[:, 3]))
    worse = metric.statistics(CAPTIONS[::-1], REFERENCES)
    difference = paired(metric, worse, table, resamples=200)["bertscore_f1"]
    assert difference["difference"] == pytest.approx(np.mean(table[:, 3] - worse[:, 3]))
    written, truth = dict(enumerate(CAPTIONS)), dict(enumerate(REFERENCES))
    plain, found = score(written, truth, resamples=50), score(written, truth, resamples=50, bertscore=metric)
    assert {name: found[name] for name in plain if name != "signature"} == {
        name: entry for name, entry in plain.items() if name != "signature"
    }
    assert found["bertscore_f1"] == intervals(metric, table, resamples=50)["bertscore_f1"]
    assert metric.signature in found["signature"]
    assert "bertscore" not in plain["signature"]


def test_the_signature_names_weights_layer_and_weighting(bert: Path, tmp_path: Path) -> None:
    signature = BertScore(bert, 2).signature
    assert signature.startswith("bertscore (bert ")
    assert "layer 2/3, no idf, not rescaled" in signature
    assert "idf of these references" in BertScore(bert, 2, idf=True).signature
    assert BertScore(bert, 2).signature == signature
    moved = shutil.copytree(bert, tmp_path / "elsewhere" / "bert")
    assert BertScore(moved, 2).signature == signature
    other = save_bert(tmp_path / "bert", hidden_size=16)
    assert BertScore(other, 2).signature != signature


# ---- models ---------------------------------------------------------------------------------------


def test_the_layer_is_the_published_one_or_three_quarters_of_the_way_up(tmp_path: Path) -> None:
    named = save_bert(tmp_path / "distilbert-base-uncased", num_hidden_layers=6)
    assert BertScore(named).layer == 5
    assert BertScore(save_bert(tmp_path / "own", num_hidden_layers=4)).layer == 3
    assert len(BertScore(named, 2).model.encoder.layer) == 2
    with pytest.raises(ConfigError, match="bertscore_layer 7: .* has 6 layers; give 0 to 6"):
        BertScore(named, 7)


def test_heads_and_an_absent_pooler_do_not_matter_but_a_lost_layer_does(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(bert / "model.safetensors")
    without = {name: tensor for name, tensor in state.items() if "pooler" not in name}
    for folder, tensors in (("headed", without | {"cls.bias": torch.zeros(3)}), ("broken", dict(without))):
        shutil.copytree(bert, tmp_path / folder)
        if folder == "broken":
            del tensors["encoder.layer.1.output.dense.weight"]
        save_file(tensors, tmp_path / folder / "model.safetensors", metadata={"format": "pt"})
    expected = BertScore(bert, 2).statistics(CAPTIONS, REFERENCES)
    headed = BertScore(tmp_path / "headed", 2)
    assert (headed.statistics(CAPTIONS, REFERENCES) == expected).all()
    assert headed.signature == BertScore(tmp_path / "headed", 2).signature  # the pooler is random each time
    with pytest.raises(ModelError, match="would stay random: encoder.layer.1.output.dense.weight"):
        BertScore(tmp_path / "broken", 2)
    assert BertScore(tmp_path / "broken", 1).layer == 1  # what is above the layer is not read


def test_a_byte_level_tokenizer_reads_the_first_word_like_the_others(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import RobertaConfig, RobertaModel

    made = tokenizers.train(["a dog runs", "the dog runs on the grass", "dog"], 320)
    made.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"})
    ends = [(token, made.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    made.save_pretrained(tmp_path)
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(
        **options, vocab_size=len(made), max_position_embeddings=18, pad_token_id=made.pad_token_id, type_vocab_size=1
    )
    config.pad_token_id = 1  # as RoBERTa's, from which places are counted
    filled(RobertaModel(config)).save_pretrained(tmp_path)
    metric = BertScore(tmp_path, 1)
    (first,), (second,) = metric._tokens(["dog"]), metric._tokens(["a dog"])
    assert first[1:-1] == second[-1 - len(first[1:-1]) : -1]
    assert len(metric._tokens([""])[0]) == 2
    long = " ".join(["dog"] * 40)
    assert len(metric._tokens([long])[0]) == 16
    np.testing.assert_allclose(metric.statistics([long], [[long]])[0, 1:], 1, atol=1e-6)


def spoil(folder: Path, what: str) -> None:
    if what == "auto_map":
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | {"auto_map": {"AutoModel": "own.Model"}}))
    elif what == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif what == "no tokenizer":
        (folder / "vocab.txt").unlink()
    elif what == "gpt2":
        shutil.rmtree(folder)
        from tests.models.test_captioner import save_gpt2

        save_gpt2(folder)
    elif what == "vit":
        shutil.rmtree(folder)
        from tests.models.test_captioner import save_vit

        save_vit(folder)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("auto_map", "would run Python code"),
        ("pickle", "opening a pickle can run code"),
        ("no tokenizer", "holds no tokenizer"),
        ("gpt2", "no tokens for both ends"),
        ("vit", "reads no text"),
    ],
)
def test_other_models_are_refused(bert: Path, tmp_path: Path, what: str, said: str) -> None:
    folder = shutil.copytree(bert, tmp_path / "bert")
    spoil(folder, what)
    with pytest.raises(ModelError, match=said) as caught:
        BertScore(folder)
    assert not re.search(r"model\.(name|pretrained|revision|tokenizer)", str(caught.value))


def test_a_name_that_is_no_folder_is_told() -> None:
    with pytest.raises(ModelError, match=r"evaluation\.bertscore './nowhere/bert': no such folder"):
        BertScore("./nowhere/bert")
    with pytest.raises(ModelError, match=r"give --evaluation\.bertscore FOLDER"):
        BertScore("nobody-knows/this-encoder")
