"""Pixel metrics of a reconstruction: MSE, PSNR and SSIM of each image, on [0, 1] and nothing else.

Report 000 compared ImageNet-normalised images with images in [0, 1]: even a perfect reconstruction of
a dark CT scored an MSE of 2.7 and a PSNR of -4.3 dB. Values outside [0, 1] are therefore refused here.
"""

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finesight.errors import DataError
from finesight.metrics.bootstrap import Floats

PSNR_LIMIT = 100.0
"""Largest PSNR in dB, of identical images too (MSE of 1e-10 or less): a mean over images stays finite."""

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
"""Of SSIM: side and standard deviation of the Gaussian window in pixels, and the constants for range 1."""

Images: TypeAlias = Any
"""Floats [N, C, H, W] in [0, 1]: `numpy.ndarray`, or `torch.Tensor` of any float type on any device."""

_CHUNK_VALUES = 2**18
_BLOCK = 32


def mse(prediction: Images, target: Images, mask: Any = None) -> Floats:
    """Mean squared error of each image, float64 [N] in [0, 1], over all channels and pixels.

    `prediction` and `target` are floats [N, C, H, W] in [0, 1], NumPy or torch, computed in float64.
    `mask` bool [N, H, W] is True at the pixels that count; the others must be valid too.

    Raises `DataError` with all that is wrong: integers, other or unequal shapes, values that are not
    finite or not in [0, 1], a mask that is not bool or that leaves an image without a pixel.
    """
    return _by_chunks(_mse, *_read(prediction, target, mask))


def psnr(prediction: Images, target: Images, mask: Any = None) -> Floats:
    """Peak signal-to-noise ratio of each image in dB, float64 [N] in [0, `PSNR_LIMIT`]: -10 log10(MSE).

    The mean over images is that of decibels, not the decibels of the mean error. Arguments and errors
    as of `mse`.
    """
    return _decibels(mse(prediction, target, mask))


def ssim(prediction: Images, target: Images, mask: Any = None) -> Floats:
    """Structural similarity of each image, float64 [N] in [-1, 1]: Wang et al. 2004, eq. 13.

    Gaussian window 11 x 11, sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance, only positions
    where the window lies in the image; per channel, then the mean over channels. With a mask: the
    mean over the positions whose window centre is in the mask; the window itself sees its
    neighbours. Arguments as of `mse`.

    Raises `DataError` as `mse`, and where an image is smaller than the window or no centre is in the mask.
    """
    read = _read(prediction, target, mask)
    _check_windows(read[0], read[2])
    return _by_chunks(_ssim, *read)


def scores(prediction: Images, target: Images, mask: Any = None) -> dict[str, Floats]:
    """{"mse", "psnr", "ssim"}: each float64 [N], checked once. Arguments and errors as of `ssim`."""
    read = _read(prediction, target, mask)
    _check_windows(read[0], read[2])
    errors = _by_chunks(_mse, *read)
    return {"mse": errors, "psnr": _decibels(errors), "ssim": _by_chunks(_ssim, *read)}


def _read(prediction: Images, target: Images, mask: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    first, second = _array(prediction), _array(target)
    problems = _image_problems("prediction", first) + _image_problems("target", second)
    if first.shape != second.shape:
        problems.append(
            f"The prediction has shape {first.shape}, the target {second.shape}: each image is compared "
            "with its own target of the same size. Resize one of them, and repeat the channel of grey images."
        )
    counted = None if mask is None else _array(mask)
    if counted is not None:
        problems += _mask_problems(counted, first.shape)
    if problems:
        raise DataError(*problems)
    return first, second, counted


def _array(values: Any) -> NDArray[Any]:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    if values.is_floating_point() and values.dtype not in (torch.float16, torch.float32, torch.float64):
        values = values.float()  # NumPy has no bfloat16; float32 holds it exactly
    return values.numpy()


def _image_problems(name: str, images: NDArray[Any]) -> list[str]:
    if images.ndim != 4 or images.size == 0:
        return [
            f"The {name} has shape {images.shape}: at least one image is needed, [N, C, H, W]. "
            "Add the dimension that is missing, as in image[None], and put the channels first."
        ]
    if images.dtype.kind != "f":
        found = f", from {images.min()} to {images.max()}" if images.dtype.kind in "iu" else ""
        return [
            f"The {name} has values of type {images.dtype}{found}: floats in [0, 1] are needed. "
            "Convert to float32 and divide by 255 if these are 8-bit images."
        ]
    low, high = images.min(axis=(1, 2, 3)), images.max(axis=(1, 2, 3))
    # Every comparison with NaN is false, so NaN is caught here too.
    bad = np.flatnonzero(~((low >= 0) & (high <= 1)))
    if len(bad) == 0:
        return []
    row = bad[0]
    return [
        f"{len(bad)} of {len(images)} images of the {name} are not in [0, 1]; the first is image {row}, with "
        f"values from {_number(low[row])} to {_number(high[row])}. An error on another scale is no pixel error: "
        "undo the model's normalisation (x * std + mean) and clamp, or divide by 255; "
        "NaN means that the weights or the input are broken."
    ]


def _mask_problems(mask: NDArray[Any], shape: tuple[int, ...]) -> list[str]:
    if mask.dtype != np.bool_:
        return [
            f"The mask is of type {mask.dtype}: bool is needed, True at the pixels that count. Compare first, "
            "as in mask > 0.5."
        ]
    if mask.shape != (shape[:1] + shape[2:]):
        return [
            f"The mask has shape {mask.shape} for images of shape {shape}: [N, H, W] is needed, one value per "
            "pixel for all channels."
        ]
    return _without_pixels(mask, "pixel of the image is in the mask, so there is nothing to average")


def _without_pixels(mask: NDArray[Any], what: str) -> list[str]:
    empty = np.flatnonzero(~mask.any(axis=(1, 2)))
    if len(empty) == 0:
        return []
    return [
        f"{len(empty)} of {len(mask)} masks are empty; the first is mask {empty[0]}: no {what}. "
        "Leave these images out, and say so in the result."
    ]


def _check_windows(images: NDArray[Any], mask: NDArray[Any] | None) -> None:
    height, width = images.shape[-2:]
    if min(height, width) < WINDOW:
        raise DataError(
            f"SSIM of images of {height} x {width} pixels: its window of {WINDOW} x {WINDOW} does not fit. "
            "Use mse and psnr, or larger images."
        )
    if mask is not None:
        problems = _without_pixels(
            _centres(mask), f"window of {WINDOW} x {WINDOW} within the image has its centre there"
        )
        if problems:
            raise DataError(*problems)


def _by_chunks(
    of_images: Callable[[Floats, Floats, NDArray[Any] | None], Floats],
    prediction: NDArray[Any],
    target: NDArray[Any],
    mask: NDArray[Any] | None,
) -> Floats:
    """One value per image [N], a few images in float64 at a time: 8 MB at 224 x 224, 160 MB at 1024 x 1024."""
    step = max(1, _CHUNK_VALUES // prediction[0].size)
    values = np.empty(len(prediction))
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        values[part] = of_images(
            prediction[part].astype(np.float64), target[part].astype(np.float64), None if mask is None else mask[part]
        )
    return values


def _mse(prediction: Floats, target: Floats, mask: NDArray[Any] | None) -> Floats:
    return _mean(np.square(prediction - target).mean(axis=1), mask)


def _decibels(errors: Floats) -> Floats:
    return -10 * np.log10(np.maximum(errors, 10 ** (-PSNR_LIMIT / 10))) + 0.0


def _ssim(prediction: Floats, target: Floats, mask: NDArray[Any] | None) -> Floats:
    channels = prediction.shape[1]
    similarity = sum(_similarity(prediction[:, index], target[:, index]) for index in range(channels))
    return _mean(similarity / channels, None if mask is None else _centres(mask))


def _similarity(x: Floats, y: Floats) -> Floats:
    """Map of SSIM [N, H - 10, W - 10] of one channel [N, H, W]."""
    # Only the sum of both variances is needed, so four filtered maps do instead of five.
    mean_x, mean_y, squares, products = _smooth(np.stack([x, y, x * x + y * y, x * y]))
    mean_squares, mean_products = mean_x * mean_x + mean_y * mean_y, mean_x * mean_y
    above = (2 * mean_products + C1) * (2 * (products - mean_products) + C2)
    return above / ((mean_squares + C1) * (squares - mean_squares + C2))


def _smooth(maps: Floats) -> Floats:
    """Gaussian means [..., H - 10, W - 10] of [..., H, W].

    A filter along one axis is a product with a banded matrix. It is taken a block of outputs at a
    time, which leaves out most of its zeros.
    """
    distance = np.arange(WINDOW) - WINDOW // 2
    window = np.exp(-(distance**2) / (2 * SIGMA**2))
    window /= window.sum()
    band = np.zeros((_BLOCK + WINDOW - 1, _BLOCK))
    for index in range(_BLOCK):
        band[index : index + WINDOW, index] = window
    height, width = maps.shape[-2] - WINDOW + 1, maps.shape[-1] - WINDOW + 1
    rows = np.empty((*maps.shape[:-2], height, maps.shape[-1]))
    for start in range(0, height, _BLOCK):
        size = min(_BLOCK, height - start)
        block = band[: size + WINDOW - 1, :size]
        rows[..., start : start + size, :] = block.T @ maps[..., start : start + size + WINDOW - 1, :]
    smooth = np.empty((*maps.shape[:-2], height, width))
    for start in range(0, width, _BLOCK):
        size = min(_BLOCK, width - start)
        smooth[..., start : start + size] = (
            rows[..., start : start + size + WINDOW - 1] @ band[: size + WINDOW - 1, :size]
        )
    return smooth


def _centres(mask: NDArray[Any]) -> NDArray[Any]:
    margin = WINDOW // 2
    return mask[:, margin:-margin, margin:-margin]


def _mean(values: Floats, mask: NDArray[Any] | None) -> Floats:
    """Mean [N] of maps [N, H, W], over the mask where there is one."""
    if mask is None:
        return values.sum(axis=(1, 2)) / values[0].size
    return (values * mask).sum(axis=(1, 2)) / mask.sum(axis=(1, 2))


def _number(value: Any) -> str:
    """Six digits, or all of them where six would round a value outside [0, 1] into it."""
    value = float(value)
    short = f"{value:.6g}"
    return repr(value) if 0 <= float(short) <= 1 and not 0 <= value <= 1 else short
