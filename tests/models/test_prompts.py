"""Prompts: the article, vectors as in transformers, the ensemble, the cache, tokenizers that do not fit."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finesight.config import build as configure
from finesight.errors import ConfigError, ModelError
from finesight.models import prompts, tokenizers
from finesight.models.clip_config import ClipConfig
from finesight.models.prompts import ensemble, filled, text_vectors
from tests.models.folders import clip_folder, clip_tokenizer, real_clip_tokenizer, save

CLASSES = ["airplane", "great_white_shark", "owl"]
TEMPLATES = ["a photo of a {}.", "art of the {}."]
CLIP_FILE = "tokenizers/clip/bpe_simple_vocab_16e6.txt.gz"


def of_transformers(net: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Unit vectors [N, D] as transformers' own model and tokenizer make them, each sentence alone."""
    with torch.no_grad():
        rows = [net.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output for text in texts]
    found = torch.cat(rows)
    return found / found.norm(dim=1, keepdim=True)


def written(classes: list[str], templates: list[str]) -> list[str]:
    return [text for row in prompts.sentences(classes, templates) for text in row]


# ---- sentences ------------------------------------------------------------------------------------


CONSONANTS = """
unicorn university European_roller ewe one-way_street uniform ukulele user unicycle ufo UFO USB-stick U2 NASA_rover FROG
SKY SHIP SQUID CT_scan T-shirt yacht year 1 2012_Audi_A4 110_volt_socket hot_dog house ouija_board uterus once-over
unanimous_vote C4 'cat' Ukrainian zebra
"""
VOWELS = """
airplane automobile apple MRI X-ray x-ray hour heirloom honest_face umbrella urn unidentified_object uninhabited_island
ulcer 8-ball 11 18-wheeler 1800s_house 80s_car F-150 f SVM HDMI_cable HIV_test SUV LED MP3_player éclair _owl yttrium
hors_d'oeuvre egg ice igloo onion ugly_dog upper_arm usher elephant
"""


@pytest.mark.parametrize(("names", "expected"), [(CONSONANTS, "a"), (VOWELS, "an")])
def test_the_article_fits_the_sound(names: str, expected: str) -> None:
    assert [name for name in names.split() if prompts.article(name) != expected] == []


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        ("a photo of a {}.", "airplane", "a photo of an airplane."),
        ("a photo of an {}.", "cat", "a photo of a cat."),
        ("a photo of a {}.", "polar_bear", "a photo of a polar bear."),
        ("A {}", "owl", "An owl"),
        ("a bad photo of a {}.", "owl", "a bad photo of an owl."),
        ("vitamin-a {}", "apple", "vitamin-a apple"),
        ("data {}", "apple", "data apple"),
        ("a {} texture", "  unicorn__skin ", "a unicorn skin texture"),
        ("itap of my {}.", "egg", "itap of my egg."),
        ("{}", "egg", "egg"),
    ],
)
def test_sentences(template: str, name: str, expected: str) -> None:
    assert filled(template, name) == expected


def test_a_template_has_one_place() -> None:
    for template in ("a photo", "{} and {}", "{name}", "{0} of {}", "", "{}}"):
        with pytest.raises(ModelError, match="exactly once"):
            filled(template, "cat")
        with pytest.raises(ConfigError, match=r"templates: the template .* exactly once"):
            configure(ClipConfig, {"templates": ["a {}", template]})
    for wrong in ([], ["a {}", "a {}"]):
        with pytest.raises(ConfigError, match="templates"):
            configure(ClipConfig, {"templates": wrong})
    with pytest.raises(ModelError, match="no letter or digit"):
        filled("a {}", "__")


# ---- vectors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [(), written(CLASSES, TEMPLATES)])
def test_vectors_equal_transformers(texts: list[str], tmp_path: Path) -> None:
    tokenizer = clip_tokenizer(texts)
    net = clip_folder(tmp_path, tokenizer=tokenizer)
    found = text_vectors(tmp_path, CLASSES, TEMPLATES)
    assert found.shape == (2, 3, 8)
    assert found.dtype == torch.float32
    assert not found.is_inference()
    expected = of_transformers(net, tokenizer, written(CLASSES, TEMPLATES)).view(2, 3, 8)
    assert torch.allclose(found, expected, atol=1e-6)
    spread = (found[0] - found[0, :1]).norm(dim=-1)[1:]
    assert (spread > 0.01).all(), "classes that look alike would prove nothing"


def test_the_end_is_found_with_clips_own_vocabulary(real_data: Path, tmp_path: Path) -> None:
    """Old configurations say eos_token_id 2: read at the highest token, which is the end 49,407."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = real_clip_tokenizer(real_data / CLIP_FILE)
    new = clip_folder(tmp_path / "new", tokenizer=tokenizer)
    old = clip_folder(tmp_path / "old", tokenizer=tokenizer, eos_token_id=2, bos_token_id=0)
    texts = written(CLASSES, TEMPLATES)
    tower = prompts.load_text_tower(tmp_path / "old")
    assert len(tower.tokenizer) == 49_408
    ours = SimpleTokenizer()
    assert prompts.token_rows(tower, texts) == [[49_406, *ours.encode(text), 49_407] for text in texts]
    expected = of_transformers(new, tokenizer, texts)
    assert torch.allclose(of_transformers(old, tokenizer, texts), expected, atol=1e-6)
    for folder in ("old", "new"):
        assert torch.allclose(text_vectors(tmp_path / folder, CLASSES, TEMPLATES).flatten(0, 1), expected, atol=1e-6)


def test_a_learnt_tokenizer_whose_start_is_its_end(tmp_path: Path) -> None:
    """transformers reads at the first end token: a start that is the same would make all sentences alike."""
    tokenizer = tokenizers.train(written(CLASSES, TEMPLATES), 300)
    net = clip_folder(tmp_path, tokenizer=tokenizer)
    texts = written(CLASSES, TEMPLATES)
    rows = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    with torch.no_grad():
        expected = torch.cat([net.get_text_features(torch.tensor([row])).pooler_output for row in rows])
    found = text_vectors(tmp_path, CLASSES, TEMPLATES).flatten(0, 1)
    assert torch.allclose(found, expected / expected.norm(dim=1, keepdim=True), atol=1e-6)


def test_a_vector_does_not_depend_on_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip_folder(tmp_path)
    tower = prompts.load_text_tower(tmp_path)
    together = text_vectors(tower, CLASSES, TEMPLATES, str(tmp_path / "a"))
    monkeypatch.setattr(prompts, "AT_ONCE", 2)
    apart = text_vectors(tower, CLASSES[::-1], TEMPLATES, str(tmp_path / "b"))
    assert torch.allclose(apart.flip(1), together, atol=1e-6)


def test_the_ensemble_is_the_mean_of_unit_vectors() -> None:
    """Of (3, 0) and (0, 1) the direction is 45 degrees; the mean of the raw vectors would lie at 18."""
    found = ensemble(torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]]))
    assert torch.allclose(found, torch.full((1, 2), math.sqrt(0.5)))
    raw = torch.nn.functional.normalize(torch.tensor([[1.5, 0.5]]))
    assert not torch.allclose(found, raw, atol=0.1)
    one = torch.nn.functional.normalize(torch.randn(1, 4, 8), dim=-1)
    assert torch.allclose(ensemble(one), one[0])


# ---- the cache ------------------------------------------------------------------------------------


def test_the_second_start_needs_no_text_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip_folder(tmp_path / "clip")
    said: list[str] = []
    first = text_vectors(tmp_path / "clip", CLASSES, TEMPLATES, str(tmp_path / "cache"), said.append)
    assert ["vectors of 6 prompts" in text for text in said] == [True]

    def refuse(*_: Any) -> None:
        raise AssertionError("the text tower ran")

    monkeypatch.setattr(prompts.TextTower, "vectors", refuse)
    again = text_vectors(tmp_path / "clip", CLASSES, TEMPLATES, str(tmp_path / "cache"))
    assert torch.equal(first, again)
    for classes, templates in ((CLASSES[::-1], TEMPLATES), (CLASSES, TEMPLATES[:1]), (CLASSES, TEMPLATES[::-1])):
        with pytest.raises(AssertionError, match="ran"):
            text_vectors(tmp_path / "clip", classes, templates, str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "name", ["text_projection.weight", "text_model.encoder.layers.0.mlp.fc1.bias", "visual_projection.weight"]
)
def test_the_key_knows_the_weights_of_the_text_tower_alone(name: str, tmp_path: Path) -> None:
    clip_folder(tmp_path)
    before = prompts.load_text_tower(tmp_path).key()
    state = load_file(tmp_path / "model.safetensors")
    state[name].view(-1)[0] += 1
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert (prompts.load_text_tower(tmp_path).key() == before) == name.startswith("visual")


def test_the_key_knows_the_settings(tmp_path: Path) -> None:
    """The same weights with another activation give other vectors."""
    clip_folder(tmp_path)
    before = prompts.load_text_tower(tmp_path).key()
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["text_config"]["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert prompts.load_text_tower(tmp_path).key() != before


# ---- what does not fit ----------------------------------------------------------------------------


def test_tokenizers_that_do_not_fit(tmp_path: Path) -> None:
    clip_folder(tmp_path / "larger", vocab_size=500, eos_token_id=499)
    with pytest.raises(ModelError, match="tokenizer has 514 tokens, the text tower 500"):
        prompts.load_text_tower(tmp_path / "larger")
    clip_folder(tmp_path / "ends", eos_token_id=7)
    with pytest.raises(ModelError, match=r"reads a sentence at token 7 .* ends it with 513"):
        prompts.load_text_tower(tmp_path / "ends")
    clip_folder(tmp_path / "old", tokenizer=tokenizers.train(["a b"], 300), eos_token_id=2)
    with pytest.raises(ModelError, match=r"highest token, but the tokenizer ends with 0 of 2\d\d"):
        prompts.load_text_tower(tmp_path / "old")
    clip_folder(tmp_path / "none")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "none" / name).unlink()
    with pytest.raises(ModelError, match="holds no tokenizer"):
        prompts.load_text_tower(tmp_path / "none")


def test_two_files_are_read_as_clips_tokenizer_not_as_gpt2s(tmp_path: Path) -> None:
    texts = written(CLASSES, TEMPLATES)
    whole = clip_tokenizer(texts)
    model = json.loads(whole.backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n")
    found = prompts.load_tokenizer(tmp_path)
    assert found(texts)["input_ids"] == whole(texts)["input_ids"]
    assert tokenizers.load(tmp_path)(texts)["input_ids"] != whole(texts)["input_ids"]
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, "errors": "replace"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))  # as in old folders
    assert prompts.load_tokenizer(tmp_path)(texts)["input_ids"] == whole(texts)["input_ids"]


def test_sentences_that_are_too_long_or_alike(tmp_path: Path) -> None:
    clip_folder(tmp_path, max_position_embeddings=20)
    assert text_vectors(tmp_path, ["cat"], ["a photo of a {}."]).shape == (1, 1, 8)
    with pytest.raises(ModelError, match=r"1 sentences have more than the 20 tokens .*hippopotamus\.' \(24\)"):
        text_vectors(tmp_path, ["cat", "hippopotamus"], ["a photo of a {}."])
    with pytest.raises(ModelError, match="'crane' and 'Crane'"):
        text_vectors(tmp_path, ["cat", "crane", "Crane"], ["a {}"])


def test_folders_of_other_kinds(tmp_path: Path) -> None:
    from transformers import CLIPVisionModel

    net = clip_folder(tmp_path / "clip")
    CLIPVisionModel(net.config.vision_config).save_pretrained(tmp_path / "half")
    with pytest.raises(ModelError, match="one tower of a CLIP"):
        prompts.load_text_tower(tmp_path / "half")
    save("vit", tmp_path / "vit", ["a", "b"])
    with pytest.raises(ModelError, match="a vit model, not a CLIP"):
        text_vectors(tmp_path / "vit", CLASSES, TEMPLATES)
    shutil.copytree(tmp_path / "clip", tmp_path / "gap")
    state = load_file(tmp_path / "gap/model.safetensors")
    del state["text_projection.weight"]
    save_file(state, tmp_path / "gap/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing .*text_projection\.weight"):
        prompts.load_text_tower(tmp_path / "gap")
