"""Common corruptions without weather, at five severities (Hendrycks & Dietterich 2019, arXiv:1903.12261).

The strengths are those of CIFAR-10-C for images below 96 pixels, and of ImageNet-C for larger ones; lengths in
pixels grow with the image, from 32 and 224. Results are not rounded to 8 bits, except by what JPEG does.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from finesight.attacks import budget
from finesight.data import draws
from finesight.errors import ConfigError

SMALL = 96

# Per corruption: strengths of small images, strengths of large ones.
_STRENGTHS: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "gaussian_noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": ((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": ((0.3, 0.4, 0.5, 1, 1.5), (3, 4, 6, 8, 10)),
    "motion_blur": ((6, 6, 6, 8, 9), (10, 15, 15, 15, 20)),
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
CORRUPTIONS = tuple(_STRENGTHS)
PIXELS_PER_TABLE = 64
"""Shot noise draws from a table for each mean where a mean has at least so many pixels."""

# The second number of the two blurs: softness of the disk's edge, and width of the motion's Gaussian, in pixels.
_EDGES = ((0.4, 0.5, 0.6, 0.2, 0.1), (0.1, 0.5, 0.5, 0.5, 0.5))
_WIDTHS = ((1, 1.5, 2, 2, 2.5), (3, 5, 8, 12, 15))


def corrupt(images: Tensor, ids: Sequence[str], kind: str, severity: int, seed: int = 0) -> Tensor:
    """Each image corrupted by its own draws, a function of (seed, kind, id) and not of the batch.

    images: float32 [B, C, H, W] in [0, 1]; ids: B names; kind: one of `CORRUPTIONS`; severity: 1 to 5. Returns
    float32 [B, C, H, W] in [0, 1]. Noise grows with the severity, but its draws stay the same. Raises `DataError`
    for images outside [0, 1], `ConfigError` for an unknown kind or severity.
    """
    budget.check_images(images)
    if kind not in _STRENGTHS:
        raise ConfigError(f"The corruption {kind!r} is unknown; choose from {', '.join(CORRUPTIONS)}.")
    if severity not in range(1, 6):
        raise ConfigError(f"severity {severity} is not one of 1 to 5.")
    if len(ids) != len(images):
        raise ConfigError(f"{len(ids)} ids for {len(images)} images; give one for each.")
    large = int(min(images.shape[-2:]) >= SMALL)
    strength = _STRENGTHS[kind][large][severity - 1]
    scale = min(images.shape[-2:]) / (224 if large else 32)
    key = (seed, CORRUPTIONS.index(kind))
    if kind == "defocus_blur":
        result = _filter(images, _disk(strength * scale, _EDGES[large][severity - 1] * scale))
    elif kind == "motion_blur":
        angles = np.pi / 4 * (2 * draws.uniform(ids, 1, *key)[:, 0] - 1)
        result = _streak(images, round(strength * scale), _WIDTHS[large][severity - 1] * scale, angles)
    elif kind.endswith("noise"):
        result = _noise(images, ids, kind, strength, key)
    elif kind == "brightness":
        result = _brighten(images, strength)
    elif kind == "contrast":
        mean = images.mean(dim=(2, 3), keepdim=True)
        result = (images - mean) * strength + mean
    elif kind == "pixelate":
        result = _pixelate(images, strength)
    else:
        result = torch.stack([_jpeg(image, int(strength)) for image in images])
    return result.clamp(0, 1)


def _noise(images: Tensor, ids: Sequence[str], kind: str, strength: float, key: tuple[int, ...]) -> Tensor:
    """Gaussian of deviation `strength`; Poisson of `strength` photons for white; that share of salt and pepper."""
    rows = []
    for image, name in zip(images, ids, strict=True):  # one by one: the float64 draws of a batch would be large
        pixels = image.double().cpu().numpy()
        if kind == "gaussian_noise":
            pixels = pixels + strength * draws.normal([name], pixels.size, *key).reshape(pixels.shape)
        else:
            chance = draws.uniform([name], pixels.size, *key).reshape(pixels.shape)
            if kind == "shot_noise":
                pixels = _poisson(chance, pixels * strength) / strength
            else:
                pixels = np.where(chance < strength, chance < strength / 2, pixels)
        rows.append(torch.from_numpy(pixels))
    return torch.stack(rows).to(images)


def _poisson(chance: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Poisson numbers by inversion: the least whole k of which P(X <= k) is at least `chance`.

    Where few means are many pixels', as in large 8-bit images, by a table for each mean: the same numbers, ten times
    as fast.
    """
    from scipy.special import pdtr, pdtrik

    means, of_pixel = np.unique(mean, return_inverse=True)
    if PIXELS_PER_TABLE * len(means) > mean.size:
        safe = np.maximum(mean, 1e-12)
        count = np.ceil(np.nan_to_num(pdtrik(chance, safe)))  # NaN where even P(X = 0) exceeds the chance
        return np.where(pdtr(count - 1, safe) >= chance, count - 1, count).clip(0)
    order = np.argsort(of_pixel.reshape(-1), kind="stable")
    result, in_order = np.empty(chance.size), chance.reshape(-1)[order]
    ends = np.cumsum(np.bincount(of_pixel.reshape(-1)))
    for value, start, end in zip(np.maximum(means, 1e-12), np.append(0, ends), ends, strict=False):
        table = pdtr(np.arange(math.ceil(value + 12 * math.sqrt(value) + 30)), value)
        result[order[start:end]] = np.searchsorted(table, in_order[start:end])
    return result.reshape(chance.shape)


def _filter(images: Tensor, kernel: NDArray[np.float64]) -> Tensor:
    """Correlation of every channel with a kernel [k, k], k odd; borders mirrored or, in tiny images, repeated."""
    channels, height, width = images.shape[1:]
    reach = len(kernel) // 2
    padded = functional.pad(images, (reach,) * 4, mode="reflect" if reach < min(height, width) else "replicate")
    weights = torch.from_numpy(kernel).to(images).expand(channels, 1, -1, -1)
    return functional.conv2d(padded, weights, groups=channels)


def _disk(radius: float, edge: float) -> NDArray[np.float64]:
    """A disk of sum 1, its edge softened by a Gaussian of deviation `edge` over 3 pixels (5 above radius 8)."""
    reach = max(8, math.ceil(radius)) + 2
    places = np.arange(-reach, reach + 1)
    disk = (places[:, None] ** 2 + places**2 <= radius**2).astype(np.float64)
    blur = np.exp(-(np.arange(-2, 3) ** 2) / (2 * edge**2)) * (np.abs(np.arange(-2, 3)) <= (1 if radius <= 8 else 2))
    blur /= blur.sum()
    for axis in (0, 1):
        disk = np.apply_along_axis(np.convolve, axis, disk, blur, "same")
    used = np.flatnonzero(disk.sum(0) > 0)
    disk = disk[used[0] : used[-1] + 1, used[0] : used[-1] + 1]
    return disk / disk.sum()


def _streak(images: Tensor, radius: int, width: float, angles: NDArray[np.float64]) -> Tensor:
    """Each image averaged over 2 radius + 1 pixels from each pixel on at its angle (radians), fading as a Gaussian."""
    count, channels, height, columns = images.shape
    steps = np.arange(2 * max(radius, 1) + 1)
    weights = np.exp(-(steps**2) / (2 * width**2))
    sample, channel = torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1)
    result = torch.zeros_like(images)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        down, across = (
            torch.from_numpy(np.rint(step * turn(angles)).astype(int))[:, None] for turn in (np.sin, np.cos)
        )
        rows = (torch.arange(height) + down).clamp(0, height - 1)[:, None, :, None]
        places = (torch.arange(columns) + across).clamp(0, columns - 1)[:, None, None, :]
        result += weight * images[sample, channel, rows, places]
    return result


def _brighten(images: Tensor, amount: float) -> Tensor:
    """The value of HSV raised by `amount`, hue and saturation kept."""
    value = images.amax(1, keepdim=True)
    brighter = (value + amount).clamp(max=1)
    return torch.where(value > 0, images * (brighter / value.clamp(min=1e-12)), brighter)


def _pixelate(images: Tensor, share: float) -> Tensor:
    """Box-averaged to `share` of the sides, and enlarged again without smoothing, as Pillow's BOX filter does."""
    small = images
    for axis in (-2, -1):
        side = images.shape[axis]
        box = torch.from_numpy(_boxes(side, max(int(side * share), 1))).to(images)
        small = torch.movedim(torch.movedim(small, axis, -1) @ box.T, -1, axis)
    for axis in (-2, -1):
        few, side = small.shape[axis], images.shape[axis]
        index = ((torch.arange(side, device=images.device) + 0.5) * few / side).long()
        small = small.index_select(axis, index)
    return small


def _boxes(inputs: int, outputs: int) -> NDArray[np.float64]:
    """Weights [outputs, inputs] of averaging the pixels whose centres lie in each output pixel."""
    scale = inputs / outputs
    ends = ((np.arange(outputs + 1) * scale) + 0.5).astype(int)
    places = np.arange(inputs)
    boxes = (places >= ends[:-1, None]) & (places < ends[1:, None])
    return boxes / boxes.sum(1, keepdims=True)


def _jpeg(image: Tensor, quality: int) -> Tensor:
    """[C, H, W] through a JPEG file of 8-bit grey or colour."""
    from PIL import Image

    if len(image) not in (1, 3):
        raise ConfigError(f"JPEG knows grey and colour images, not {len(image)} channels; leave this corruption out.")
    pixels = image.mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if len(image) == 1 else pixels).save(file, "JPEG", quality=quality)
    read = np.asarray(Image.open(file)).reshape(pixels.shape)
    return torch.from_numpy(read.copy()).permute(2, 0, 1).to(image) / 255
