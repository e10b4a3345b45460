"""Random augmentation, resizing and normalisation of batched uint8 image tensors.

Every random choice is read from a row of uniform numbers that is a function of (seed, epoch, sample
index), so that neither the batch an image sits in, nor the worker, nor the rank changes its pixels.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, model_validator

from finesight.config import Section

if TYPE_CHECKING:
    from torch import Tensor

REFERENCE_SIZE = 256
MAX_HOLES = 16
CROP_TRIES = 10
_JITTER_ORDERS = tuple(itertools.permutations(range(4)))

# Fixed columns for each transform: switching one on, or changing its strength, moves no other's draws.
_CROP = slice(0, 3 + 2 * CROP_TRIES)
_ROTATE = slice(_CROP.stop, _CROP.stop + 2)
_FLIP = slice(_ROTATE.stop, _ROTATE.stop + 1)
_JITTER = slice(_FLIP.stop, _FLIP.stop + 6)
_HOLES = slice(_JITTER.stop, _JITTER.stop + 1 + 2 * MAX_HOLES)
DRAWS = _HOLES.stop


class AugmentConfig(Section):
    """Random changes of the training images, in the order applied; every probability is 0 by default."""

    crop: float = Field(0.0, ge=0, le=1, description="Probability of a random resized crop, back to the same size")
    crop_min: float = Field(0.8, gt=0, le=1, description="Smallest share of the area that a crop keeps")
    crop_max: float = Field(1.0, gt=0, le=1, description="Largest share of the area that a crop keeps")
    rotate: float = Field(0.0, ge=0, le=1, description="Probability of a rotation; corners become black")
    rotate_degrees: float = Field(20.0, ge=0, le=180, description="Largest angle, to either side, in degrees")
    flip: float = Field(0.0, ge=0, le=1, description="Probability of a horizontal flip")
    jitter: float = Field(0.0, ge=0, le=1, description="Probability of a colour jitter")
    jitter_strength: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Brightness, contrast, saturation change by a factor 1 ± this; hue turns by ± this",
    )
    holes: float = Field(0.0, ge=0, le=1, description="Probability of covering square holes (coarse dropout)")
    hole_count: int = Field(8, ge=1, le=MAX_HOLES, description="Holes in an image")
    hole_size: int = Field(
        25,
        ge=1,
        le=REFERENCE_SIZE,
        description="Side of a hole in pixels of a 256-pixel image; scales with the image",
    )
    hole_fill: int = Field(128, ge=0, le=255, description="Value of the covered pixels, 0-255")

    @model_validator(mode="after")
    def _crop_is_a_range(self) -> "AugmentConfig":
        if self.crop_min > self.crop_max:
            raise ValueError(f"crop_min {self.crop_min} is above crop_max {self.crop_max}; give crop_min <= crop_max")
        return self

    @property
    def active(self) -> bool:
        """Whether any transform can change an image."""
        return any((self.crop, self.rotate, self.flip, self.jitter, self.holes))


def random_table(seed: int, epoch: int, n: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float32 [n, DRAWS]; row i depends on (seed, epoch, i) only, not on n."""
    key = np.array([seed % 2**64, epoch % 2**64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random((n, DRAWS), dtype=np.float32)


def augment(images: "Tensor", draws: "Tensor", config: AugmentConfig) -> "Tensor":
    """Augment each image by its own row of draws.

    images: uint8 [B, 3, H, W]; draws: float32 [B, DRAWS] in [0, 1). Returns uint8 [B, 3, H, W], a new
    tensor where anything is switched on; the input is never changed. The crop, rotation (bilinear,
    black corners), flip and jitter are torchvision's v2 kernels, in this order, then the holes.
    """
    if not config.active:
        return images
    output = images.clone()
    for position, row in enumerate(draws.tolist()):
        # One image at a time: the parameters differ, a single image stays in the processor's cache, and
        # the pixels cannot depend on the rest of the batch.
        output[position] = _augment_one(output[position], row, config)
    return output


def _augment_one(image: "Tensor", row: list[float], config: AugmentConfig) -> "Tensor":
    """image: uint8 [3, H, W]."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    height, width = image.shape[-2:]
    apply, *choices = row[_CROP]
    if apply < config.crop:
        top, left, crop_height, crop_width = crop_box(height, width, choices, config)
        image = F.resized_crop_image(image, top, left, crop_height, crop_width, [height, width], antialias=True)
    apply, angle = row[_ROTATE]
    if apply < config.rotate:
        image = F.rotate_image(image, rotation(angle, config), interpolation=InterpolationMode.BILINEAR)
    if row[_FLIP][0] < config.flip:
        image = F.horizontal_flip_image(image)
    apply, order, *levels = row[_JITTER]
    if apply < config.jitter:
        kernels = (
            F.adjust_brightness_image,
            F.adjust_contrast_image,
            F.adjust_saturation_image,
            F.adjust_hue_image,
        )
        for which in _JITTER_ORDERS[int(order * len(_JITTER_ORDERS))]:
            image = kernels[which](image, jitter_levels(levels, config)[which])
    apply, *places = row[_HOLES]
    if apply < config.holes:
        image = image.clone()
        for top, left, side in hole_boxes(height, width, places, config):
            image[:, top : top + side, left : left + side] = config.hole_fill
    return image


def crop_box(height: int, width: int, draws: Sequence[float], config: AugmentConfig) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the crop, by torchvision's `RandomResizedCrop` rule.

    draws: the place (down, across), then CROP_TRIES pairs of an area and an aspect ratio in [3/4, 4/3];
    the first pair that fits is used, the whole image if none does.
    """
    down, across, *tries = draws
    low, high = math.log(3 / 4), math.log(4 / 3)
    for area_draw, ratio_draw in zip(tries[0::2], tries[1::2], strict=True):
        area = height * width * (config.crop_min + (config.crop_max - config.crop_min) * area_draw)
        ratio = math.exp(low + (high - low) * ratio_draw)
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = int(down * (height - crop_height + 1)), int(across * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    return 0, 0, height, width


def rotation(draw: float, config: AugmentConfig) -> float:
    """Angle in degrees, uniform in ± rotate_degrees."""
    return (2 * draw - 1) * config.rotate_degrees


def jitter_levels(draws: Sequence[float], config: AugmentConfig) -> tuple[float, float, float, float]:
    """Factors of brightness, contrast and saturation (around 1) and the turn of the hue (around 0)."""
    brightness, contrast, saturation, hue = ((2 * draw - 1) * config.jitter_strength for draw in draws)
    return 1 + brightness, 1 + contrast, 1 + saturation, hue


def hole_boxes(
    height: int, width: int, places: Sequence[float], config: AugmentConfig
) -> Iterator[tuple[int, int, int]]:
    """(top, left, side) of each hole; whole holes inside the image, as CoarseDropout places them."""
    side = max(1, min(round(config.hole_size * min(height, width) / REFERENCE_SIZE), height, width))
    for hole in range(config.hole_count):
        top = int(places[2 * hole] * (height - side + 1))
        left = int(places[2 * hole + 1] * (width - side + 1))
        yield top, left, side


def resize(images: "Tensor", size: int) -> "Tensor":
    """uint8 [B, 3, H, W] -> uint8 [B, 3, size, size], bilinear, antialiased; the input itself if it fits."""
    from torchvision.transforms.v2 import functional as F

    if images.shape[-2:] == (size, size):
        return images
    return F.resize_image(images, [size, size], antialias=True)


def normalise(images: "Tensor", mean: Sequence[float], std: Sequence[float]) -> "Tensor":
    """uint8 [B, 3, H, W] -> float32 (images / 255 - mean) / std, both 3 values on the [0, 1] scale."""
    import torch

    shift = torch.tensor(mean, dtype=torch.float32, device=images.device).mul(255).view(-1, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32, device=images.device).mul(255).reciprocal().view(-1, 1, 1)
    return images.to(torch.float32, copy=True).sub_(shift).mul_(scale)
