"""How captions are written: as the options say and not as a model was used to, and drawn for each image by itself."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from finesight.models.captioner import Captioner, CaptionerConfig, build
from finesight.tasks.generation import NOTHING, GenerationOptions, Nucleus, token_losses, write
from tests.models.test_captioner import save_existing

HABITS: dict[str, Any] = {
    "num_beams": 4, "no_repeat_ngram_size": 3, "min_length": 9, "repetition_penalty": 1.5, "length_penalty": 2.0,
    "num_return_sequences": 2, "max_length": 5,
}  # fmt: skip


def saved(kind: str, folder: Path, **habits: Any) -> Captioner:
    """An existing captioner that brings a generation_config.json."""
    from transformers import GenerationConfig

    save_existing(kind, folder / "model")
    GenerationConfig(**habits).save_pretrained(folder / "model")
    return build(CaptionerConfig(name=str(folder / "model")))


def greedy(model: Captioner, states: torch.Tensor, most: int) -> list[list[int]]:
    """The likeliest words one by one, each from a whole forward pass."""
    found = []
    for row in range(len(states)):
        tokens = [model.ends.start]
        while len(tokens) <= most and (len(tokens) == 1 or tokens[-1] != model.ends.end):
            scores = model.logits(model.hidden(states[row : row + 1], torch.tensor([tokens]))[:, -1])
            tokens.append(int(scores.argmax()))
        found.append(tokens[1:])
    return found


@pytest.mark.parametrize("kind", ["pair", "blip", "git"])
def test_what_a_model_was_used_to_decides_nothing(tmp_path: Path, kind: str) -> None:
    """generate takes whatever it is not told from the model: four beams, a least length, a penalty on repetition."""
    model = saved(kind, tmp_path, **HABITS)
    assert any("num_beams 4" in note for note in model.notes)
    options = GenerationOptions(max_tokens=12)
    with torch.inference_mode():
        states = model.encode(torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        rows = write(model, states, list("abc"), options, 0)
        assert [row[row != NOTHING].tolist() for row in rows] == greedy(model, states, 12)
        model.save_spec(tmp_path / "spec")
        again = build(CaptionerConfig(name="gone"), tmp_path / "spec")
        again.load_state_dict(model.state_dict())
        for method in ("greedy", "beam", "nucleus"):
            options = GenerationOptions(method=method, max_tokens=12)
            first, second = (write(one, states, list("abc"), options, 0) for one in (model, again))
            assert (first == second).all(), method


@pytest.mark.parametrize("pretrained", [True, False])
def test_the_start_may_stand_beside_the_configuration(tmp_path: Path, pretrained: bool) -> None:
    folder = tmp_path / "model"
    model = saved("pair", tmp_path, decoder_start_token_id=7)
    assert model.ends.start == 7
    assert not any("used to write" in note for note in model.notes)
    assert build(CaptionerConfig(name=str(folder), pretrained=pretrained)).ends.start == 7
    model.save_spec(tmp_path / "spec")
    assert build(CaptionerConfig(name="gone"), tmp_path / "spec").ends.start == 7
    (folder / "generation_config.json").unlink()
    assert build(CaptionerConfig(name=str(folder))).ends.start == model.ends.end


# ---- nucleus --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pair", "blip", "git"])
def test_a_drawn_caption_does_not_depend_on_its_company(tmp_path: Path, kind: str) -> None:
    save_existing(kind, tmp_path / "model")
    model = build(CaptionerConfig(name=str(tmp_path / "model")))
    options = GenerationOptions(method="nucleus", max_tokens=12, temperature=3.0)
    with torch.inference_mode():
        states = model.encode(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        whole = write(model, states, list("abcd"), options, 0)
        for row, name in enumerate("abcd"):
            alone = write(model, states[row : row + 1], [name], options, 0)
            assert (alone[0] == whole[row]).all()
        turned = write(model, states.flip(0), list("dcba"), options, 0)
        other = write(model, states, list("wxyz"), options, 0)
    assert (turned[::-1] == whole).all()
    assert not (other == whole).all(1).any()
    assert len({tuple(row) for row in whole}) == 4


def test_words_are_drawn_by_their_probability_within_the_nucleus() -> None:
    ids = [str(number) for number in range(4000)]
    chances = torch.tensor([0.5, 0.25, 0.15, 0.1])
    for top_p, kept in ((1.0, 4), (0.85, 3), (0.6, 2), (0.4, 1)):
        drawn = Nucleus(ids, GenerationOptions(method="nucleus", top_p=top_p), 0)
        words = drawn(torch.zeros(len(ids), 1, dtype=torch.long), chances.log().expand(len(ids), 4)).argmax(1)
        found = np.bincount(words.numpy(), minlength=4) / len(ids)
        wanted = chances[:kept].numpy() / chances[:kept].sum().item()
        assert found[kept:].sum() == 0
        assert np.abs(found[:kept] - wanted).max() < 4 * np.sqrt(0.25 / len(ids))
    cold = Nucleus(ids, GenerationOptions(method="nucleus", top_p=1.0, temperature=0.5), 0)
    words = cold(torch.zeros(len(ids), 1, dtype=torch.long), chances.log().expand(len(ids), 4)).argmax(1)
    wanted = (chances**2 / (chances**2).sum()).numpy()
    assert np.abs(np.bincount(words.numpy(), minlength=4) / len(ids) - wanted).max() < 0.035


def test_each_place_and_seed_draws_anew() -> None:
    ids, even = [str(number) for number in range(200)], torch.zeros(200, 50)

    def words(seed: int, place: int) -> list[int]:
        options = GenerationOptions(method="nucleus", top_p=1.0)
        return Nucleus(ids, options, seed)(torch.zeros(200, place, dtype=torch.long), even).argmax(1).tolist()

    assert words(0, 1) == words(0, 1)
    for other in (words(0, 2), words(1, 1)):
        assert sum(a == b for a, b in zip(words(0, 1), other, strict=True)) < 20  # 4 expected


# ---- likelihood -----------------------------------------------------------------------------------


def test_a_trained_head_scores_few_tokens_at_once_where_nothing_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word scores of a whole validation batch, 16 x 128 tokens of 50,257 words, are 412 MB."""
    save_existing("pair", tmp_path / "model")
    model = build(CaptionerConfig(name=str(tmp_path / "model")))
    assert model.plain_head is not None
    assert model.plain_head.requires_grad
    states, tokens = model.encode(torch.randn(2, 3, 32, 32)), torch.randint(0, 300, (2, 9))
    length = torch.tensor([9, 5])
    learnt, _ = token_losses(model, states, tokens, length)
    assert learnt.requires_grad

    def whole(_hidden: torch.Tensor) -> torch.Tensor:
        raise AssertionError("all scores at once")

    monkeypatch.setattr(model, "logits", whole)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            measured, owner = token_losses(model, states, tokens, length)
        torch.testing.assert_close(measured, learnt.detach(), rtol=1e-5, atol=1e-5)
        assert torch.bincount(owner).tolist() == [9, 5]


def test_what_is_told_to_generate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that decides the words is left to a default of the library."""
    save_existing("pair", tmp_path / "model")
    model = build(CaptionerConfig(name=str(tmp_path / "model")))
    told: list[Any] = []

    def generate(_states: torch.Tensor, options: Any, processors: Any) -> torch.Tensor:
        told.append(SimpleNamespace(options=options, processors=list(processors)))
        return torch.zeros(1, 2, dtype=torch.long)

    monkeypatch.setattr(model, "generate", generate)
    for method in ("greedy", "beam", "nucleus"):
        write(model, torch.zeros(1, 1, 16), ["a"], GenerationOptions(method=method, beams=3), 0)
    assert [(one.options.num_beams, one.options.do_sample) for one in told] == [(1, False), (3, False), (1, False)]
    assert [len(one.processors) for one in told] == [0, 0, 1]
    assert {one.options.num_return_sequences for one in told} == {1}
