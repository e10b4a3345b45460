"""Captioning: labels shifted once, the true end kept, captions only from generation, and leaks that are caught."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from finesight import config
from finesight.data.batches import split_batch
from finesight.engine import Engine
from finesight.errors import ConfigError, ModelError
from finesight.evaluate import predict
from finesight.models import tokenizers
from finesight.tasks import caption_controls, generation
from finesight.tasks.captioning import Captioning, CaptioningConfig
from finesight.tasks.generation import NOTHING, GenerationOptions, leaks, shifted, token_losses, write
from tests import pictures
from tests.models.test_captioner import CROSS, REPORT, pair

TEXTS = ("a circle", "two circles and a square", "a square that is larger than all the others in this place")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes with captions of three lengths."""
    root = pictures.folder(tmp_path_factory.mktemp("data") / "shapes", each=14)
    files = sorted(root.rglob("*.png"))
    rows = [f"{file.relative_to(root)},{TEXTS[number % 3]}" for number, file in enumerate(files)]
    (root / "table.csv").write_text("\n".join(["image,caption", *rows]))
    return root / "table.csv"


def prepared(table: Path, cache: Path, **options: Any) -> Captioning:
    flat = {
        "data.root": str(table), "data.cache_dir": str(cache), "precision": "fp32", "model.image_size": 24,
        "generation.max_tokens": 12, "train.batch_size": 4, "evaluation.batch_size": 4, **options,
    }  # fmt: skip
    settings = config.build(CaptioningConfig, config.nest(flat))
    task = Captioning(settings, ["image"], Engine("fp32"), lambda _text: None)
    task.prepare(Captioning.load(settings))
    return task


def first(task: Captioning, rows: int = 4, split: str = "test") -> dict[str, Any]:
    return task.held_out(split).take(np.arange(rows))


# ---- labels -------------------------------------------------------------------------------------


def test_labels_are_shifted_once_and_the_end_is_learnt_even_where_it_is_the_padding() -> None:
    """Report 000 masked every end, because GPT-2 pads with it: generation never stopped."""
    tokens = torch.tensor([[7, 8, 0], [9, 0, 0]])  # 0 ends, and pads
    read, said = shifted(tokens, torch.tensor([3, 2]), start=0)
    assert read.tolist() == [[0, 7, 8], [0, 9, 0]]
    assert said.tolist() == [[True, True, True], [True, True, False]]
    assert tokens[said].tolist() == [7, 8, 0, 9, 0]


def test_the_loss_is_that_of_transformers(table: Path, tmp_path: Path) -> None:
    task = prepared(table, tmp_path)
    batch, net = first(task, 6), task.model.net
    labels = batch["tokens"].masked_fill(torch.arange(batch["tokens"].shape[1]) >= batch["length"][:, None], -100)
    ends = task.model.ends
    net.config.pad_token_id, net.config.decoder_start_token_id = ends.pad, ends.start
    with torch.inference_mode():
        theirs = net(pixel_values=task.prepared(batch["image"]), labels=labels).loss
        losses, owner = token_losses(task.model, task.states(batch), batch["tokens"], batch["length"])
    assert losses.mean().item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.bincount(owner).tolist() == batch["length"].tolist()
    assert len(losses) == int((labels != -100).sum())


def test_the_loss_of_a_batch_does_not_depend_on_how_it_is_cut(table: Path, tmp_path: Path) -> None:
    task = prepared(table, tmp_path)
    batch = next(iter(task.train.epoch(0)))
    task.model.eval()

    def loss(piece: dict[str, Any]) -> float:
        return next(task.train_step(piece)).loss.item() * piece["items"] / batch["items"]

    assert sum(map(loss, split_batch(batch, 3))) == pytest.approx(loss(batch), rel=1e-5)
    losses, _ = token_losses(task.model, task.states(batch), batch["tokens"], batch["length"])
    assert loss(batch) == pytest.approx(losses.mean().item(), rel=1e-5)


def test_padding_changes_no_loss(table: Path, tmp_path: Path) -> None:
    task = prepared(table, tmp_path)
    batch = first(task)
    wider = functional.pad(batch["tokens"], (0, 9))
    with torch.inference_mode():
        states = task.states(batch)
        narrow, _ = token_losses(task.model, states, batch["tokens"], batch["length"])
        wide, _ = token_losses(task.model, states, wider, batch["length"])
    torch.testing.assert_close(narrow, wide, rtol=1e-5, atol=1e-5)


def test_a_cut_caption_has_no_end(table: Path, tmp_path: Path) -> None:
    said: list[str] = []
    settings = prepared(table, tmp_path, **{"model.longest": 8}).config
    task = Captioning(settings, ["image"], Engine("fp32"), said.append)
    task.prepare(Captioning.load(settings))
    rows = tokenizers.encode(task.model.tokenizer, list(TEXTS), task.model.ends.end, 8)
    assert [row[-1] == task.model.ends.end for row in rows] == [len(row) < 8 or row[7] == 0 for row in rows]
    assert max(map(len, rows)) == 8
    assert rows[0][-1] == task.model.ends.end
    assert rows[2][-1] != task.model.ends.end
    assert any("captions have more than 8 tokens" in line for line in said)


def test_mirrored_images_with_captions_that_say_left_or_right_are_told(table: Path, tmp_path: Path) -> None:
    sided = table.with_name("sided.csv")
    sided.write_text(table.read_text().replace("a circle", "a circle at the left"))
    assert not any("left or right" in note for note in prepared(table, tmp_path, **{"augment.flip": 0.5}).model.notes)
    assert not any("left or right" in note for note in prepared(sided, tmp_path).model.notes)
    task = prepared(sided, tmp_path, **{"augment.flip": 0.5})
    count = sum("left" in text for text in task.captions["train"])
    assert 0 < count < len(task.captions["train"])
    (note,) = [note for note in task.model.notes if "left or right" in note]
    assert f"{count} of {len(task.captions['train'])} training captions" in note


def test_a_tokenizer_that_gives_all_words_back_has_no_ceiling(table: Path, tmp_path: Path) -> None:
    assert not any(
        "word for word" in note for note in prepared(table, tmp_path, **{"generation.max_tokens": 64}).model.notes
    )
    cut = prepared(table, tmp_path, **{"generation.max_tokens": 2})
    assert sum("do not come back word for word" in note for note in cut.model.notes) == 1


# ---- the leak -----------------------------------------------------------------------------------


def leaking(net: Any, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Report 000 with `decoder_input_ids=labels`: the model reads at each place the word that it is to say there."""
    from finesight.models.caption_parts import PAIR

    return PAIR.hidden(net, states, torch.cat([tokens[:, 1:], tokens[:, -1:]], 1))


def test_a_model_that_reads_the_answer_is_refused_before_training(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finesight.models import caption_parts

    prepared(table, tmp_path)  # as it is, it passes
    monkeypatch.setitem(caption_parts.KINDS, "vision-encoder-decoder", caption_parts.PAIR._replace(hidden=leaking))
    monkeypatch.setattr("finesight.models.captioner.KINDS", caption_parts.KINDS)
    with pytest.raises(ModelError, match="teach it to copy"):
        prepared(table, tmp_path)


def test_a_shift_left_out_is_a_leak(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "shifted", lambda tokens, length, start: (tokens, tokens >= 0))
    with pytest.raises(ModelError, match="teach it to copy"):
        prepared(table, tmp_path)


def test_a_language_model_that_is_not_causal_is_a_leak(table: Path, tmp_path: Path) -> None:
    task = prepared(table, tmp_path)
    batch = first(task, 1, "train")

    def all_see_all(tokens: torch.Tensor) -> torch.Tensor:
        return (
            functional.one_hot(tokens, task.model.words).float().mean(1, keepdim=True).expand(-1, tokens.shape[1], -1)
        )

    assert leaks(all_see_all, batch["tokens"], task.model.words)


@pytest.fixture(scope="module")
def many_captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions that no six words of another foretell: those of real radiographs, or words drawn by chance."""
    given = os.environ.get("FINESIGHT_TEST_DATA")
    if given and (Path(given) / "radiology").is_dir():
        return Path(given) / "radiology"
    root = pictures.folder(tmp_path_factory.mktemp("data") / "many", each=24)
    words = np.array([f"{first}{last}" for first in "bdfglmnprst" for last in ("ack", "ell", "ing", "orn")])
    generator = np.random.default_rng(0)
    rows = [f"{file.relative_to(root)},{' '.join(generator.choice(words, 12))}" for file in sorted(root.rglob("*.png"))]
    (root / "table.csv").write_text("\n".join(["image,caption", *rows]))
    return root / "table.csv"


def trained(task: Captioning, epochs: int) -> float:
    """The mean loss of the last epoch."""
    optimizer = task.optimizers()["model"]
    task.model.train()
    for epoch in range(epochs):
        losses = []
        for batch in task.train.epoch(epoch):
            optimizer.zero_grad()
            loss = next(task.train_step(batch)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
    task.model.eval()
    return float(np.mean(losses))


def test_copying_gives_a_loss_near_zero_and_worthless_captions(many_captions: Path, tmp_path: Path) -> None:
    """What the check protects from: the leaking model looks perfect by its loss, and writes nothing true.

    Both are trained alike; only one reads at each place the word that it is to say there.
    """
    options = {
        "data.limit_train": 16, "data.limit_validation": 3, "data.limit_test": 8, "model.longest": 12,
        "model.name": pair(tmp_path, text={"n_embd": 64, "n_layer": 1}).name, "model.image_size": None,
        "train.batch_size": 8, "train.lr": 1e-2,
    }  # fmt: skip
    losses, alike = {}, {}
    for leak in (True, False):
        task = prepared(many_captions, tmp_path / "cache", **options)
        if leak:
            task.model.parts = task.model.parts._replace(hidden=leaking)
        losses[leak] = trained(task, 25)
        rows = predict(task, "test", task.engine)[:, 2:].astype(np.int64)
        written = [row[row != NOTHING] for row in rows]
        alike[leak] = np.mean([np.bincount(row).max() / len(row) for row in written])
        batch = first(task, 1, "train")
        caption = batch["tokens"][:, : int(batch["length"][0])]
        with torch.inference_mode():
            if leak:
                with pytest.raises(ModelError, match="teach it to copy"):
                    generation.refuse_leak(task.model, task.states(batch), caption)
            else:
                generation.refuse_leak(task.model, task.states(batch), caption)
    assert losses[True] < 0.1
    assert losses[False] > 0.5
    assert alike[True] > 0.8  # the word that it read last, again and again
    assert alike[False] < 0.5


# ---- generation ---------------------------------------------------------------------------------


def test_predictions_do_not_see_the_reference(table: Path, tmp_path: Path) -> None:
    task = prepared(table, tmp_path)
    task.model.eval()
    batch, other = first(task), first(task)
    other["tokens"] = torch.randint(1, 200, other["tokens"].shape)
    with torch.inference_mode():
        rows, again = task.predict(batch), task.predict(other)
    assert (rows[:, 2:] == again[:, 2:]).all()
    assert not (rows[:, 0] == again[:, 0]).any()


def test_greedy_captions_are_the_likeliest_words_one_by_one(table: Path, tmp_path: Path) -> None:
    """With the cache of keys and values as without: each word is chosen from a forward pass over the ones before."""
    task = prepared(table, tmp_path)
    task.model.eval()
    batch, ends = first(task, 3), task.model.ends
    with torch.inference_mode():
        states = task.states(batch)
        rows = write(task.model, states, batch["id"], task.config.generation, 0)
        for place, row in enumerate(rows):
            tokens: list[int] = [ends.start]
            while len(tokens) <= 12 and (len(tokens) == 1 or tokens[-1] != ends.end):
                hidden = task.model.hidden(states[place : place + 1], torch.tensor([tokens]))
                tokens.append(int(task.model.logits(hidden[:, -1]).argmax()))
            assert row[row != NOTHING].tolist() == tokens[1:]


def test_captions_stop_at_the_end_and_hold_nothing_behind_it(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = prepared(table, tmp_path)
    end = task.model.ends.end
    made = torch.tensor([[0, 5, 6, end, end, end], [0, 5, 6, 7, 8, 9]])
    monkeypatch.setattr(task.model, "generate", lambda states, options, processors: made)
    rows = write(task.model, torch.zeros(2, 1, 1), ["a", "b"], GenerationOptions(max_tokens=6), 0)
    assert rows.tolist() == [[5, 6, end, NOTHING, NOTHING, NOTHING], [5, 6, 7, 8, 9, NOTHING]]
    assert "endoftext" not in generation.text_of(task.model, rows[0])


@pytest.mark.parametrize("method", ["greedy", "beam", "nucleus"])
def test_captions_are_a_function_of_weights_image_and_seed(table: Path, tmp_path: Path, method: str) -> None:
    task = prepared(table, tmp_path, **{"generation.method": method, "generation.temperature": 2.0})
    task.model.eval()
    batch = first(task, 3)
    with torch.inference_mode():
        states = task.states(batch)
        torch.manual_seed(1)
        one = write(task.model, states, batch["id"], task.config.generation, 0)
        before = torch.random.get_rng_state()
        two = write(task.model, states, batch["id"], task.config.generation, 0)
        other = write(task.model, states, batch["id"], task.config.generation, 1)
    assert (one == two).all()
    assert (one == other).all() == (method != "nucleus")
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_beam_finds_a_likelier_caption_than_greedy(table: Path, tmp_path: Path) -> None:
    task = prepared(table, tmp_path)
    task.model.eval()
    batch = first(task, 4)
    found = {}
    with torch.inference_mode():
        states = task.states(batch)
        for method in ("greedy", "beam"):
            options = GenerationOptions(method=method, max_tokens=4, beams=8, length_penalty=0.0)
            rows = torch.from_numpy(write(task.model, states, batch["id"], options, 0))
            length = (rows != NOTHING).sum(1)
            losses, owner = token_losses(task.model, states, rows.clamp_min(0), length)
            found[method] = torch.zeros(4).index_add_(0, owner, losses)
    assert (found["beam"] <= found["greedy"] + 1e-4).all()


def test_attention_of_words_is_a_distribution_over_patches(table: Path, tmp_path: Path) -> None:
    task = prepared(table, tmp_path, **{"model.attention": "sdpa"})
    task.model.eval()
    batch = first(task, 1)
    tokens = task.model.tokenizer.encode("two circles and a square")
    with torch.inference_mode():
        words = generation.word_attention(
            task.model, task.states(batch), np.array([*tokens, task.model.ends.end, NOTHING])
        )
    assert words is not None
    assert [word for word, _ in words] == ["two", "circles", "and", "a", "square"]
    for _, seen in words:
        assert seen.shape == (2, 2)
        assert 0 < seen.sum() <= 1 + 1e-6  # the class token takes the rest
    assert task.model.net.decoder.config._attn_implementation == "sdpa"


# ---- the cache ----------------------------------------------------------------------------------


def test_cached_states_are_those_of_the_encoder(table: Path, tmp_path: Path) -> None:
    options = {"model.name": pair(tmp_path).name, "model.image_size": None, "adapt.method": "decoder"}
    said: list[str] = []
    task = prepared(table, tmp_path / "cache", **options)
    assert "image" not in task.train.columns
    fresh = prepared(table, tmp_path / "cache", **options, cache_encoder="off")
    fresh.model.load_state_dict(task.model.state_dict())
    fresh.model.eval()
    batch = first(fresh)
    with torch.inference_mode():
        torch.testing.assert_close(first(task)["states"], fresh.states(batch), rtol=1e-5, atol=1e-5)
    again = Captioning(task.config, ["image"], Engine("fp32"), said.append)
    again.prepare(Captioning.load(task.config))
    assert not any("Caching outputs" in line for line in said)


def test_the_size_of_the_cache_is_told_before_it_is_made(table: Path, tmp_path: Path) -> None:
    said: list[str] = []
    options = {"model.name": pair(tmp_path).name, "model.image_size": None, "adapt.method": "decoder"}
    settings = prepared(table, tmp_path / "one", **options).config
    settings = settings.model_copy(
        update={"data": settings.data.model_copy(update={"cache_dir": str(tmp_path / "two")})}
    )
    task = Captioning(settings, ["image"], Engine("fp32"), said.append)
    task.prepare(Captioning.load(settings))
    # 17 states of width 16 in float32
    assert any("outputs of the frozen image encoder, train (1,088 bytes an image)" in line for line in said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapt.method": "full"}, "the image encoder is trained"),
        ({"adapt.method": "decoder", "augment.flip": 0.5}, "augmentation changes the images"),
    ],
)
def test_an_unsound_cache_is_refused(table: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    name = pair(tmp_path).name
    rest = {"model.name": name, "model.image_size": None, **options}
    with pytest.raises(ConfigError, match=said):
        prepared(table, tmp_path, **rest, cache_encoder="on")
    assert "states" not in prepared(table, tmp_path, **rest).train.columns


# ---- controls -----------------------------------------------------------------------------------


def test_no_image_keeps_its_own_caption_when_they_are_shuffled() -> None:
    for count in (2, 3, 17):
        rows = caption_controls.deranged(count, 0)
        assert sorted(rows) == list(range(count))
        assert (rows != np.arange(count)).all()
    assert caption_controls.deranged(1, 0).tolist() == [0]


def test_controls_are_made_of_training_captions_and_the_models_own(table: Path, tmp_path: Path) -> None:
    task = prepared(table, tmp_path)
    predict(task, "test", task.engine)
    found = caption_controls.controls(task)
    train, count = task.captions["train"], len(task.captions["test"])
    frequent = list(found[caption_controls.FREQUENT]["test"])
    assert frequent == [max(sorted(set(train)), key=train.count)] * count
    assert set(found[caption_controls.NEAREST]["test"]) <= set(train)
    own = task.texts(np.stack([task.written[name] for name in task.held_out("test").ids]))
    assert sorted(found[caption_controls.SHUFFLED]["test"]) == sorted(own)


def test_the_nearest_image_of_a_training_image_is_itself(table: Path, tmp_path: Path) -> None:
    task = prepared(table, tmp_path)
    known = caption_controls.features(task, "train")
    assert torch.allclose(known.norm(dim=1), torch.ones(len(known)), atol=1e-5)
    similar = known @ known.T
    assert (similar.diagonal() >= similar.max(1).values - 1e-5).all()


# ---- saving -------------------------------------------------------------------------------------


def test_a_reloaded_adapter_writes_the_same_captions(table: Path, tmp_path: Path) -> None:
    from finesight import checkpoint

    options = {"model.name": pair(tmp_path).name, "model.image_size": None}
    options |= {f"adapt.{key}": value for key, value in {**REPORT, "modules_to_save": CROSS}.items()}
    task = prepared(table, tmp_path / "cache", **options)
    with torch.no_grad():
        for parameter in task.optimizers()["model"].param_groups[0]["params"]:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    rows = predict(task, "test", task.engine)
    task.save_spec(tmp_path / "spec")
    tensors = {"model.model": task.trainable_state()["model"], "frozen.model": task.frozen_state()["model"]}
    assert not set(tensors["model.model"]) & set(tensors["frozen.model"])
    (tmp_path / "weights").mkdir()
    checkpoint.write_folder(tmp_path / "weights", tensors, {"state.json": {}})
    again = Captioning(task.config, ["image"], Engine("fp32"), lambda _text: None, tmp_path / "spec")
    stored = checkpoint.opened(tmp_path / "weights")
    for name, group in tensors.items():
        checkpoint.restore_module(again.model, stored.tensors(name), set(group), "weights")
    again.prepare(Captioning.load(task.config))
    assert (predict(again, "test", again.engine) == rows).all()


def test_frozen_weights_held_in_half_give_the_same_bits(table: Path, tmp_path: Path) -> None:
    from finesight.adaptation.halving import halve_frozen

    options = {"model.name": pair(tmp_path).name, "model.image_size": None}
    options |= {f"adapt.{key}": value for key, value in {**REPORT, "modules_to_save": CROSS}.items()}
    task = prepared(table, tmp_path / "cache", **options)
    task.model.eval()
    batch, found = first(task), []
    trained = {name: tensor.dtype for name, tensor in task.trainable_state()["model"].items()}
    for halved in (False, True):
        if halved:
            assert halve_frozen(task.model) > 0
        with torch.autocast("cpu", torch.bfloat16):
            loss = next(task.train_step(batch)).loss
            gradients = torch.autograd.grad(loss, task.optimizers()["model"].param_groups[0]["params"])
            with torch.inference_mode():
                found.append((loss, gradients, task.predict(batch)))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    assert (found[0][2] == found[1][2]).all()
    assert trained == {name: tensor.dtype for name, tensor in task.trainable_state()["model"].items()}
    assert set(trained.values()) == {torch.float32}
