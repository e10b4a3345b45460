"""Captioners: strict loading of any pair, what is adapted and what would stay random, outputs as in transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finesight import config
from finesight.adaptation import merge, trainable_parameters
from finesight.adaptation.captioners import CaptionAdaptConfig, apply
from finesight.errors import ModelError
from finesight.models import tokenizers
from finesight.models.captioner import Captioner, CaptionerConfig, build

WORDS = 300
TEXTS = ["Chest x-ray shows bilateral opacities.", "Small consolidation in the right upper lobe.", "No finding."]
REPORT = {"method": "lora", "rank": 4, "alpha": 8.0, "targets": ["c_attn", "c_proj"]}
CROSS = ["crossattention", "ln_cross_attn"]


def shaken(net: Any) -> Any:
    """Random weights of which no bias is zero by construction."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return net.eval()


def save_vit(folder: Path, **changed: Any) -> Path:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    shaken(ViTModel(ViTConfig(**{**tiny, "image_size": 32, "patch_size": 8, **changed}))).save_pretrained(folder)
    return folder


def save_gpt2(folder: Path, **changed: Any) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    tiny = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": WORDS}
    none = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    shaken(GPT2LMHeadModel(GPT2Config(**{**tiny, **none, **changed}))).save_pretrained(folder)
    tokenizers.train(TEXTS, WORDS).save_pretrained(folder)
    return folder


def pair(folder: Path, *, image: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> CaptionerConfig:
    encoder, decoder = save_vit(folder / "vit", **(image or {})), save_gpt2(folder / "gpt2", **(text or {}))
    return CaptionerConfig(name=f"{encoder}+{decoder}")


def adapted(model: Captioner, **options: Any) -> Any:
    return apply(model, config.build(CaptionAdaptConfig, options))


def backward(model: Captioner) -> set[str]:
    """Names of the parameters that get a gradient that is not zero."""
    model.train()
    states = model.encode(torch.randn(2, 3, model.image_size, model.image_size))
    tokens = torch.randint(0, model.words, (2, 9))
    model.logits(model.hidden(states, tokens)).square().mean().backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


# ---- the audit ----------------------------------------------------------------------------------


def test_the_numbers_of_the_report() -> None:
    """S2: 1,179,648 of 183,664,896 parameters, 0.6423 %, 30 modules; 14,183,424 random ones in the cross-attention."""
    with torch.device("meta"):
        model = build(CaptionerConfig(name="vit-base+distilgpt2"))
    report = {**REPORT, "rank": 16, "alpha": 32.0, "dropout": 0.05}
    names = [name for name, _ in model.named_parameters() if "crossattention" in name or "ln_cross_attn" in name]
    assert sum(model.get_parameter(name).numel() for name in names) == 14_183_424
    with torch.device("meta"):
        found = adapted(model, **report, allow_random_frozen=True)
    assert (found.trainable, found.total, len(found.adapted)) == (1_179_648, 183_664_896, 30)
    assert found.lines()[0] == "Trained: 1,179,648 of 183,664,896 parameters (0.6423 %)."
    assert found.lines()[1] == "Parameters of 30 modules will get a gradient:"
    kinds = {name.split(".h.")[1].partition(".")[2] for name in found.adapted}
    assert kinds == {"attn.c_attn", "attn.c_proj", "crossattention.c_attn", "crossattention.c_proj", "mlp.c_proj"}


def test_the_setting_of_the_report_leaves_random_cross_attention_frozen_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        adapted(build(pair(tmp_path)), **REPORT)
    text = str(caught.value)
    assert "16 randomly initialised tensors with 2,240 parameters" in text
    assert "crossattention.q_attn.weight" in text
    assert "--adapt.modules_to_save crossattention,ln_cross_attn" in text
    found = adapted(build(pair(tmp_path)), **REPORT, allow_random_frozen=True)
    left = {name.rpartition(".")[0].partition(".h.")[2][2:] for name in found.frozen_random}
    assert left == {"crossattention.q_attn", "crossattention.c_attn", "crossattention.c_proj", "ln_cross_attn"}
    assert any("Random and never trained: 16 tensors" in line for line in found.lines())


def test_the_remedy_trains_the_cross_attention_beside_the_adapters(tmp_path: Path) -> None:
    model = build(pair(tmp_path))
    found = adapted(model, **REPORT, modules_to_save=CROSS)
    assert found.frozen_random == []
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("crossattention.q_attn.weight" in name for name in trained)
    assert not any("lora" in name for name in trained if "crossattention" in name)
    assert model.frozen_encoder


@pytest.mark.parametrize(
    "options",
    [
        {"method": "full"},
        {"method": "decoder"},
        {**REPORT, "modules_to_save": CROSS},
        {**REPORT, "allow_random_frozen": True},
        {**REPORT, "targets": ["c_attn", "encoder.layers.1.attention.q_proj"], "modules_to_save": CROSS},
    ],
)
def test_every_parameter_that_the_audit_trains_gets_a_gradient(tmp_path: Path, options: dict[str, Any]) -> None:
    model = build(pair(tmp_path))
    with torch.no_grad():
        found = adapted(model, **options)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, so that A would get no gradient in the first step
                parameter.add_(torch.randn_like(parameter) * 0.1)
    reached = backward(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    # The keys' bias moves all scores of a row alike, so its gradient is zero but for rounding.
    assert {name for name in trained - reached if "k_proj.bias" not in name} == set()
    assert found.trainable == sum(p.numel() for p in trainable_parameters(model))
    assert not any("pooler" in name for name in trained)


@pytest.mark.parametrize("kind", ["pair", "blip", "git"])
def test_default_targets_are_the_attention_of_the_text_half(tmp_path: Path, kind: str) -> None:
    """GPT-2's cross-attention has its query apart; the image encoder of GIT gives the same layers other names."""
    save_existing(kind, tmp_path / "model")
    model = build(CaptionerConfig(name=str(tmp_path / "model")))
    found = adapted(model, method="lora", rank=2)
    leaves = {tuple(name.split(".")[-2:]) for name in found.adapted}
    assert (
        leaves
        == {
            "pair": {("attn", "c_attn"), ("crossattention", "c_attn"), ("crossattention", "q_attn")},
            "blip": {("self", "query"), ("self", "value")},
            "git": {("self", "query"), ("self", "value")},
        }[kind]
    )
    assert not any(name.startswith(f"net.{model.parts.prefix}") for name in found.adapted)
    assert found.trainable > 0


def test_adapters_that_train_nothing_are_refused(tmp_path: Path) -> None:
    save_existing("pair", tmp_path / "model")
    model = build(CaptionerConfig(name=str(tmp_path / "model")))
    with pytest.raises(ModelError, match="adapt.method lora: nothing of .* would be trained"):
        adapted(model, method="lora", targets=["encoder.pooler.dense"], modules_to_save=["encoder.pooler"])


def test_targets_mean_the_text_half_unless_the_encoder_is_named(tmp_path: Path) -> None:
    """q_proj is a layer of the ViT as of many language models: a bare name must not adapt both."""
    with pytest.raises(ModelError, match="matches the image encoder only"):
        adapted(build(pair(tmp_path)), method="lora", targets=["q_proj"], modules_to_save=CROSS)
    found = adapted(
        build(pair(tmp_path)), method="lora", targets=["encoder.layers.0.attention.q_proj"], modules_to_save=CROSS
    )
    assert sum(".encoder." in name for name in found.adapted) == 1
    with pytest.raises(ModelError, match="matches no module; near names"):
        adapted(build(pair(tmp_path)), method="lora", targets=["c_atn"])
    with pytest.raises(ModelError, match="modules_to_save: 'crossattn' matches no module"):
        adapted(build(pair(tmp_path)), method="lora", modules_to_save=["crossattn"])


def test_a_frozen_encoder_has_no_dropout_in_training(tmp_path: Path) -> None:
    model = build(pair(tmp_path, image={"hidden_dropout_prob": 0.5}))
    adapted(model, method="decoder")
    model.train()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.encode(images), model.encode(images))
    assert model.net.decoder.training


# ---- merging ------------------------------------------------------------------------------------


def test_merged_weights_equal_the_adapters(tmp_path: Path) -> None:
    """GPT-2's Conv1D stores its weights the other way round: merged as if linear, they would differ wholly."""
    model = build(pair(tmp_path))
    adapted(model, **REPORT, modules_to_save=CROSS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.eval()
    states, tokens = model.encode(torch.randn(2, 3, 32, 32)), torch.randint(0, WORDS, (2, 9))
    with torch.inference_mode():
        before = model.logits(model.hidden(states, tokens))
    merge(model)
    with torch.inference_mode():
        after = model.logits(model.hidden(states, tokens))
    assert not any("lora" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


# ---- loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [16, 24])
def test_a_pair_gives_the_scores_of_transformers(tmp_path: Path, width: int) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderModel, ViTModel

    settings = pair(tmp_path, text={"n_embd": width})
    model = build(settings)
    text = GPT2Config.from_pretrained(tmp_path / "gpt2", is_decoder=True, add_cross_attention=True)
    decoder = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2", config=text)
    net = VisionEncoderDecoderModel(encoder=ViTModel.from_pretrained(tmp_path / "vit"), decoder=decoder).eval()
    net.load_state_dict(model.net.state_dict())  # the cross-attention is new, and drawn anew
    images, tokens = torch.randn(3, 3, 32, 32), torch.randint(0, WORDS, (3, 7))
    with torch.inference_mode():
        ours = model.logits(model.hidden(model.encode(images), tokens))
        theirs = net(pixel_values=images, decoder_input_ids=tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert any("cross" in name for name in model.random_parameters())
    assert hasattr(net, "enc_to_dec_proj") == any("enc_to_dec_proj" in name for name in model.random_parameters())


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_other_language_models_read_the_image_and_are_causal(tmp_path: Path, kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from finesight.tasks.generation import refuse_leak

    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **tiny, vocab_size=WORDS, is_decoder=True))
    shaken(net).save_pretrained(tmp_path / kind)
    tokenizers.train(TEXTS, WORDS).save_pretrained(tmp_path / kind)
    model = build(CaptionerConfig(name=f"{save_vit(tmp_path / 'vit')}+{tmp_path / kind}"))
    tokens = torch.randint(5, WORDS, (2, 7))
    with torch.inference_mode():
        one, other = (model.encode(torch.randn(2, 3, 32, 32)) for _ in range(2))
        scores = model.logits(model.hidden(one, tokens))
        theirs = model.net(encoder_outputs=(one,), decoder_input_ids=tokens).logits
        assert not torch.allclose(scores, model.logits(model.hidden(other, tokens)), atol=1e-4)
        refuse_leak(model, one[:1], tokens[:1])
    torch.testing.assert_close(scores, theirs, rtol=0, atol=1e-5)


def test_pretrained_halves_are_kept(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel, ViTModel

    model = build(pair(tmp_path))
    for kind, half, prefix in ((ViTModel, "vit", "net.encoder."), (GPT2LMHeadModel, "gpt2", "net.decoder.")):
        for name, tensor in kind.from_pretrained(tmp_path / half).state_dict().items():
            assert torch.equal(model.state_dict()[prefix + name], tensor)


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    settings = pair(tmp_path)
    for half, lost in (("vit", "0.attention.attention.query.weight"), ("gpt2", "h.1.mlp.c_fc.weight")):
        path = tmp_path / half / "model.safetensors"
        state = load_file(path)
        kept = {name: tensor for name, tensor in state.items() if not name.endswith(lost)}
        assert len(kept) == len(state) - 1
        save_file(kept, path, metadata={"format": "pt"})
        with pytest.raises(ModelError, match="1 weights are missing and would stay random"):
            build(settings)
        save_file(state, path, metadata={"format": "pt"})


def test_a_language_model_without_cross_attention_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    save_vit(tmp_path / "vit")
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    LlamaForCausalLM(LlamaConfig(**tiny, vocab_size=WORDS)).save_pretrained(tmp_path / "llama")
    tokenizers.train(TEXTS, WORDS).save_pretrained(tmp_path / "llama")
    with pytest.raises(ModelError, match="would never see the image"):
        build(CaptionerConfig(name=f"{tmp_path / 'vit'}+{tmp_path / 'llama'}"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("small-captoner", "did you mean 'small-captioner'"),
        ("a+b+c", "ENCODER\\+LANGUAGE_MODEL"),
        ("nobody/nothing+nobody/none", "hf download nobody/nothing"),
    ],
)
def test_wrong_names(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build(CaptionerConfig(name=name))


def test_a_rebuilt_captioner_writes_the_same(tmp_path: Path) -> None:
    model = build(pair(tmp_path))
    adapted(model, **REPORT, modules_to_save=CROSS)
    model.save_spec(tmp_path / "spec")
    again = build(CaptionerConfig(name="gone+away"), tmp_path / "spec")
    adapted(again, **REPORT, modules_to_save=CROSS)
    again.load_state_dict(model.state_dict())
    assert again.tokenizer.encode(TEXTS[0]) == model.tokenizer.encode(TEXTS[0])
    assert again.ends == model.ends
    assert again.random_parameters() == model.random_parameters()
    states, tokens = model.encode(torch.zeros(1, 3, 32, 32)), torch.arange(5)[None]
    assert torch.equal(again.hidden(states, tokens), model.hidden(states, tokens))


def test_relative_folders_of_a_pair_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_vit(tmp_path / "vit")
    monkeypatch.chdir(tmp_path)
    assert CaptionerConfig(name="vit+some/model").name == f"{tmp_path / 'vit'}+some/model"
    assert CaptionerConfig(name="small-captioner").name == "small-captioner"


# ---- tokenizers ---------------------------------------------------------------------------------


def test_a_learnt_tokenizer_writes_any_text_and_is_the_same_each_time() -> None:
    texts = [*TEXTS, "Über 60 µg/l, 'κ' ≥ 3 — naïve?"]
    first, again = (tokenizers.train(order, WORDS) for order in (texts, texts[::-1]))
    assert first.get_vocab() == again.get_vocab()
    assert len(first) <= WORDS
    for text in (*texts, "日本語 never seen"):
        assert tokenizers.decode(first, first.encode(text)) == text


def test_the_vocabulary_files_of_gpt2_are_a_tokenizer(real_data: Path) -> None:
    tokenizer = tokenizers.load(real_data / "tokenizers" / "gpt2")
    assert tokenizer.encode("Chest x-ray shows") == [45170, 2124, 12, 2433, 2523]
    ends = tokenizers.ends(tokenizer, "gpt2")
    assert ends == (50256, 50256, 50256)
    rows = tokenizers.encode(tokenizer, ["Chest x-ray shows", "Chest"], ends.end, 4)
    assert rows == [[45170, 2124, 12, 2433], [45170, 50256]]  # what was cut has no end


def save_bert_words(folder: Path, words: str) -> Path:
    """A vocabulary of word pieces and the configuration that says how to read it."""
    from transformers import BertConfig

    BertConfig(vocab_size=len(words.split())).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words.split()) + "\n", encoding="utf-8")
    return folder


PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] chest x ray - / . ' 2 5 mg l patient s shows cm nodule a , left [ ] sep"


def test_a_special_token_written_in_a_caption_is_letters(tmp_path: Path) -> None:
    """Read as the token it names, the end would stand within the caption, and be learnt there."""
    learnt = tokenizers.train(TEXTS, WORDS)
    end = tokenizers.ends(learnt, "it").end
    (row,) = tokenizers.encode(learnt, ["no <|endoftext|> finding"], end, 99)
    assert row.count(end) == 1
    assert row[-1] == end
    assert tokenizers.decode(learnt, row[:-1]) == "no <|endoftext|> finding"
    pieces = tokenizers.load(save_bert_words(tmp_path / "bert", PIECES))
    (row,) = tokenizers.encode(pieces, ["left [SEP] chest"], pieces.sep_token_id, 99)
    assert row.count(pieces.sep_token_id) == 1
    assert tokenizers.decode(pieces, row[:-1]) == "left [ sep ] chest"


def test_word_pieces_give_words_back_as_they_were(tmp_path: Path) -> None:
    """Their own text has "x - ray" and "2. 5 mg / l", other words for every caption score."""
    pieces = tokenizers.load(save_bert_words(tmp_path / "bert", PIECES))
    for text in ("chest x-ray shows a 2.5 cm nodule, patient's left.", "5.2 mg/l. 5 cm left"):
        (row,) = tokenizers.encode(pieces, [text], pieces.sep_token_id, 99)
        given = pieces.decode(row, skip_special_tokens=True)
        assert given != text
        assert tokenizers.decode(pieces, row) == text


def test_word_pieces_join_no_sentences(tmp_path: Path) -> None:
    pieces = tokenizers.load(save_bert_words(tmp_path / "bert", f"{PIECES} 2019 1 200"))
    for text in ("chest 2019. 2 cm nodule", "1,200 mg", "patient 2, 5 cm"):
        (row,) = tokenizers.encode(pieces, [text], pieces.sep_token_id, 99)
        assert tokenizers.decode(pieces, row) == text
    (row,) = tokenizers.encode(pieces, ["shows 'nodule' a"], pieces.sep_token_id, 99)
    assert tokenizers.decode(pieces, row) == "shows ' nodule ' a"


def test_letters_as_byte_pairs_are_left_as_they_are() -> None:
    learnt = tokenizers.train(TEXTS, WORDS)
    for text in ("x - ray", "2. 5", "a / b", "patient ' s"):
        assert tokenizers.decode(learnt, learnt.encode(text)) == text


def test_a_vocabulary_alone_is_no_tokenizer(tmp_path: Path) -> None:
    folder = save_bert_words(tmp_path / "bert", PIECES)
    assert len(tokenizers.load(folder)) == len(PIECES.split())
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="without config.json, says not how texts are cut"):
        tokenizers.load(folder)


def test_a_folder_without_tokenizer_and_one_with_code(tmp_path: Path) -> None:
    save_vit(tmp_path / "vit")
    with pytest.raises(ModelError, match="holds no tokenizer"):
        tokenizers.load(tmp_path / "vit")
    folder = save_gpt2(tmp_path / "gpt2")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["a.B", None]}}))
    with pytest.raises(ModelError, match="auto_map"):
        tokenizers.load(folder)


# ---- existing captioners ------------------------------------------------------------------------


def save_existing(kind: str, folder: Path) -> Any:
    from transformers import BlipConfig, BlipForConditionalGeneration, GitConfig, GitForCausalLM

    from finesight.models.captioner import build as built

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {**small, "image_size": 32, "patch_size": 8}
    tokenizer = tokenizers.train(TEXTS, WORDS)
    net: nn.Module
    if kind == "pair":
        net = built(pair(folder.parent)).net
    elif kind == "blip":
        text = {**small, "vocab_size": WORDS, "encoder_hidden_size": 16, "bos_token_id": 1, "sep_token_id": 0,
                "pad_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 64}  # fmt: skip
        net = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=16))
    else:
        net = GitForCausalLM(GitConfig(**small, vocab_size=WORDS, vision_config=vision, max_position_embeddings=64))
    shaken(net).save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    return net


@pytest.mark.parametrize("kind", ["pair", "blip", "git"])
def test_existing_captioners_load_train_and_write(tmp_path: Path, kind: str) -> None:
    from transformers import GenerationConfig

    net = save_existing(kind, tmp_path / "model")
    model = build(CaptionerConfig(name=str(tmp_path / "model")))
    assert model.random_parameters() == []
    for name, tensor in net.state_dict().items():
        assert torch.equal(model.net.state_dict()[name], tensor)
    adapted(model, method="decoder")
    assert model.frozen_encoder
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    # The keys' bias moves all scores of a row alike, so its gradient is zero but for rounding.
    assert {name for name in trained - backward(model) if "key.bias" not in name} == set()
    model.eval()
    with torch.inference_mode():
        states = model.encode(torch.randn(2, 3, 32, 32))
        options = GenerationConfig(max_new_tokens=6, eos_token_id=model.ends.end, pad_token_id=model.ends.pad)
        tokens = model.generate(states, options)
        greedy = model.logits(model.hidden(states, tokens[:, :1]))[:, 0].argmax(-1)
    assert tokens[:, 0].tolist() == [model.ends.start] * 2
    assert torch.equal(greedy, tokens[:, 1])


@pytest.mark.parametrize("kind", ["blip", "git"])
def test_teacher_forced_scores_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    net = save_existing(kind, tmp_path / "model")
    model = build(CaptionerConfig(name=str(tmp_path / "model")))
    images, tokens = torch.randn(2, 3, 32, 32), torch.randint(0, WORDS, (2, 7))
    with torch.inference_mode():
        ours = model.logits(model.hidden(model.encode(images), tokens))
        theirs = net(pixel_values=images, input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    torch.testing.assert_close(ours, theirs[:, -7:], rtol=0, atol=1e-5)
