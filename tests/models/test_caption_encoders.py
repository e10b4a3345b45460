"""Image encoders of captioners: whole images seen alike each time, maps refused, what is never used not trained."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finesight.errors import ModelError
from finesight.models import caption_parts
from finesight.models.captioner import Captioner, CaptionerConfig, build
from tests.models.test_captioner import WORDS, adapted, backward, pair, save_gpt2, shaken

TINY: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
MAPS = {"hidden_sizes": [8, 16], "depths": [1, 1]}


def encoder(kind: str) -> Any:
    import transformers as t

    torch.manual_seed(0)
    made = {
        "clip": lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**TINY)),
        "siglip": lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**TINY)),
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**{k: v for k, v in TINY.items() if k != "intermediate_size"})),
        "mae": lambda: t.ViTMAEForPreTraining(
            t.ViTMAEConfig(**TINY, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
        ),
        "resnet": lambda: t.ResNetModel(t.ResNetConfig(embedding_size=8, layer_type="basic", **MAPS)),
        "convnext": lambda: t.ConvNextModel(t.ConvNextConfig(num_stages=2, image_size=32, **MAPS)),
    }
    return shaken(made[kind]())


def captioner(kind: str, folder: Path, **options: Any) -> Captioner:
    encoder(kind).save_pretrained(folder / kind)
    return build(CaptionerConfig(name=f"{folder / kind}+{save_gpt2(folder / 'gpt2')}", **options))


@pytest.mark.parametrize(
    ("kind", "unused"),
    [
        ("clip", {"post_layernorm.weight", "post_layernorm.bias"}),
        ("siglip", {"head.probe", "head.attention.in_proj_weight", "head.mlp.fc1.bias"}),
        ("dinov2", {"embeddings.mask_token"}),
        ("mae", set()),
    ],
)
def test_the_audit_trains_what_gets_a_gradient_and_nothing_else(tmp_path: Path, kind: str, unused: set[str]) -> None:
    model = captioner(kind, tmp_path)
    found = adapted(model, method="full")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    left = {name for name in trained - backward(model) if "k_proj.bias" not in name}
    assert left == set()
    frozen = {name for name, _ in model.named_parameters()} - trained
    assert {f"net.encoder.{name}" for name in unused} <= frozen
    assert bool(frozen) == bool(unused)
    assert found.trainable == sum(model.get_parameter(name).numel() for name in trained)
    assert set(found.adapted) == {name.rpartition(".")[0] for name in trained}
    model.save_spec(tmp_path / "spec")
    again = build(CaptionerConfig(name="gone+away"), tmp_path / "spec")
    adapted(again, method="full")
    assert {name for name, p in again.named_parameters() if p.requires_grad} == trained


def test_a_masked_autoencoder_sees_all_of_an_image_each_time(tmp_path: Path) -> None:
    """By itself it hides three quarters of the patches, others each time, in evaluation too."""
    from transformers import ViTConfig, ViTModel

    model = captioner("mae", tmp_path)
    plain = ViTModel(ViTConfig(**TINY), add_pooling_layer=False).eval()
    plain.load_state_dict(model.net.encoder.state_dict())
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        states = model.encode(images)
        assert states.shape == (3, 17, 16)
        assert torch.equal(states, model.encode(images))
        assert torch.equal(states, model.image_states(images))
        torch.testing.assert_close(states, plain(images).last_hidden_state, rtol=0, atol=1e-5)
    model.save_spec(tmp_path / "spec")
    again = build(CaptionerConfig(name="gone+away"), tmp_path / "spec")
    again.load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert torch.equal(again.encode(images), states)


def changed(states: Any) -> Any:
    """`image_states` with something done to its outcome."""
    real = caption_parts.image_states
    return lambda net, images: states(real(net, images))


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (lambda found: found + torch.randn_like(found), "gives other states each time"),
        (lambda found: found[:, None], r"makes \[1, 1, 17, 16\] of one image"),
    ],
)
def test_an_encoder_that_gives_no_states_to_rely_on_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: Any, said: str
) -> None:
    settings = pair(tmp_path)
    build(settings)
    monkeypatch.setattr("finesight.models.captioner.image_states", changed(states))
    with pytest.raises(ModelError, match=said):
        build(settings)


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_maps_of_features_are_refused_by_name(tmp_path: Path, kind: str, pretrained: bool) -> None:
    with pytest.raises(ModelError, match=f"{kind}: a {kind} model has no hidden_size.*Use a vision transformer"):
        captioner(kind, tmp_path, pretrained=pretrained)


# ---- positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "known"), [("roberta", 18), ("bert", 20)])
def test_a_text_takes_all_positions_and_no_more(tmp_path: Path, kind: str, known: int) -> None:
    """RoBERTa counts positions from behind that of its padding: of 20 it uses 18."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from finesight.models import tokenizers
    from finesight.tasks.generation import GenerationOptions, write
    from tests.models.test_captioner import TEXTS, save_vit

    tiny = {key: value for key, value in TINY.items() if key not in ("image_size", "patch_size")}
    torch.manual_seed(0)
    settings = AutoConfig.for_model(kind, **tiny, vocab_size=WORDS, is_decoder=True, max_position_embeddings=20)
    shaken(AutoModelForCausalLM.from_config(settings)).save_pretrained(tmp_path / kind)
    tokenizers.train(TEXTS, WORDS).save_pretrained(tmp_path / kind)
    model = build(CaptionerConfig(name=f"{save_vit(tmp_path / 'vit')}+{tmp_path / kind}"))
    assert model.positions == known
    with torch.inference_mode():
        states = model.encode(torch.randn(1, 3, 32, 32))
        model.hidden(states, torch.full((1, known), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model.hidden(states, torch.full((1, known + 1), 7))
        assert write(model, states, ["a"], GenerationOptions(max_tokens=96), 0).shape == (1, 96)


# ---- revisions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [
        ("small-captioner", "abc", "random weights and has no revisions"),
        ("vit-base+distilgpt2", "abc", "random weights and has no revisions"),
        ("FOLDER", "abc", "a folder on this machine and has no revisions"),
        ("FOLDER+some/model", "abc+def", "a folder on this machine and has no revisions"),
        ("some/encoder+some/model", "abc", "is 2 models. Give one revision for each"),
        ("some/captioner", "abc+def", "is 1 model. Give one revision for each"),
    ],
)
def test_a_revision_of_what_has_none_is_refused(tmp_path: Path, name: str, revision: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build(CaptionerConfig(name=name.replace("FOLDER", str(tmp_path)), revision=revision))


@pytest.mark.parametrize(
    ("name", "revision", "asked"),
    [
        ("some/encoder+some/model", "abc+def", [("some/encoder", "abc"), ("some/model", "def")]),
        ("some/encoder+some/model", "+def", [("some/encoder", None), ("some/model", "def")]),
        ("some/encoder+some/model", None, [("some/encoder", None), ("some/model", None)]),
        ("some/captioner", "abc", [("some/captioner", "abc")]),
    ],
)
def test_each_model_is_fetched_at_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, revision: str | None, asked: list[Any]
) -> None:
    fetched = []
    pair(tmp_path)
    places = {"some/encoder": tmp_path / "vit", "some/model": tmp_path / "gpt2", "some/captioner": tmp_path / "gpt2"}

    def fetch(repository: str, revision: str | None = None, *, needs_weights: bool = True) -> Path:
        fetched.append((repository, revision))
        return places[repository]

    monkeypatch.setattr("finesight.models.hub.fetch", fetch)
    monkeypatch.setattr("finesight.models.tokenizers.fetch", lambda _name, _revision: None)
    wanted = CaptionerConfig(name=name, revision=revision)
    if "+" in name:
        build(wanted)
    else:
        with pytest.raises(ModelError, match="a gpt2 model, not one of"):
            build(wanted)
    assert fetched == asked


def test_random_weights_ask_for_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finesight.models.hub.fetch", SimpleNamespace())
    assert build(CaptionerConfig(image_size=24)).image_size == 24
