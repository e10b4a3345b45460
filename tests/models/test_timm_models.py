"""timm backbones: parity, strict weights from a file, rebuilding, helpful refusals."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finesight.errors import ModelError
from finesight.models import weights
from finesight.models.backbones import ModelConfig, build

timm = pytest.importorskip("timm")
CLASSES = ["ant", "bee", "cat"]


def saved(name: str, path: Path, classes: int = 1000) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=classes).eval()
    save_file(model.state_dict(), path)
    return model


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("classes", [1000, 7])
def test_features_equal_timms_and_the_spec_rebuilds_them(name: str, classes: int, tmp_path: Path) -> None:
    reference = saved(name, tmp_path / "w.safetensors", classes)
    model = build(ModelConfig(name=f"timm:{name}", weights=str(tmp_path / "w.safetensors")), CLASSES)
    images = torch.randn(2, 3, model.image_size, model.image_size)
    with torch.no_grad():
        expected = reference.forward_head(reference.forward_features(images), pre_logits=True)
        assert torch.allclose(model.features(images), expected, atol=1e-6)
    settings = timm.data.resolve_model_data_config(reference)
    assert model.image_size == settings["input_size"][1] == 160
    assert (model.mean, model.std, model.fit) == (settings["mean"], settings["std"], "crop")
    assert model.random_parameters() == ["head.weight", "head.bias"]
    model.save_spec(tmp_path)
    rebuilt = build(ModelConfig(), CLASSES, saved=tmp_path)
    weights.load_strict(rebuilt, model.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(images), model(images))


def test_another_image_size_resamples_the_positions(tmp_path: Path) -> None:
    saved("test_vit", tmp_path / "w.safetensors")
    config = ModelConfig(name="timm:test_vit", weights=str(tmp_path / "w.safetensors"), image_size=96)
    model = build(config, CLASSES)
    assert model.image_size == 96
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 3)
    model.save_spec(tmp_path)
    weights.load_strict(build(ModelConfig(), CLASSES, saved=tmp_path), model.state_dict())


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_fatal(change: str, tmp_path: Path) -> None:
    """Without its own class count timm loads loosely, and only logs what is missing."""
    state = dict(timm.create_model("test_resnet").state_dict())
    if change == "missing":
        del state["layer1.0.conv1.weight"]
    elif change == "unexpected":
        state["layer9.weight"] = torch.zeros(1)
    else:
        state["conv1.weight"] = torch.zeros(2, 3, 3, 3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"w\.safetensors: timm cannot make test_resnet"):
        build(ModelConfig(name="timm:test_resnet", weights=str(tmp_path / "w.safetensors")), CLASSES)


def test_unknown_names_get_near_ones() -> None:
    with pytest.raises(ModelError, match=r"timm:resnet81: .*resnet18"):
        build(ModelConfig(name="timm:resnet81"), CLASSES)


def test_random_and_unreachable() -> None:
    model = build(ModelConfig(name="timm:test_vit", pretrained=False), CLASSES)
    assert len(model.random_parameters()) == len(list(model.parameters()))
    with pytest.raises(ModelError, match=r"timm/test_vit.*cannot be reached"):
        build(ModelConfig(name="timm:test_vit"), CLASSES)
