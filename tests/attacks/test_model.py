"""Models of pixels: the resize and the normaliser inside, and the folded copy."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

import finesight.attacks
from finesight.attacks import Normalized, fgsm, pgd, predictions, prepared
from finesight.attacks.model import attacking
from finesight.errors import ConfigError, DataError
from finesight.models import resnet20
from tests.attacks.digits import Net, held_out, trained


def test_normalized_resizes_like_torchvision_and_then_normalises() -> None:
    images = torch.rand(2, 3, 32, 48)
    for size in (16, 32, 64):
        model = Normalized(nn.Identity(), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), size)
        resized = F.resize(images, [size, size], antialias=True)
        expected = F.normalize(resized, [0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(Normalized(nn.Identity(), [0], [1], 32)(images[..., :32]), images[..., :32])
    assert Normalized(nn.Identity(), [0], [1])(images).shape == images.shape


def test_the_attack_is_on_the_pixels_before_the_resize() -> None:
    torch.manual_seed(0)
    inner, images = Net(channels=3).eval(), torch.rand(4, 3, 32, 32)
    sizes: list[torch.Size] = []
    inner.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape))
    result = fgsm(Normalized(inner, [0.5] * 3, [0.25] * 3, size=8), images, torch.arange(4), 4 / 255)
    assert sizes == [(4, 3, 8, 8)]
    assert result.shape == images.shape
    moved = (result - images).abs()
    assert moved.max() * 255 <= 4.001
    assert (moved > 0).double().mean() > 0.99  # an antialiased resize reads every pixel; plain bilinear would not


def test_a_second_normaliser_and_values_of_8_bit_images_are_refused() -> None:
    model = trained()
    with pytest.raises(ConfigError, match="normalises inside already"):
        Normalized(nn.Sequential(model), [0.5], [0.5])
    with pytest.raises(ConfigError, match=r"\[0, 1\] scale"):
        Normalized(nn.Identity(), (123.7, 116.3, 103.5), (58.4, 57.1, 57.4))
    with pytest.raises(ConfigError, match="one for each"):
        Normalized(nn.Identity(), (0.5, 0.5, 0.5), (0.5,))
    with pytest.raises(DataError, match="not within"):
        predictions(model, held_out(3)[0] * 2 - 1)


def test_prepared_folds_batch_norms_of_a_copy_and_keeps_the_logits() -> None:
    torch.manual_seed(0)
    model = Normalized(resnet20().train(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    images = torch.rand(4, 3, 32, 32)
    model(images)  # moves the running statistics away from 0 and 1
    copy = prepared(model)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in copy.modules())
    assert sum(isinstance(part, nn.BatchNorm2d) for part in model.modules()) == 19
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert not copy.training
    torch.testing.assert_close(copy(images), model.eval()(images), atol=2e-5, rtol=1e-4)
    assert copy.model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    labels = torch.arange(4)
    near = (pgd(copy, images, labels, 0.03, 0.01, 1, random_start=False)
            - pgd(model, images, labels, 0.03, 0.01, 1, random_start=False)).abs() < 1e-6  # fmt: skip
    assert near.double().mean() > 0.999


def test_prepared_leaves_alone_what_it_cannot_fold() -> None:
    class Branching(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images if images.sum() > 0 else -images)

    class Shared(nn.Module):
        """One convolution before two norms, and a norm whose input is used twice."""

        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.other = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 1)
            self.first, self.second, self.third = nn.BatchNorm2d(1), nn.BatchNorm2d(1), nn.BatchNorm2d(1)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.second(self.convolution(self.first(self.convolution(images))))
            maps = self.other(maps)
            return (self.third(maps) + maps).flatten(1)

    torch.manual_seed(0)
    images = torch.rand(5, 1, 8, 8)
    for model in (Branching(), Shared()):
        model.train()(images)
        copy = prepared(model)
        assert any(isinstance(part, nn.BatchNorm2d) for part in copy.modules())
        torch.testing.assert_close(copy(images), model.eval()(images))


def test_all_public_names_are_there_and_none_is_hidden_by_a_module() -> None:
    import types

    for name in finesight.attacks.__all__:
        assert not isinstance(getattr(finesight.attacks, name), types.ModuleType)
    with pytest.raises(AttributeError, match="deepfool"):
        finesight.attacks.deepfool  # noqa: B018
    command = "import sys, finesight.attacks, finesight.losses; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_that_cut_patches_are_the_same_as_products(bias: bool) -> None:
    torch.manual_seed(0)
    cutting, other = nn.Conv2d(3, 8, 4, stride=4, bias=bias), nn.Conv2d(8, 5, 2, stride=2)
    model = nn.Sequential(cutting, other)
    images = torch.rand(2, 3, 38, 35, dtype=torch.float64, requires_grad=True)  # the last pixels fill no patch
    model.double()
    outside = model(images)
    expected = torch.autograd.grad(outside.square().sum(), images)[0]
    with attacking(model, images.device):
        assert "forward" in cutting.__dict__
        assert "forward" not in other.__dict__
        inside = model(images)
        found = torch.autograd.grad(inside.square().sum(), images)[0]
        with attacking(model, images.device):  # an attack within an attack leaves the outer one its way
            pass
        assert "forward" in cutting.__dict__
    torch.testing.assert_close(inside, outside, rtol=0, atol=1e-14)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert "forward" not in cutting.__dict__


def test_a_model_that_looks_at_memory_works_under_attack_too() -> None:
    class Viewing(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            found = self[0](images)
            return self[1](found.view(len(found), -1))

    model = Viewing(nn.Conv2d(1, 8, 4, stride=4), nn.Linear(8 * 4, 5))
    images = torch.rand(2, 1, 8, 8)
    assert pgd(model, images, torch.tensor([0, 1]), 8 / 255, 2 / 255, 2).shape == images.shape
