"""Contrastive learning: texts and their draws, the towers, the losses in the batch, and a model that learns."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finesight import config, recipes
from finesight.cli import main
from finesight.data.loading import load
from finesight.engine import Engine
from finesight.errors import ConfigError, ModelError
from finesight.evaluate import predict
from finesight.losses import clip_loss, debiased_contrastive_loss, siglip_loss
from finesight.losses.labelled import labelled_clip_loss
from finesight.models import dual_encoder
from finesight.models.dual_encoder import DualEncoderConfig
from finesight.tasks.contrastive import Contrastive, ContrastiveConfig
from finesight.tasks.templated import Texts
from tests import pictures

TINY: dict[str, Any] = {
    "model.patch_size": 8, "model.width": 32, "model.layers": 2, "model.heads": 2, "model.text_width": 32,
    "model.text_layers": 1, "model.projection": 16, "train.batch_size": 32, "precision": "fp32",
}  # fmt: skip
WORDS = {"disc": ["circle", "shape"], "square": ["shape"]}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder(tmp_path_factory.mktemp("data") / "shapes", each=60)


def made(images: Path, cache: Path, **options: Any) -> Contrastive:
    flat = {"data.root": str(images), "data.cache_dir": str(cache), "words": WORDS, **TINY, **options}
    settings = config.build(ContrastiveConfig, config.nest(flat))
    data = load(settings.data, 0)
    task = Contrastive(settings, data["train"].features["label"].names, Engine("fp32"), lambda _: None)
    task.prepare(data)
    return task


# --- texts


def test_every_text_once_and_which_class_it_is_true_of() -> None:
    texts = Texts(["disc", "square", "odd_one"], ["a {}.", "the {}."], WORDS)
    assert texts.every == [
        "a disc.", "the disc.", "a circle.", "the circle.", "a shape.", "the shape.", "a square.", "the square.",
        "an odd one.", "the odd one.",
    ]  # fmt: skip
    assert texts.true.sum(1).tolist() == [6, 4, 2]
    assert texts.true[:2, 4].all()
    assert not texts.true[2, 4]


def test_half_of_the_captions_use_the_name_and_the_rest_the_other_words_evenly() -> None:
    texts = Texts(["disc", "square", "stripes"], ["a {}.", "the {}."], WORDS)
    ids, labels = [str(number) for number in range(30_000)], np.arange(30_000) % 3
    chosen = texts.draw(ids, labels, 0, 0)
    assert texts.true[labels, chosen].all()
    counts = np.bincount(chosen[labels == 0], minlength=len(texts.every)) / 10_000
    np.testing.assert_allclose(counts[:6], [0.25, 0.25, 0.125, 0.125, 0.125, 0.125], atol=0.02)
    alone = np.bincount(chosen[labels == 2], minlength=len(texts.every))
    assert np.flatnonzero(alone).tolist() == [texts.every.index("a stripes."), texts.every.index("the stripes.")]


def test_a_text_belongs_to_seed_epoch_and_sample() -> None:
    texts = Texts(["disc", "square", "stripes"], ["a {}.", "the {}."], WORDS)
    ids, labels = [str(number) for number in range(300)], np.arange(300) % 3
    whole, back = texts.draw(ids, labels, 1, 4), np.arange(300)[::-1]
    assert (texts.draw([ids[row] for row in back], labels[back], 1, 4) == whole[back]).all()
    for other in (texts.draw(ids, labels, 2, 4), texts.draw(ids, labels, 1, 5)):
        assert 0.3 < (other == whole).mean() < 0.7 or (other != whole).mean() > 0.3


def test_words_of_a_class_that_is_not_there_are_named() -> None:
    with pytest.raises(ConfigError, match="no class 'squares'; did you mean 'square'"):
        Texts(["disc", "square"], ["a {}."], {"squares": ["box"]})


# --- towers


def tiny(texts: list[str], **options: Any) -> dual_encoder.DualEncoder:
    torch.manual_seed(0)
    sizes = {key.removeprefix("model."): value for key, value in TINY.items() if key.startswith("model.")}
    return dual_encoder.build(DualEncoderConfig(**{**sizes, **options}), ["a", "b"], texts, biased=False)


def test_a_text_is_pooled_at_its_end_and_nothing_behind_it_matters() -> None:
    """transformers takes the first end where the id of the end is not 2, and the largest id where it is."""
    model = tiny(["a photo of a disc", "a square"])
    tokens = model.tokens(["a square", "a photo of a disc"])
    end = model.tokenizer.eos_token_id
    first = (tokens[0] == end).nonzero()[0, 0]
    states = model.net.text_model(input_ids=tokens).last_hidden_state
    pooled = torch.nn.functional.normalize(model.net.text_projection(states[0, first]), dim=0)
    torch.testing.assert_close(model.text_features(tokens)[0], pooled)
    other = tokens.clone()
    other[0, first + 1 :] = (end + 1) % len(model.tokenizer)
    assert torch.equal(model.text_features(other)[0], model.text_features(tokens)[0])
    other[0, first - 1] = (other[0, first - 1] + 1) % len(model.tokenizer)
    assert not torch.allclose(model.text_features(other)[0], model.text_features(tokens)[0])


def test_capitals_are_the_same_word_and_long_texts_are_refused() -> None:
    model = tiny(["a photo of a disc"], longest=6)
    assert model.tokens(["A Photo of a DISC"]).tolist() == model.tokens(["a photo of a disc"]).tolist()
    assert model.tokens(["a photo of a disc"]).shape == (1, 6)
    with pytest.raises(ModelError, match="'a photo of a disc disc': has more than 6 tokens"):
        model.tokens(["a disc", "a photo of a disc disc"])


def test_saved_and_rebuilt_it_gives_the_same_features(tmp_path: Path) -> None:
    model = tiny(["a photo of a disc"])
    model.save_spec(tmp_path)
    again = dual_encoder.build(DualEncoderConfig(), ["a", "b"], [], biased=False, saved=tmp_path)
    again.load_state_dict(model.state_dict())
    images, tokens = torch.randn(2, 3, 32, 32), again.tokens(["a photo of a disc", "never seen: ß"])
    assert torch.equal(tokens, model.tokens(["a photo of a disc", "never seen: ß"]))
    with torch.no_grad():
        assert torch.equal(again.text_features(tokens), model.text_features(tokens))
        assert torch.equal(again.image_features(images), model.image_features(images))


# --- the step


@pytest.mark.parametrize("loss", ["clip", "siglip", "debiased", "left-out"])
def test_the_loss_is_that_of_one_text_for_each_image(images: Path, tmp_path: Path, loss: str) -> None:
    """Texts that stand twice in a batch are encoded once; the loss must be that of all of them."""
    task = made(images, tmp_path, **({"also_true": loss} if loss == "left-out" else {"loss": loss}))
    batch = next(iter(task.train.epoch(0)))
    assert len(torch.unique(batch["text"])) < len(batch["text"])
    given = next(task.train_step(batch)).loss
    image = task.model.image_features(task.prepared(batch["image"]))
    said = [task.texts.every[row] for row in batch["text"]]
    text = task.model.text_features(task.model.tokens(said))
    scale = task.model.scale
    if loss == "clip":
        expected = clip_loss(image, text, scale)
    elif loss == "debiased":
        expected = debiased_contrastive_loss(image, text, scale, 0.1)
    elif loss == "siglip":
        expected = siglip_loss(image, text, scale, -10.0)
    else:
        words = {"disc": ["disc", "circle", "shape"], "square": ["square", "shape"], "stripes": ["stripes"]}
        labels = [task.classes[label] for label in batch["label"]]
        true = torch.tensor([[any(word in one for word in words[name]) for one in said] for name in labels])
        expected = labelled_clip_loss(image, text, scale, true)
        assert not torch.isclose(expected, clip_loss(image, text, scale))
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


def test_the_temperature_never_falls_below_one_hundredth(images: Path, tmp_path: Path) -> None:
    task = made(images, tmp_path)
    with torch.no_grad():
        task.model.net.logit_scale.fill_(7.0)
    step = task.train_step(next(iter(task.train.epoch(0))))
    next(step)
    assert task.model.scale.item() == pytest.approx(math.exp(7.0))
    assert next(step, None) is None
    assert task.model.scale.item() == pytest.approx(100.0)


def test_gains_biases_and_the_temperature_do_not_decay(images: Path, tmp_path: Path) -> None:
    task = made(images, tmp_path, **{"train.weight_decay": 0.5, "loss": "siglip"})
    groups = task.optimizers()["model"].param_groups
    names = {id(parameter): name for name, parameter in task.model.named_parameters()}
    held = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in groups}
    assert held[0.5] | held[0.0] == set(names.values())
    assert {"bias", "net.logit_scale", "net.vision_model.post_layernorm.weight"} <= held[0.0]
    assert "net.visual_projection.weight" in held[0.5]


def test_predictions_are_the_softmax_over_the_prompts(images: Path, tmp_path: Path) -> None:
    task = made(images, tmp_path, prompt="a {}.")
    found = predict(task, "test", Engine("fp32"))
    with torch.no_grad():
        text = task.model.text_features(task.model.tokens(["a disc.", "a square.", "a stripes."]))
        image = task.model.image_features(task.prepared(task.pixels["test"]))
        expected = (image @ text.T * task.model.scale).softmax(1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": []}, "none given"),
        ({"templates": ["a photo"]}, "'a photo' has 0 places for the class name"),
        ({"prompt": "{} and {}"}, "prompt: the template '{} and {}' has 2 places"),
        ({"train.accumulation": 2}, "micro-batches would change the loss"),
        ({"loss": "debiased", "also_true": "left-out"}, "'left-out' is for loss clip"),
        ({"model.patch_size": 5}, "no multiple of model.patch_size 5"),
        ({"words": {"discs": ["x"]}}, "did you mean 'disc'"),
    ],
)
def test_what_cannot_be_learnt_is_refused(images: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(images, tmp_path, **options)


# --- a run


def test_a_small_clip_learns_shapes_and_every_command_works_on_it(images: Path, tmp_path: Path, capsys: Any) -> None:
    recipe = tmp_path / "shapes.yaml"
    recipe.write_text(json.dumps({"task": "contrastive", "words": WORDS}))
    output = tmp_path / "run"
    flags = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    flags += ["--train.epochs", "25", "--train.lr", "3e-3", "--train.clip", "1.0", "--evaluation.resamples", "100"]
    assert main(["run", str(recipe), "--data.root", str(images), "--output", str(output), *flags]) == 0
    metrics = json.loads((output / "metrics.json").read_text())
    # Squares and stripes differ in more than colour; the majority class has a third.
    assert metrics["test"]["accuracy"]["value"] > 0.55
    assert set(metrics["baselines"]) == {"majority class", "linear on colour histograms"}
    for figure in ("accuracy", "confusion", "curves", "similarity", "mistakes"):
        assert (output / "figures" / f"{figure}.png").is_file()
    assert "Images and prompts" in (output / "report.html").read_text()
    capsys.readouterr()
    assert main(["eval", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == metrics["test"]
    picture = next((images / "disc").glob("*.png"))
    assert main(["predict", str(output), str(picture), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)[0]["scores"]) == set(pictures.SHAPES)


def test_replay_gives_the_same_bits(images: Path, tmp_path: Path, capsys: Any) -> None:
    """Texts, order and augmentation are functions of the seed; so are the tokenizer and the weights."""
    recipe = tmp_path / "shapes.yaml"
    recipe.write_text(json.dumps({"task": "contrastive", "words": WORDS, "augment": {"flip": 0.5}}))
    flags = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    output = str(tmp_path / "run")
    assert (
        main(["run", str(recipe), "--data.root", str(images), "--output", output, *flags, "--train.epochs", "2"]) == 0
    )
    assert main(["replay", output]) == 0
    assert "bit for bit" in capsys.readouterr().out


def test_the_recipe_names_only_classes_of_cifar10() -> None:
    from finesight.data.cifar10 import CLASSES

    _, base = recipes.read("cifar10-clip")
    options = config.build(ContrastiveConfig, base)
    texts = Texts(CLASSES, options.templates, options.words)
    animals = {CLASSES[label] for label in np.flatnonzero(texts.true[:, texts.every.index("a photo of an animal.")])}
    assert animals == {"bird", "cat", "deer", "dog", "frog", "horse"}
