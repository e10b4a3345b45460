"""Augmentation: parity with torchvision's classes, invariance to the batch, frequencies and hole counts."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from finesight.config import build
from finesight.data import transforms as T
from finesight.data.transforms import AugmentConfig
from finesight.errors import ConfigError

EVERYTHING = AugmentConfig(crop=0.7, rotate=0.4, flip=0.4, jitter=0.5, holes=0.5)


def photos(count: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    """Smooth coloured images, so that interpolation errors would show: uint8 [count, 3, H, W]."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return fine.mul(255).round().to(torch.uint8)


def table(n: int, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    return torch.from_numpy(T.random_table(seed, epoch, n))


def fixed(transform: v2.Transform, **parameters: object) -> v2.Transform:
    """A torchvision transform whose random parameters are given."""
    transform.make_params = lambda flat_inputs: parameters  # type: ignore[method-assign]
    return transform


def test_table_row_depends_only_on_seed_epoch_and_index() -> None:
    full = T.random_table(7, 3, 50)
    assert full.shape == (50, T.DRAWS)
    assert full.dtype == np.float32
    assert np.array_equal(full[:11], T.random_table(7, 3, 11))
    assert full.min() >= 0
    assert full.max() < 1
    for seed, epoch in ((7, 4), (8, 3), (3, 7)):
        assert not np.array_equal(full, T.random_table(seed, epoch, 50))


def test_off_by_default_is_the_identity() -> None:
    images = photos(3)
    assert not AugmentConfig().active
    assert torch.equal(T.augment(images, table(3), AugmentConfig()), images)
    assert all(AugmentConfig(**{name: 0.1}).active for name in ("crop", "rotate", "flip", "jitter", "holes"))


def test_pixels_do_not_depend_on_the_batch() -> None:
    images, draws = photos(12), table(12)
    together = T.augment(images, draws, EVERYTHING)
    order = [5, 2, 11, 0, 7]
    assert torch.equal(T.augment(images[order], draws[order], EVERYTHING), together[order])
    for index in range(12):
        alone = T.augment(images[index : index + 1], draws[index : index + 1], EVERYTHING)
        assert torch.equal(alone[0], together[index])


def test_input_is_left_alone_and_shape_and_dtype_stay() -> None:
    images = photos(8, 40, 56)
    before = images.clone()
    output = T.augment(images, table(8), AugmentConfig(crop=1, rotate=1, flip=1, jitter=1, holes=1))
    assert torch.equal(images, before)
    assert output.shape == images.shape
    assert output.dtype == torch.uint8
    assert not any(torch.equal(a, b) for a, b in zip(output, images, strict=True))


def test_changing_one_probability_moves_no_other_draw() -> None:
    images, draws = photos(40), table(40)
    flips = T.augment(images, draws, AugmentConfig(flip=0.5))
    both = T.augment(images, draws, AugmentConfig(flip=0.5, crop=1e-9, rotate=1e-9, jitter=1e-9, holes=1e-9))
    assert torch.equal(flips, both)


def test_crop_equals_torchvision() -> None:
    images, draws = photos(6), table(6)
    config = AugmentConfig(crop=1)
    output = T.augment(images, draws, config)
    for image, row, got in zip(images, draws.tolist(), output, strict=True):
        top, left, height, width = T.crop_box(64, 64, row[1 : T._CROP.stop], config)
        reference = fixed(v2.RandomResizedCrop(64, (0.8, 1.0)), top=top, left=left, height=height, width=width)
        assert torch.equal(got, reference(image))


def test_crop_boxes_follow_torchvisions_law() -> None:
    config = AugmentConfig(crop=1)
    rows = T.random_table(1, 0, 4000)[:, 1 : T._CROP.stop].tolist()
    boxes = np.array([T.crop_box(64, 48, row, config) for row in rows], dtype=float)
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(64, (0.8, 1.0))
    image = torch.zeros(3, 64, 48)
    samples = [theirs.make_params([image]) for _ in range(4000)]
    expected = np.array([[s["top"], s["left"], s["height"], s["width"]] for s in samples], dtype=float)
    assert (boxes[:, 0] + boxes[:, 2] <= 64).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 48).all()
    share = boxes[:, 2] * boxes[:, 3] / (64 * 48)
    assert share.min() > 0.78
    error = 4 * expected.std(axis=0) * np.sqrt(2 / 4000)
    assert (abs(boxes.mean(axis=0) - expected.mean(axis=0)) < error).all()


def test_rotation_equals_torchvision() -> None:
    images, draws = photos(6), table(6)
    config = AugmentConfig(rotate=1)
    output = T.augment(images, draws, config)
    angles = [T.rotation(row[T._ROTATE][1], config) for row in draws.tolist()]
    assert max(abs(angle) for angle in angles) <= 20
    for image, angle, got in zip(images, angles, output, strict=True):
        # fill=0 would fade the border pixels twice (once by zero padding, once by its mask).
        rotation = v2.RandomRotation(20, interpolation=v2.InterpolationMode.BILINEAR, fill=None)
        reference = fixed(rotation, angle=angle)
        assert torch.equal(got, reference(image))


def test_flip_equals_torchvision() -> None:
    images = photos(3)
    assert torch.equal(T.augment(images, table(3), AugmentConfig(flip=1)), v2.RandomHorizontalFlip(1.0)(images))


def test_jitter_equals_torchvision_in_every_order() -> None:
    count = 60
    images, draws = photos(count, 16, 16), table(count)
    config = AugmentConfig(jitter=1)
    output = T.augment(images, draws, config)
    orders = set()
    for image, row, got in zip(images, draws.tolist(), output, strict=True):
        _, order, *levels = row[T._JITTER]
        brightness, contrast, saturation, hue = T.jitter_levels(levels, config)
        assert 0.9 <= min(brightness, contrast, saturation) <= max(brightness, contrast, saturation) <= 1.1
        assert -0.1 <= hue <= 0.1
        sequence = T._JITTER_ORDERS[int(order * 24)]
        orders.add(sequence)
        reference = fixed(
            v2.ColorJitter(0.1, 0.1, 0.1, 0.1),
            fn_idx=torch.tensor(sequence),
            brightness_factor=brightness,
            contrast_factor=contrast,
            saturation_factor=saturation,
            hue_factor=hue,
        )
        assert torch.equal(got, reference(image))
    assert len(orders) > 15


@pytest.mark.parametrize(("size", "side"), [(256, 25), (64, 6), (299, 29), (8, 1)])
def test_holes_have_the_stated_size_and_fill(size: int, side: int) -> None:
    config = AugmentConfig(holes=1)
    draws = table(5)
    output = T.augment(torch.full((5, 3, size, size), 7, dtype=torch.uint8), draws, config)
    for row, got in zip(draws.tolist(), output, strict=True):
        expected = torch.full((size, size), 7, dtype=torch.uint8)
        boxes = list(T.hole_boxes(size, size, row[T._HOLES][1:], config))
        assert len(boxes) == 8
        for top, left, extent in boxes:
            assert extent == side
            assert min(top, left) >= 0
            assert max(top, left) + side <= size
            expected[top : top + side, left : left + side] = 128
        assert torch.equal(got, expected.expand(3, -1, -1))


def test_a_lone_hole_covers_exactly_its_square() -> None:
    config = AugmentConfig(holes=1, hole_count=1, hole_size=32, hole_fill=200)
    output = T.augment(torch.zeros(20, 3, 128, 128, dtype=torch.uint8), table(20), config)
    assert ((output == 200).sum(dim=(1, 2, 3)) == 3 * 16 * 16).all()


@pytest.mark.parametrize(
    ("name", "probability"), [("crop", 0.7), ("rotate", 0.4), ("flip", 0.4), ("jitter", 0.5), ("holes", 0.5)]
)
def test_each_probability_is_met(name: str, probability: float) -> None:
    count = 1500
    images = photos(1, 12, 12).expand(count, -1, -1, -1)
    output = T.augment(images, table(count, seed=3), AugmentConfig(**{name: probability}))
    changed = (output != images).flatten(1).any(dim=1).float().mean().item()
    # A crop of 12 pixels that keeps the whole image changes nothing: up to a few per cent of the crops.
    slack = 4 * (probability * (1 - probability) / count) ** 0.5 + (0.04 if name == "crop" else 0.01)
    assert abs(changed - probability) < slack


def test_resize_is_torchvisions_and_free_when_already_right() -> None:
    images = photos(3, 64, 48)
    output = T.resize(images, 32)
    assert output.dtype == torch.uint8
    assert torch.equal(output, v2.Resize((32, 32), antialias=True)(images))
    assert T.resize(output, 32) is output


def test_normalise_equals_torchvision() -> None:
    images = photos(3)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = v2.Normalize(mean, std)(images.to(torch.float32) / 255)
    output = T.normalise(images, mean, std)
    assert output.dtype == torch.float32
    assert torch.allclose(output, expected, atol=2e-6)
    strided = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(T.normalise(strided, mean, std), output)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="crop_min"):
        build(AugmentConfig, {"crop_min": 0.9, "crop_max": 0.5})
    with pytest.raises(ConfigError, match="flip"):
        build(AugmentConfig, {"flip": 1.5})
