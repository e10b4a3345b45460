"""LoRA: the formula, merging, which modules it finds, and targets that match nothing."""

from pathlib import Path

import pytest
import torch
from torch import nn

from finesight.adaptation import AdaptConfig, apply, merge
from finesight.adaptation.lora import attention_projections
from finesight.errors import ModelError
from finesight.models.backbones import ModelConfig, build
from finesight.models.classifier import Classifier
from tests.models.folders import save

CLASSES = ["ant", "bee", "cat"]
FOUND = {
    "vit": ("layers.0.attention.q_proj", "layers.0.attention.v_proj"),
    "beit": ("layers.0.attention.q_proj", "layers.0.attention.v_proj"),
    "dinov2": ("encoder.layer.0.attention.q_proj", "encoder.layer.0.attention.v_proj"),
    "swin": ("blocks.0.attention.q_proj", "blocks.0.attention.v_proj"),
}


def made(kind: str, folder: Path) -> Classifier:
    save(kind, folder, CLASSES)
    return build(ModelConfig(name=str(folder)), CLASSES)


def shake(model: nn.Module) -> None:
    """Give every adapter a change (they begin as none)."""
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)


def outputs(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images)


@pytest.mark.parametrize("kind", FOUND)
def test_query_and_value_are_found_by_listing_the_modules(kind: str, tmp_path: Path) -> None:
    """transformers 5 renamed ViT's `query` and `value`; fixed names would match nothing."""
    model = made(kind, tmp_path)
    names = attention_projections(model.backbone)
    assert len(names) == 4
    for expected in FOUND[kind]:
        assert any(name.endswith(expected) for name in names)


def test_old_names_of_tutorials_are_an_error_with_near_names(tmp_path: Path) -> None:
    model = made("vit", tmp_path)
    config = AdaptConfig(method="lora", targets=["query", "v_proj", "valu_proj"])
    with pytest.raises(ModelError) as caught:
        apply(model, config)
    assert len(caught.value.problems) == 2
    assert "'query' matches no module" in str(caught.value)
    assert "'valu_proj' matches no module; near names: model.vit.layers.0.attention.v_proj" in str(caught.value)


@pytest.mark.parametrize("kind", ["vit", "beit", "swin", "dinov2"])
def test_a_fresh_adapter_changes_nothing_and_a_merged_one_equals_it(kind: str, tmp_path: Path) -> None:
    model = made(kind, tmp_path)
    images = torch.randn(3, 3, model.image_size, model.image_size)
    plain = outputs(model, images)
    keys = set(model.state_dict())
    apply(model, AdaptConfig(method="lora", rank=4, dropout=0.3))
    assert torch.equal(outputs(model, images), plain)
    shake(model)
    adapted = outputs(model, images)
    assert not torch.allclose(adapted, plain, atol=1e-3)
    assert merge(model) is model
    assert torch.allclose(outputs(model, images), adapted, atol=1e-5)
    assert set(model.state_dict()) == keys


def test_the_update_is_alpha_over_rank_times_b_a(tmp_path: Path) -> None:
    model = made("vit", tmp_path)
    layer = model.backbone.get_submodule("model.vit.layers.1.attention.q_proj")
    before = layer.weight.detach().clone()
    apply(model, AdaptConfig(method="lora", rank=2, alpha=6.0))
    shake(model)
    wrapped = model.backbone.get_submodule("model.vit.layers.1.attention.q_proj")
    update = wrapped.lora_B["default"].weight @ wrapped.lora_A["default"].weight
    merge(model)
    assert torch.allclose(layer.weight, before + 3.0 * update, atol=1e-6)


def test_convolutional_backbones_need_named_targets(tmp_path: Path) -> None:
    model = made("resnet", tmp_path)
    with pytest.raises(ModelError, match=r"no attention query and value.*head or full.*adapt\.targets.*convolution"):
        apply(model, AdaptConfig(method="lora"))
    images = torch.randn(2, 3, 64, 64)
    target = "model.resnet.encoder.stages.1.layers.0.layer.1.convolution"
    found = apply(model, AdaptConfig(method="lora", rank=2, targets=[target]))
    assert found.adapted == [f"backbone.{target}", "head"]
    shake(model)
    adapted = outputs(model, images)
    merge(model)
    assert torch.allclose(outputs(model, images), adapted, atol=1e-5)


def test_a_full_name_adapts_that_module_only(tmp_path: Path) -> None:
    """peft's own list of names would also take every module whose name ends so."""
    backbone = nn.ModuleDict({"block": nn.Linear(4, 4), "outer": nn.ModuleDict({"block": nn.Linear(4, 4)})})
    from finesight.adaptation.lora import inject

    inject(backbone, AdaptConfig(method="lora", rank=1, targets=["block"]))
    assert not isinstance(backbone["block"], nn.Linear)
    assert isinstance(backbone["outer"]["block"], nn.Linear)


def test_a_module_that_lora_cannot_wrap_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'layernorm' is LayerNorm, which LoRA cannot wrap"):
        apply(made("vit", tmp_path), AdaptConfig(method="lora", targets=["layernorm"]))
    with pytest.raises(ModelError, match="is empty"):
        apply(made("vit", tmp_path), AdaptConfig(method="lora", targets=[]))


def test_fused_projections_of_timm_are_found() -> None:
    pytest.importorskip("timm")
    model = build(ModelConfig(name="timm:test_vit", pretrained=False), CLASSES)
    names = attention_projections(model.backbone)
    assert names
    assert all(name.endswith(".qkv") for name in names)


def test_leaf_vit_has_query_and_value() -> None:
    model = build(ModelConfig(name="leaf-vit-64"), CLASSES)
    assert attention_projections(model.backbone) == ["block.query", "block.value"]


def test_merge_without_adapters_changes_nothing() -> None:
    model = build(ModelConfig(), CLASSES)
    keys = list(model.state_dict())
    assert list(merge(model).state_dict()) == keys


def test_the_package_gives_functions_not_modules() -> None:
    import finesight.adaptation as room

    assert callable(room.audit)
    assert callable(room.apply)
    with pytest.raises(AttributeError, match="prefix_tuning"):
        room.prefix_tuning  # noqa: B018
