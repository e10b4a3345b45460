"""CLIP as a classifier: logits as in transformers and open_clip, exact counts, rebuilding, what does not fit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from finesight.adaptation import audit, frozen_state, trainable_state
from finesight.adaptation.config import AdaptConfig
from finesight.adaptation.lora import inject
from finesight.checkpoint import restore_module
from finesight.errors import CheckpointError, ModelError
from finesight.models import clip, prompts, tokenizers
from finesight.models.classifier import Classifier
from finesight.models.clip import ClipConfig, VisionTower, ZeroShotHead, build
from tests.models.folders import clip_folder, clip_tokenizer, real_clip_tokenizer, save

CLASSES = ["airplane", "great_white_shark", "owl"]
TEXTS = ["a photo of an airplane.", "a photo of a great white shark.", "a photo of an owl."]
TEMPLATES = ["a photo of a {}.", "art of the {}.", "{}"]


def photos(count: int = 4, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


def config(folder: Path, **options: Any) -> ClipConfig:
    return ClipConfig(name=str(folder), **options)


# ---- the same numbers as the libraries ------------------------------------------------------------


@pytest.mark.parametrize("attention", ["auto", "eager", "sdpa"])
def test_logits_equal_transformers(attention: Any, tmp_path: Path) -> None:
    from transformers import CLIPProcessor

    net = clip_folder(tmp_path, TEXTS)
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    batch = CLIPProcessor.from_pretrained(tmp_path)(
        text=TEXTS, images=[Image.fromarray(image) for image in noise], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        expected = net(**batch).logits_per_image
    model = build(config(tmp_path, attention=attention), CLASSES)
    found = logits(model, batch["pixel_values"])
    assert torch.allclose(found, expected, atol=1e-5)
    assert expected.std(1).min() > 0.05, "logits that are all alike would prove nothing"
    assert torch.allclose(
        logits(build(config(tmp_path), CLASSES[::-1]), batch["pixel_values"]), expected.flip(1), atol=1e-5
    )


def test_an_ensemble_equals_the_formula_on_transformers_features(tmp_path: Path) -> None:
    net, tokenizer = clip_folder(tmp_path), clip_tokenizer()
    model = build(config(tmp_path, templates=TEMPLATES), CLASSES)
    with torch.no_grad():
        image = net.get_image_features(photos()).pooler_output
        rows = []
        for texts in prompts.sentences(CLASSES, TEMPLATES):
            text = net.get_text_features(**tokenizer(texts, return_tensors="pt", padding=True)).pooler_output
            rows.append(text / text.norm(dim=1, keepdim=True))
        mean = torch.stack(rows).mean(0)
        cosines = (image / image.norm(dim=1, keepdim=True)) @ (mean / mean.norm(dim=1, keepdim=True)).T
        assert torch.allclose(logits(model, photos()), cosines * net.logit_scale.exp(), atol=1e-5)
        assert torch.allclose(model.head.template_vectors, torch.stack(rows), atol=1e-6)
        features = model.features(photos())
        assert torch.allclose(model.head.project(features), image, atol=1e-5)
        assert torch.allclose(model.head.embed(features), image / image.norm(dim=1, keepdim=True), atol=1e-6)
    assert model.head.class_vectors.norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_logits_equal_open_clip(real_data: Path, tmp_path: Path) -> None:
    """Another implementation of model and tokenizer, with the same weights."""
    from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg
    from open_clip.tokenizer import SimpleTokenizer

    net = clip_folder(
        tmp_path, tokenizer=real_clip_tokenizer(real_data / "tokenizers/clip/bpe_simple_vocab_16e6.txt.gz")
    )
    image = CLIPVisionCfg(layers=2, width=16, head_width=8, mlp_ratio=2, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=77, vocab_size=49_408, width=16, heads=2, layers=2, mlp_ratio=2)
    other = CLIP(8, image, text, quick_gelu=True).eval()
    other.load_state_dict(_for_open_clip(net.state_dict()))
    with torch.no_grad():
        image_vectors, text_vectors, scale = other(photos(), SimpleTokenizer()(TEXTS))
    found = logits(build(config(tmp_path), CLASSES), photos())
    assert torch.allclose(found, scale * image_vectors @ text_vectors.T, atol=1e-5)


def _for_open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's names: query, key and value in one, projections the other way round."""
    found = {
        "visual.proj": state["visual_projection.weight"].T,
        "text_projection": state["text_projection.weight"].T,
        "logit_scale": state["logit_scale"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
    }
    norms = {"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post"}
    norms["text_model.final_layer_norm"] = "ln_final"
    parts = {"self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    parts |= {"layer_norm1": "ln_1", "layer_norm2": "ln_2"}
    for kind in ("weight", "bias"):
        found |= {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for ours, theirs in norms.items()}
        for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
            for layer in range(2):
                here, there = f"{tower}.encoder.layers.{layer}", f"{prefix}transformer.resblocks.{layer}"
                found |= {f"{there}.{theirs}.{kind}": state[f"{here}.{ours}.{kind}"] for ours, theirs in parts.items()}
                three = [state[f"{here}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                found[f"{there}.attn.in_proj_{kind}"] = torch.cat(three)
    return found


# ---- counts ---------------------------------------------------------------------------------------


def test_the_numbers_of_the_report() -> None:
    """S12: LoRA of rank 8 on the vision tower's q, k and v: 442,368 of 87,898,368 parameters."""
    settings = clip._named_settings("clip-vit-base-patch32", tokenizers.train([], 257))
    with torch.device("meta"):
        net = clip._random(settings, ClipConfig())
        tower = VisionTower(net.vision_model)
        assert (audit(net).total, audit(tower).total) == (151_277_313, 87_456_000)
        inject(tower, AdaptConfig(method="lora", rank=8, alpha=32, dropout=0.1, targets=["q_proj", "k_proj", "v_proj"]))
    found = audit(tower)
    assert (found.trainable, found.total, len(found.adapted)) == (442_368, 87_898_368, 36)


def test_the_audit_counts_the_tower_alone_and_nothing_of_the_text_stays(tmp_path: Path) -> None:
    net = clip_folder(tmp_path)
    model = build(config(tmp_path), CLASSES)
    assert audit(model.backbone).total == sum(p.numel() for p in net.vision_model.parameters())
    assert audit(model).total == audit(model.backbone).total + 16 * 8 + 1
    assert {name.partition(".")[2] for name in model.state_dict() if name.startswith("head.")} == {
        "projection.weight", "log_scale", "template_vectors", "class_vectors",
    }  # fmt: skip
    assert not any("text" in name or "token" in name for name in model.state_dict())
    assert model.random_parameters() == []
    assert model.width == 16


def test_named_architectures_are_random(tmp_path: Path) -> None:
    model = build(ClipConfig(), CLASSES)
    assert (model.image_size, model.mean, model.std, model.fit) == (64, clip.MEAN, clip.STD, "crop")
    assert logits(model, photos(2, 64)).shape == (2, 3)
    assert len(model.random_parameters()) == len(list(model.parameters()))
    assert any("random" in note for note in model.notes)
    larger = build(ClipConfig(image_size=96, templates=["ein {}"]), CLASSES)
    assert logits(larger, photos(2, 96)).shape == (2, 3)
    clip_folder(tmp_path)
    fresh = build(config(tmp_path, pretrained=False), CLASSES)
    assert len(fresh.random_parameters()) == len(list(fresh.parameters()))
    assert not torch.equal(fresh.head.projection.weight, build(config(tmp_path), CLASSES).head.projection.weight)
    own = build(ClipConfig(tokenizer=str(tmp_path)), CLASSES)
    assert own.head.class_vectors.shape == (3, 128)


# ---- the head -------------------------------------------------------------------------------------


def head_of(vectors: torch.Tensor, scale: float) -> ZeroShotHead:
    projection = nn.Linear(vectors.shape[-1], vectors.shape[-1], bias=False)
    with torch.no_grad():
        projection.weight.copy_(torch.eye(vectors.shape[-1]))
    return ZeroShotHead(projection, vectors, float(np.log(scale)))


def test_logits_are_scaled_cosines() -> None:
    head = head_of(torch.eye(2)[None], 50.0)
    found = head(torch.tensor([[3.0, 4.0], [0.0, -0.1]]))
    assert torch.allclose(found, torch.tensor([[30.0, 40.0], [0.0, -50.0]]), atol=1e-4)
    double = head.double()(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    assert double.dtype == torch.float64
    cosines = double / head.log_scale.exp()
    assert cosines.tolist() == [pytest.approx([0.6, 0.8], abs=1e-12)]


def test_cosines_are_not_computed_in_bfloat16() -> None:
    torch.manual_seed(0)
    head = head_of(nn.functional.normalize(torch.randn(1, 10, 64), dim=-1), 100.0)
    features = torch.randn(200, 64)
    expected = head(features)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(features)
        wrong = 100 * (head.embed(features) @ head.class_vectors.T)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert (wrong.float() - expected).abs().max() > 0.05
    assert head(features.bfloat16()).dtype == torch.float32


def test_bfloat16_sees_the_same_classes(tmp_path: Path) -> None:
    clip_folder(tmp_path)
    model = build(config(tmp_path), [f"class {n}" for n in "abcdefgh"])
    images = photos(400) + 2 * torch.randn(400, 3, 1, 1, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():  # classes in the directions in which the images differ
        vectors = model.head.embed(model.features(images))
        model.head.class_vectors.copy_(nn.functional.normalize(vectors[:8] - vectors.mean(0), dim=1))
    exact = logits(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = logits(model, images)
    assert 0 < (rough - exact).abs().max() < 1, "the tower runs in bfloat16"
    assert (rough.argmax(1) == exact.argmax(1)).float().mean() > 0.98
    assert exact.argmax(1).bincount().max() < 250, "one class for all would prove nothing"


def test_gradients_reach_images_and_tower_and_nothing_else(tmp_path: Path) -> None:
    clip_folder(tmp_path)
    model = build(config(tmp_path), CLASSES).train()
    images = photos().requires_grad_()
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    assert [name for name, parameter in model.head.named_parameters() if parameter.requires_grad] == []
    assert not model.head.training
    assert model.backbone.training


# ---- sizes and preprocessing ----------------------------------------------------------------------


def test_another_size_interpolates_the_positions(tmp_path: Path) -> None:
    net = clip_folder(tmp_path)
    model = build(config(tmp_path, image_size=48), CLASSES)
    assert model.image_size == 48
    with torch.no_grad():
        expected = net.vision_model(photos(size=48), interpolate_pos_encoding=True).pooler_output
    assert torch.allclose(model.features(photos(size=48)), expected, atol=1e-5)
    with pytest.raises(ModelError, match="image_size 44: is no multiple of the patch size 8"):
        build(config(tmp_path, image_size=44), CLASSES)
    with pytest.raises(ValueError, match="doesn't match model"):
        build(config(tmp_path), CLASSES)(photos(size=48))


@pytest.mark.parametrize("written", ["nothing", "image processor", "whole processor", "openai"])
def test_preprocessing_is_read_from_the_folder(written: str, tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPProcessor

    clip_folder(tmp_path, processor=False)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    square = {"height": 32, "width": 32}
    made = CLIPImageProcessor(size=square, do_center_crop=False, image_mean=mean, image_std=std)
    if written == "image processor":
        made.save_pretrained(tmp_path)
    elif written == "whole processor":
        CLIPProcessor(made, clip_tokenizer()).save_pretrained(tmp_path)
        assert not (tmp_path / "preprocessor_config.json").exists()
    elif written == "openai":  # the file of openai/clip-vit-base-patch32, with other numbers
        old = {"crop_size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True, "size": 32}
        old |= {"feature_extractor_type": "CLIPFeatureExtractor", "image_mean": mean, "image_std": std, "resample": 3}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    model = build(config(tmp_path), CLASSES)
    assert model.image_size == 32
    own = written == "nothing"
    assert model.mean == (clip.MEAN if own else tuple(mean))
    assert model.std == (clip.STD if own else tuple(std))
    assert model.fit == ("crop" if written in ("nothing", "openai") else "squash")
    assert any("no preprocessor_config.json" in note for note in model.notes) == own


# ---- runs -----------------------------------------------------------------------------------------


def saved_run(model: Classifier, folder: Path) -> dict[str, torch.Tensor]:
    model.save_spec(folder)
    return {name: tensor.clone() for name, tensor in frozen_state(model).items()}


def test_a_run_is_rebuilt_without_the_original_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip_folder(tmp_path / "clip")
    options = config(tmp_path / "clip", templates=TEMPLATES, image_size=48)
    adaptation = AdaptConfig(method="lora", targets=["q_proj", "v_proj"])
    model = build(options, CLASSES)
    inject(model.backbone, adaptation)
    stored = saved_run(model, tmp_path / "run")
    trained = trainable_state(model)
    assert {"head.class_vectors", "head.template_vectors", "head.log_scale"} <= set(stored)
    assert all(name.startswith("backbone.") and "lora_" in name for name in trained)

    shutil.rmtree(tmp_path / "clip")
    monkeypatch.setattr(prompts, "text_vectors", None)
    again = build(options, CLASSES, saved=tmp_path / "run")
    inject(again.backbone, adaptation)
    for tensors, expected in ((stored, frozen_state(again)), (trained, trainable_state(again))):
        restore_module(again, tensors, set(expected), "run")
    assert torch.equal(logits(again.eval(), photos(size=48)), logits(model.eval(), photos(size=48)))
    assert (again.spec, again.mean, again.fit) == (model.spec, model.mean, model.fit)
    assert again.spec_key() == model.spec_key()


def test_a_stored_run_is_loaded_strictly(tmp_path: Path) -> None:
    clip_folder(tmp_path / "clip")
    model = build(config(tmp_path / "clip"), CLASSES)
    model.requires_grad_(False)
    stored = saved_run(model, tmp_path / "run")
    assert set(stored) == set(model.state_dict())
    again = build(config(tmp_path / "clip"), CLASSES, saved=tmp_path / "run")
    again.requires_grad_(False)
    assert not torch.equal(again.head.class_vectors, model.head.class_vectors)
    del stored["head.class_vectors"]
    with pytest.raises(CheckpointError, match=r"missing \(such as head\.class_vectors"):
        restore_module(again, stored, set(frozen_state(again)), "run")
    with pytest.raises(ModelError, match="same classes in the same order"):
        build(config(tmp_path / "clip"), CLASSES[::-1], saved=tmp_path / "run")
    content = json.loads((tmp_path / "run/model.json").read_text())
    (tmp_path / "run/model.json").write_text(json.dumps({**content, "family": "timm"}))
    with pytest.raises(ModelError, match="another kind"):
        build(config(tmp_path / "clip"), CLASSES, saved=tmp_path / "run")


def test_features_are_the_same_for_other_prompts_and_classes(tmp_path: Path) -> None:
    """So that the cache of frozen features serves every set of prompts."""
    clip_folder(tmp_path)
    key = build(config(tmp_path), CLASSES).spec_key()
    assert build(config(tmp_path, templates=["a {}"]), ["cat", "dog"]).spec_key() == key
    assert build(config(tmp_path, image_size=48), CLASSES).spec_key() != key


def test_a_second_label_set_for_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip_folder(tmp_path)
    model = build(config(tmp_path), CLASSES)
    tower = clip.text_tower(config(tmp_path))
    found = prompts.text_vectors(tower, ["owl", "lamp"], ["a photo of a {}."])
    assert torch.allclose(found[0, 0], model.head.class_vectors[2], atol=1e-6)
    monkeypatch.setattr(prompts.TextTower, "vectors", None)
    same = prompts.text_vectors(tower, CLASSES, ["a photo of a {}."])  # known from building the model
    assert torch.equal(same, model.head.template_vectors)


# ---- what does not fit ----------------------------------------------------------------------------


def test_folders_that_are_no_clip(tmp_path: Path) -> None:
    save("vit", tmp_path / "vit", CLASSES)
    with pytest.raises(ModelError, match="a vit model, not a CLIP"):
        build(config(tmp_path / "vit"), CLASSES)
    with pytest.raises(ModelError, match="did you mean 'small-clip'"):
        build(ClipConfig(name="smal-clip"), CLASSES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        build(config(tmp_path / "empty"), CLASSES)
    with pytest.raises(ModelError, match="3 class names, 2 of them distinct"):
        build(ClipConfig(), ["a", "b", "a"])
    clip_folder(tmp_path / "clip")
    with pytest.raises(ModelError, match=r"tokenizer '/no/such': no such folder"):
        build(config(tmp_path / "clip", tokenizer="/no/such"), CLASSES)
    clip_folder(tmp_path / "other", TEXTS)
    with pytest.raises(ModelError, match="the tokenizer has 5.. tokens, the text tower 514"):
        build(config(tmp_path / "clip", tokenizer=str(tmp_path / "other")), CLASSES)


def test_weights_are_strict_but_for_old_position_ids(tmp_path: Path) -> None:
    net = clip_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    state, expected = load_file(file), logits(build(config(tmp_path), CLASSES), photos())
    old = {f"{tower}.embeddings.position_ids": torch.arange(17)[None] for tower in ("vision_model", "text_model")}
    save_file({**state, **old}, file, metadata={"format": "pt"})
    assert torch.equal(logits(build(config(tmp_path), CLASSES), photos()), expected)
    save_file({**state, "tail.weight": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights have no place in the model: tail\.weight"):
        build(config(tmp_path), CLASSES)
    for name in ("logit_scale", "visual_projection.weight", "vision_model.post_layernorm.bias"):
        save_file({key: value for key, value in state.items() if key != name}, file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=rf"1 weights are missing .*{name}"):
            build(config(tmp_path), CLASSES)
    wrong = {**state, "visual_projection.weight": torch.zeros(9, 16)}
    save_file(wrong, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"another shape: visual_projection\.weight"):
        build(config(tmp_path), CLASSES)
    net.half().save_pretrained(tmp_path)
    half = build(config(tmp_path), CLASSES)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}


def test_the_options_need_no_torch() -> None:
    code = "import sys, finesight.models.clip_config; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
