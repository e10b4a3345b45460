"""One pass over all images of a data set: thumbnails, hashes, sizes, and what is wrong with them."""

import hashlib
import io
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
from PIL import Image

from finesight.data import images
from finesight.data.similarity import SIDE
from finesight.errors import DataError
from finesight.progress import Progress

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_CHUNK = 64
_ORIENTATION = 0x0112
_MAY_MOVE = ("GIF", "WEBP", "PNG", "TIFF", "AVIF")


@dataclass
class Scan:
    """What is known of each row; rows in `faults` could not be read and are zero or empty elsewhere."""

    thumbs: np.ndarray  # uint8 [N, 32, 32], grey
    hashes: list[str]  # of the encoded bytes; "" where they could not be read
    sizes: np.ndarray  # int64 [N, 2], width and height as stored
    kinds: list[str]  # "JPEG RGB": format and Pillow's mode
    faults: dict[int, str] = field(default_factory=dict)  # row -> reason
    odd: dict[int, str] = field(default_factory=dict)  # row -> what is done with an unusual image


def scan(dataset: datasets.Dataset, sixteen_bit: images.SixteenBit = "full", *, shown: bool = True) -> Scan:
    """Read and decode every image once. Unreadable ones become faults, never an error."""
    entries = dataset.select_columns(["id", "image"]).cast_column("image", datasets.Image(decode=False))
    count = len(entries)
    found = Scan(np.zeros((count, SIDE, SIDE), np.uint8), [""] * count, np.zeros((count, 2), np.int64), [""] * count)
    progress = Progress("looking at images", count, "images", shown=shown)

    def work(start: int) -> None:
        chunk = entries[start : start + _CHUNK]
        for offset, (name, entry) in enumerate(zip(chunk["id"], chunk["image"], strict=True)):
            try:
                _look(found, start + offset, name, entry, sixteen_bit)
            except DataError as error:
                found.faults[start + offset] = _reason(error, name)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, _ in enumerate(pool.map(work, range(0, count, _CHUNK))):
            progress.update(min(_CHUNK * (number + 1), count))
    progress.close()
    found.faults = dict(sorted(found.faults.items()))
    found.odd = dict(sorted(found.odd.items()))
    return found


def _reason(error: DataError, name: str) -> str:
    """The message without the name, which stands beside it, and the remedy, which is given once for all."""
    return str(error).removeprefix(f"{name}: ").split(" Replace or remove it")[0]


def _look(found: Scan, row: int, name: str, entry: Mapping[str, Any], sixteen_bit: images.SixteenBit) -> None:
    data = images.read(entry)
    thumb = images.decode_resized({"bytes": data, "path": None}, name, SIDE, "squash", sixteen_bit)
    found.hashes[row] = hashlib.blake2b(data, digest_size=16).hexdigest()
    found.thumbs[row] = np.rint(np.tensordot(_LUMA, thumb.astype(np.float32), 1))
    with Image.open(io.BytesIO(data)) as image:  # the header only
        found.sizes[row] = image.size
        found.kinds[row] = f"{image.format} {image.mode}"
        unusual = _unusual(image)
    if unusual:
        found.odd[row] = unusual


def _unusual(image: Image.Image) -> str:
    """What `images.decode` does to this image beyond decoding it; empty for most."""
    remarks = []
    if image.format in _MAY_MOVE and getattr(image, "n_frames", 1) > 1:
        remarks.append("several frames: the first counts")
    if image.mode.startswith("I") or any(";16" in str(tile.args) for tile in getattr(image, "tile", [])):
        remarks.append("16-bit: cut to 8 bits")
    if image.mode == "CMYK":
        remarks.append("CMYK: made RGB without its colour profile")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        remarks.append("transparency: laid on black")
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF in a sound image
        orientation = 1
    if orientation in range(2, 9):
        remarks.append("turned upright as its EXIF says")
    return "; ".join(remarks)
