"""Building classifiers: parity with the library, strict weights, fresh or kept heads, rebuilding."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from finesight.config import build as configure
from finesight.errors import ConfigError, ModelError
from finesight.models import MLP, LeafViT, SmallCNN, inception_v3, weights
from finesight.models.backbones import ModelConfig, build
from finesight.models.classifier import Classifier
from tests.models.folders import KINDS, save

CLASSES = ["ant", "bee", "cat", "dog"]


def photos(model: Classifier, count: int = 3) -> torch.Tensor:
    size = model.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images)


# --- named architectures


@pytest.mark.parametrize(
    ("name", "whole", "size"),
    [
        ("small-cnn", lambda: SmallCNN(4), 64),
        ("mlp", lambda: MLP(classes=4), 32),
        ("leaf-vit-64", lambda: LeafViT(64, 4), 64),
        ("leaf-vit-256", lambda: LeafViT(256, 4), 256),
        ("inception-v3", lambda: inception_v3(4), 299),
    ],
)
def test_named_architectures_keep_their_names_and_counts(name: str, whole: Any, size: int) -> None:
    model = build(ModelConfig(name=name), CLASSES)
    assert model.image_size == size
    assert (model.mean, model.std, model.fit) == ((0.5,) * 3, (0.5,) * 3, "squash")
    assert not model.training
    reference = whole()
    weights.load_strict(reference, model.state_dict())
    images = photos(model, 2)
    expected = logits(reference, images)
    assert torch.equal(logits(model, images), expected)
    assert torch.equal(model.head(model.features(images)), expected)
    assert model.features(images).shape == (2, model.width)
    assert len(model.random_parameters()) == len(list(model.parameters()))


def test_options_of_named_architectures() -> None:
    small = build(ModelConfig(name="small-cnn", width=16, image_size=32, dropout=0.3), CLASSES)
    assert small.width == 64
    assert [module.p for module in small.modules() if isinstance(module, nn.Dropout)] == [0.3]
    assert build(ModelConfig(name="mlp", image_size=16), CLASSES).backbone[1].in_features == 768
    inception = build(ModelConfig(name="inception-v3", hidden=64, image_size=96), CLASSES)
    assert inception.head[0].out_features == 64
    with pytest.raises(ModelError, match="image_size 96: leaf-vit-64 is defined for 64"):
        build(ModelConfig(name="leaf-vit-64", image_size=96), CLASSES)
    with pytest.raises(ModelError, match="inception-v3: does not take images of 32 pixels"):
        build(ModelConfig(name="inception-v3", image_size=32), CLASSES)
    with pytest.raises(ConfigError, match="attention"):
        configure(ModelConfig, {"attention": "flash"})


def test_unknown_names_and_classes_are_refused() -> None:
    with pytest.raises(ModelError, match="did you mean 'small-cnn'"):
        build(ModelConfig(name="smal-cnn"), CLASSES)
    with pytest.raises(ModelError, match="no such folder"):
        build(ModelConfig(name="./not/there/at/all"), CLASSES)
    with pytest.raises(ModelError, match="3 class names, 2 of them distinct"):
        build(ModelConfig(), ["a", "b", "a"])


def test_named_weights_restore_all_or_only_the_backbone(tmp_path: Path) -> None:
    source = build(ModelConfig(), CLASSES)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    config = ModelConfig(weights=str(tmp_path / "w.safetensors"))
    same = build(config, CLASSES)
    assert weights.state_hash(same) == weights.state_hash(source)
    assert same.random_parameters() == []
    other = build(config, ["a", "b"])
    assert weights.state_hash(other.backbone) == weights.state_hash(source.backbone)
    assert other.random_parameters() == ["head.1.weight", "head.1.bias"]
    assert "the head is new" in other.notes[0]


def test_named_weights_that_do_not_fit_are_fatal(tmp_path: Path) -> None:
    state = build(ModelConfig(width=16), CLASSES).state_dict()
    save_file(state, tmp_path / "narrow.safetensors")
    with pytest.raises(ModelError, match="of another shape"):
        build(ModelConfig(weights=str(tmp_path / "narrow.safetensors")), CLASSES)
    state = build(ModelConfig(), CLASSES).state_dict()
    save_file({**state, "tail.weight": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(ModelError, match=r"tail\.weight"):
        build(ModelConfig(weights=str(tmp_path / "more.safetensors")), CLASSES)


def test_inception_takes_torchvisions_file(tmp_path: Path) -> None:
    """With torchvision's names, auxiliary head and 1,000 classes; equal features to the last bit."""
    import torchvision

    reference = torchvision.models.inception_v3(weights=None, aux_logits=True, init_weights=False).eval()
    torch.save(reference.state_dict(), tmp_path / "inception.pth")
    model = build(ModelConfig(name="inception-v3", weights=str(tmp_path / "inception.pth")), CLASSES)
    reference.fc, reference.dropout = nn.Identity(), nn.Identity()
    images = photos(model, 1)
    with torch.no_grad():
        assert torch.equal(model.features(images), reference(images))
    assert model.random_parameters() == ["head.0.weight", "head.0.bias", "head.3.weight", "head.3.bias"]


# --- Hugging Face folders


@pytest.mark.parametrize("kind", KINDS)
def test_matching_labels_keep_the_head_and_equal_the_library(kind: str, tmp_path: Path) -> None:
    reference = save(kind, tmp_path, CLASSES)
    model = build(ModelConfig(name=str(tmp_path)), CLASSES)
    images = photos(model)
    expected = logits_of(reference, images)
    assert torch.allclose(logits(model, images), expected, atol=1e-6)
    shuffled = build(ModelConfig(name=str(tmp_path)), ["dog", "ant", "bee", "cat"])
    assert torch.allclose(logits(shuffled, images), expected[:, [3, 0, 1, 2]], atol=1e-6)
    assert model.random_parameters() == []
    assert any("head came with the model" in note for note in model.notes)


def logits_of(reference: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return reference(pixel_values=images).logits


@pytest.mark.parametrize("kind", KINDS)
def test_other_labels_get_a_fresh_head_on_the_same_features(kind: str, tmp_path: Path) -> None:
    reference = save(kind, tmp_path, ["x", "y", "z", "w"])
    model = build(ModelConfig(name=str(tmp_path)), CLASSES)
    assert model.random_parameters() == ["head.weight", "head.bias"]
    linear = [m for m in reference.modules() if isinstance(m, nn.Linear) and m.out_features == 4][-1]
    images = photos(model)
    with torch.no_grad():
        assert torch.allclose(linear(model.features(images)), logits_of(reference, images), atol=1e-6)
    assert model.head.out_features == 4
    assert not torch.equal(model.head.weight, linear.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_spec_rebuilds_the_same_model_without_the_folder(kind: str, tmp_path: Path) -> None:
    save(kind, tmp_path / "model", CLASSES)
    model = build(ModelConfig(name=str(tmp_path / "model"), dropout=0.2), ["one", "two"])
    model.save_spec(tmp_path / "spec")
    for path in (tmp_path / "model").iterdir():
        path.unlink()
    rebuilt = build(ModelConfig(name=str(tmp_path / "model")), ["one", "two"], saved=tmp_path / "spec")
    weights.load_strict(rebuilt, model.state_dict())
    assert torch.equal(logits(rebuilt, photos(model)), logits(model, photos(model)))
    assert rebuilt.spec == model.spec
    assert rebuilt.spec_key() == model.spec_key()
    assert rebuilt.random_parameters() == model.random_parameters()


@pytest.mark.parametrize("name", ["small-cnn", "mlp", "leaf-vit-64"])
def test_spec_rebuilds_named_architectures(name: str, tmp_path: Path) -> None:
    model = build(ModelConfig(name=name, dropout=0.1), CLASSES)
    model.save_spec(tmp_path)
    rebuilt = build(ModelConfig(name="mlp"), CLASSES, saved=tmp_path)
    weights.load_strict(rebuilt, model.state_dict())
    assert torch.equal(logits(rebuilt, photos(model)), logits(model, photos(model)))
    with pytest.raises(ModelError, match="made for the classes ant, bee, cat, dog, not for dog"):
        build(ModelConfig(), CLASSES[::-1], saved=tmp_path)
    (tmp_path / "model.json").write_text('{"format": 1}')
    with pytest.raises(ModelError, match=r"model\.json: damaged"):
        build(ModelConfig(), CLASSES, saved=tmp_path)


def edit(folder: Path, change: Any) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_backbone_tensor_is_fatal(tmp_path: Path) -> None:
    save("vit", tmp_path, CLASSES)
    edit(tmp_path, lambda state: state.pop("vit.layernorm.weight"))
    with pytest.raises(ModelError, match=r"1 weights besides the head.*stay random.*layernorm\.weight"):
        build(ModelConfig(name=str(tmp_path)), CLASSES)


def test_an_unexpected_tensor_is_fatal(tmp_path: Path) -> None:
    save("beit", tmp_path, CLASSES)
    edit(tmp_path, lambda state: state.update({"beit.extra.weight": torch.zeros(2)}))
    with pytest.raises(ModelError, match=r"no place in the model.*beit\.extra\.weight"):
        build(ModelConfig(name=str(tmp_path)), CLASSES)


def test_a_tensor_of_another_shape_is_fatal(tmp_path: Path) -> None:
    save("vit", tmp_path, CLASSES)
    edit(tmp_path, lambda state: state.update({"vit.embeddings.cls_token": torch.zeros(1, 1, 8)}))
    with pytest.raises(ModelError, match=r"another shape.*cls_token \(has \[1, 1, 8\], the"):
        build(ModelConfig(name=str(tmp_path)), CLASSES)


def test_an_encoder_without_head_is_welcome(tmp_path: Path) -> None:
    """As google/vit-base-patch16-224-in21k: no classifier, and a pooler that a classifier does not use."""
    from transformers import ViTModel

    from tests.models.folders import settings_of

    reference = ViTModel(settings_of("vit")).eval()
    reference.save_pretrained(tmp_path)
    model = build(ModelConfig(name=str(tmp_path)), CLASSES)
    images = photos(model)
    with torch.no_grad():
        expected = reference(pixel_values=images).last_hidden_state[:, 0]
        assert torch.allclose(model.features(images), expected, atol=1e-6)
    assert any("pooler.dense.weight" in note for note in model.notes)
    assert model.random_parameters() == ["head.weight", "head.bias"]


def test_half_precision_folders_are_read_in_single(tmp_path: Path) -> None:
    save("vit", tmp_path, CLASSES).to(torch.bfloat16).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    model = build(ModelConfig(name=str(tmp_path)), CLASSES)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_not_pretrained_takes_only_the_architecture(tmp_path: Path) -> None:
    save("vit", tmp_path, CLASSES)
    (tmp_path / "model.safetensors").unlink()
    model = build(ModelConfig(name=str(tmp_path), pretrained=False), CLASSES)
    assert len(model.random_parameters()) == len(list(model.parameters()))
    assert logits(model, photos(model)).shape == (3, 4)


def test_folders_that_cannot_classify_are_refused_in_one_line(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)).save_pretrained(
        tmp_path / "bert"
    )
    with pytest.raises(ModelError, match="cannot be loaded as an image classifier") as caught:
        build(ModelConfig(name=str(tmp_path / "bert")), CLASSES)
    assert len(caught.value.problems) == 1
    save("vit", tmp_path / "vit", CLASSES)
    (tmp_path / "vit" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="cannot be loaded"):
        build(ModelConfig(name=str(tmp_path / "vit")), CLASSES)


def test_a_model_with_two_heads_is_refused(tmp_path: Path) -> None:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    settings = DeiTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    DeiTForImageClassificationWithTeacher(settings).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="several heads"):
        build(ModelConfig(name=str(tmp_path)), CLASSES)


def processor(folder: Path, **entries: Any) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(entries))


def test_preprocessing_of_the_folder_is_used(tmp_path: Path) -> None:
    save("vit", tmp_path, CLASSES)
    processor(
        tmp_path,
        image_processor_type="ViTImageProcessor",
        size={"height": 32, "width": 32},
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.4, 0.5, 0.6],
    )
    model = build(ModelConfig(name=str(tmp_path)), CLASSES)
    assert (model.image_size, model.mean, model.std, model.fit) == (
        32,
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
        "squash",
    )


def test_preprocessing_equals_the_processors_pixels(tmp_path: Path) -> None:
    """Rescaling by factor and offset, as EfficientNet's processor does, ends in our mean and std."""
    from transformers import AutoImageProcessor

    from finesight.data.transforms import normalise

    save("resnet", tmp_path, CLASSES)
    processor(
        tmp_path,
        image_processor_type="EfficientNetImageProcessor",
        size={"height": 40, "width": 40},
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        include_top=False,
        image_mean=[0.2, 0.3, 0.4],
        image_std=[0.5, 0.6, 0.7],
    )
    model = build(ModelConfig(name=str(tmp_path)), CLASSES)
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(list(images), return_tensors="pt")["pixel_values"]
    assert model.image_size == 40
    assert torch.allclose(normalise(images, model.mean, model.std), theirs, atol=1e-5)


def test_preprocessing_with_a_crop_or_a_shortest_edge_crops(tmp_path: Path) -> None:
    save("resnet", tmp_path, CLASSES)
    processor(
        tmp_path,
        image_processor_type="BeitImageProcessor",
        size={"height": 64, "width": 64},
        crop_size={"height": 48, "width": 48},
        do_center_crop=True,
    )
    model = build(ModelConfig(name=str(tmp_path)), CLASSES)
    assert (model.image_size, model.fit) == (48, "crop")
    processor(tmp_path, image_processor_type="ConvNextImageProcessor", size={"shortest_edge": 56})
    model = build(ModelConfig(name=str(tmp_path)), CLASSES)
    assert (model.image_size, model.fit) == (56, "crop")


@pytest.mark.parametrize("kind", ["vit", "dinov2", "swin", "convnext"])
def test_another_image_size_is_taken_where_the_model_can(kind: str, tmp_path: Path) -> None:
    save(kind, tmp_path / "model", CLASSES)
    model = build(ModelConfig(name=str(tmp_path / "model"), image_size=56), CLASSES)
    assert logits(model, torch.randn(1, 3, 56, 56)).shape == (1, 4)
    model.save_spec(tmp_path)
    rebuilt = build(ModelConfig(), CLASSES, saved=tmp_path)
    weights.load_strict(rebuilt, model.state_dict())
    assert torch.equal(logits(rebuilt, photos(model)), logits(model, photos(model)))


@pytest.mark.parametrize("kind", ["vit", "beit"])
def test_eager_and_sdpa_agree(kind: str, tmp_path: Path) -> None:
    save(kind, tmp_path, CLASSES)
    models = [build(ModelConfig(name=str(tmp_path), attention=which), CLASSES) for which in ("eager", "sdpa")]
    assert [model.backbone.model.config._attn_implementation for model in models] == ["eager", "sdpa"]
    assert torch.allclose(*(logits(model, photos(model)) for model in models), atol=1e-6)
    assert models[0].spec_key() != models[1].spec_key()


def test_random_parameters_survive_copy_and_move(tmp_path: Path) -> None:
    save("vit", tmp_path, CLASSES)
    model = build(ModelConfig(name=str(tmp_path)), ["a", "b"])
    assert copy.deepcopy(model).to(torch.float64).random_parameters() == ["head.weight", "head.bias"]
