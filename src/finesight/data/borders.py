"""Find what an endoscopy frame shows: bright content on a black border, with or without text in it.

Grey values are split by Otsu's threshold, the largest connected bright region is kept, and the centre
square of its bounding box is the content (report 003, section EndoVAE; the crop is then resized to 96).
Nothing is learnt and nothing is random: the same pixels give the same square.

The whole image counts as content where no border is found: it is of one grey value (all black, too),
or the region's box is narrower than 32 pixels or than a tenth of the image's shorter side.

The threshold parts bright from dark, not content from border: where a frame has deep shadow, or no
border at all, lit tissue is parted from shaded tissue, and part of what the frame shows is lost.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finesight.errors import DataError

SIZE = 96
SMALLEST = 32
"""Pixels; a region with a narrower box is a light spot or a caption, not the content of a frame."""
SMALLEST_SHARE = 0.1


class Box(NamedTuple):
    """A rectangle in pixels, from its upper left corner."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Steps:
    """The five steps from frame to model input, for a figure.

    `bordered` is False where the whole image counts as content; `region` is then all True.
    """

    original: NDArray[np.uint8]  # [H, W, 3]
    grey: NDArray[np.uint8]  # [H, W], luma
    threshold: int  # 0..255; bright is above it
    region: NDArray[np.bool_]  # [H, W], the largest bright region
    box: Box  # around the region
    square: Box  # the centre square of the box
    crop: NDArray[np.uint8]  # [side, side, 3]
    resized: NDArray[np.uint8]  # [size, size, 3]
    bordered: bool


def content_square(image: NDArray[np.uint8]) -> tuple[int, int, int]:
    """(top, left, side) in pixels of the centre square of what the frame shows.

    `image`: uint8 [H, W, 3], RGB. Raises `DataError` for an array of another kind.
    """
    square = _find(_checked(image))[3]
    return square.top, square.left, square.height


def cropped(image: Image.Image, size: int = SIZE) -> Image.Image:
    """The content square of an RGB image at `size` x `size`, bilinear with antialiasing.

    It is cut out before it is resized, so that no black of the border bleeds into its edges.
    """
    return _cut(image, _find(_checked(np.asarray(image)))[3]).resize((size, size), Image.Resampling.BILINEAR)


def steps(image: NDArray[np.uint8], size: int = SIZE) -> Steps:
    """Every step of `cropped` for uint8 [H, W, 3]. Raises `DataError` for an array of another kind."""
    grey, threshold, found, square = _find(_checked(image))
    region, box = found if found else (np.ones(grey.shape, bool), Box(0, 0, *grey.shape))
    crop = _cut(Image.fromarray(image), square)
    resized = crop.resize((size, size), Image.Resampling.BILINEAR)
    return Steps(image, grey, threshold, region, box, square, np.asarray(crop), np.asarray(resized), found is not None)


def otsu(grey: NDArray[np.uint8]) -> int:
    """The threshold t in 0..255 that best parts grey values into <= t and > t (Otsu 1979, IEEE SMC 9(1)).

    It maximises the variance between the two classes; of equally good ones the least. An image of one
    value has that value.
    """
    counts = np.bincount(grey.ravel(), minlength=256)
    below = np.cumsum(counts)[:-1]
    sums = np.cumsum(counts * np.arange(256))
    total, above = below[-1] + counts[-1], below[-1] + counts[-1] - below
    parted = (below > 0) & (above > 0)
    if not parted.any():
        return int(grey.flat[0])
    # Between-class variance, times total² and without a division where a class is empty.
    distance = (sums[-1] * below - total * sums[:-1]).astype(np.float64)
    variance = np.divide(distance**2, below * above.astype(np.float64), out=np.zeros(255), where=parted)
    return int(np.argmax(variance))


def _checked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(f"array of {image.dtype} {list(image.shape)}: not a frame; give uint8 [H, W, 3] in 0..255.")
    return image


def _find(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int, tuple[NDArray[np.bool_], Box] | None, Box]:
    """Grey values, threshold, (region, box) or None without a border, and the content square."""
    grey = np.asarray(Image.fromarray(image).convert("L"))  # luma of ITU-R 601
    threshold = otsu(grey)
    found = _largest(grey > threshold)
    box = found[1] if found else None
    if box is None or min(box.height, box.width) < max(SMALLEST, SMALLEST_SHARE * min(grey.shape)):
        found, box = None, Box(0, 0, *grey.shape)
    side = min(box.height, box.width)
    square = Box(box.top + (box.height - side) // 2, box.left + (box.width - side) // 2, side, side)
    return grey, threshold, found, square


def _cut(image: Image.Image, box: Box) -> Image.Image:
    return image.crop((box.left, box.top, box.left + box.width, box.top + box.height))


def _largest(bright: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], Box] | None:
    """The 8-connected region of the most pixels (of equal ones the uppermost) and its box; None without one."""
    from scipy import ndimage

    labels, count = ndimage.label(bright, np.ones((3, 3), bool))
    if not count:
        return None
    sizes = np.bincount(labels.ravel())
    number = int(np.argmax(sizes[1:])) + 1
    rows, columns = ndimage.find_objects(labels, number)[number - 1]
    box = Box(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
    return labels == number, box
