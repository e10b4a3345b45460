"""ResNet-20 against the weights and the images that are in common use."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finesight.attacks import Normalized, pgd, predictions, prepared
from finesight.data.cifar10 import CLASSES
from finesight.errors import ModelError
from finesight.models import backbones, resnet20, weights
from finesight.models.backbones import ModelConfig
from finesight.models.resnet_cifar import BasicBlock

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_counts_and_depth() -> None:
    model = resnet20()
    assert sum(parameter.numel() for parameter in model.parameters()) == 269_722
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 20
    assert not [name for name, _ in model.named_parameters() if "shortcut" in name]
    images = torch.randn(2, 3, 32, 32)
    assert model.features(images).shape == (2, 64)
    assert torch.equal(model.eval()(images), model.linear(model.features(images)))
    assert resnet20(classes=7)(images).shape == (2, 7)


def test_the_shortcut_takes_every_second_pixel_between_channels_of_zeros() -> None:
    block = BasicBlock(16, 32, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)
    maps = torch.rand(2, 16, 8, 8)
    seen = block(maps)
    assert torch.equal(seen[:, 8:24], maps[:, :, ::2, ::2])
    assert seen[:, :8].abs().max() == 0
    assert seen[:, 24:].abs().max() == 0


def test_gradients_stay_channels_last() -> None:
    """A gradient in the other layout slows down each layer that it passes."""
    model = resnet20().eval().to(memory_format=torch.channels_last)
    layouts: list[bool] = []
    for block in (*model.layer1, *model.layer2, *model.layer3):
        block.register_full_backward_hook(
            lambda module, inputs, outputs: layouts.append(outputs[0].is_contiguous(memory_format=torch.channels_last))
        )
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last).requires_grad_()
    model(images).sum().backward()
    assert layouts == [True] * 9


def test_the_common_weight_file_loads_strictly(real_data: Path) -> None:
    state = weights.read(real_data / "cifar10" / "resnet20-12fca82f.th")
    model = resnet20()
    weights.load_strict(model, state)
    assert set(model.state_dict()) == set(state)
    with pytest.raises(ModelError, match=r"1 missing: bn1\.weight"):
        weights.load_strict(resnet20(), {name: value for name, value in state.items() if name != "bn1.weight"})


@pytest.fixture(scope="module")
def published(real_data: Path) -> tuple[Normalized, Tensor, Tensor]:
    """The trained model of pixels, and the 1,000 lossless test images with labels."""
    model = resnet20()
    weights.load_strict(model, weights.read(real_data / "cifar10" / "resnet20-12fca82f.th"))
    arrays = np.load(real_data / "cifar10" / "cifar10_lossless_5000.npz")
    images = torch.from_numpy(arrays["test_images"]).permute(0, 3, 1, 2).contiguous().float() / 255
    return Normalized(model, MEAN, STD).eval(), images, torch.from_numpy(arrays["test_labels"]).long()


def test_915_of_1000_are_right(published: tuple[Normalized, Tensor, Tensor]) -> None:
    model, images, labels = published
    assert (predictions(model, images) == labels).sum() == 915
    assert (predictions(prepared(model), images) == labels).sum() == 915


@pytest.mark.slow
@pytest.mark.parametrize(("eps", "expected"), [(0.5, 0.575), (1.0, 0.252)])
def test_pgd_leaves_what_the_reference_leaves(
    published: tuple[Normalized, Tensor, Tensor], eps: float, expected: float
) -> None:
    model, images, labels = published
    fast = prepared(model)
    for options in ({}, {"bf16": True, "early_stop": True}):
        generator = torch.Generator().manual_seed(0)
        found = torch.cat(
            [
                pgd(fast, *batch, eps / 255, eps / 4 / 255, 7, generator=generator, **options)
                for batch in zip(images.split(250), labels.split(250), strict=True)
            ]
        )
        left = (predictions(model, found) == labels).double().mean().item()
        assert left == pytest.approx(expected, abs=0.006)


def test_a_classifier_takes_the_common_file_and_its_head_only_for_its_own_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = resnet20()
    file = tmp_path / "resnet20.th"
    torch.save({"state_dict": {f"module.{name}": value for name, value in net.state_dict().items()}}, file)
    config = ModelConfig(name="resnet20", weights=str(file))
    model = backbones.build(config, list(CLASSES))
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(model(images), net.eval()(images))
    assert (model.spec.random, model.mean) == ((), (0.485, 0.456, 0.406))
    other = backbones.build(config, [f"class {number}" for number in range(10)])
    assert other.spec.random == ("head",)
    torch.testing.assert_close(other.features(images), model.features(images))
