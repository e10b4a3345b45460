"""MNIST in its four idx files (LeCun et al. 1998), and sets in the same form such as Fashion-MNIST.

An idx file: the bytes 0, 0, type (8 is uint8), number of dimensions; each dimension as a big-endian
uint32; the values. As published, the files are packed by gzip.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from finesight.data.archives import MOST_RATIO
from finesight.data.problems import refuse
from finesight.data.samples import Samples, array_images, numbered_ids
from finesight.errors import DataError

CLASSES = tuple("0123456789")
SIDE = 28
_PREFIXES = {"train": "train", "test": "t10k"}
_DIMENSIONS = {"images": 3, "labels": 1}
# Where torchvision keeps the files below the folder that it is given.
_BELOW = ("", "raw", "MNIST/raw", "FashionMNIST/raw")
_GZIP = b"\x1f\x8b"
# A small file may unpack to this much, however well it is compressed.
_SMALL = 1 << 20
_REMEDY = "Download it anew"


def idx_folder(root: Path) -> Path | None:
    """The folder with idx files: `root`, or below it as torchvision keeps them; None if there are none."""
    for below in _BELOW:
        if any(_find(root / below, split, kind) for split in _PREFIXES for kind in _DIMENSIONS):
            return root / below
    return None


def read_idx(folder: Path) -> Samples:
    """All images in the order of the files; ids are `train/00000` ... and `test/00000` ...

    Classes are the digits as text, also where they stand for something else. Raises `DataError`.
    """
    train_images, train_labels, test_images, test_labels = arrays(folder)
    ids = numbered_ids("train", len(train_labels)) + numbered_ids("test", len(test_labels))
    splits = ["train"] * len(train_labels) + ["test"] * len(test_labels)
    labels = np.concatenate([train_labels, test_labels]).astype(np.int64)
    images = array_images(np.concatenate([train_images, test_images]))
    return Samples(ids, labels, list(CLASSES), images, splits)


def arrays(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images and labels of the training files, then of the test files, in a folder as for `idx_folder`.

    Images are uint8 [N, 28, 28], ink 255 on 0; labels uint8 [N] in 0..9. Packed or not is decided by a
    file's content, not by its name. Raises `DataError` with everything that is wrong with the four files.
    """
    folder = idx_folder(path) or path
    found: dict[tuple[str, str], np.ndarray] = {}
    problems: list[str] = []
    for split in _PREFIXES:
        for kind in _DIMENSIONS:
            file = _find(folder, split, kind)
            if file is None:
                problems.append(f"{folder}: {_names(split, kind)[1]} is missing. Put all four idx files in one folder.")
                continue
            try:
                values = _read(file, _DIMENSIONS[kind])
                refuse(list(_wrong(file, values)))
                found[split, kind] = values
            except DataError as error:
                problems += error.problems
        images, labels = found.get((split, "images")), found.get((split, "labels"))
        if images is not None and labels is not None and len(images) != len(labels):
            problems.append(
                f"{folder}: {len(images):,} images, but {len(labels):,} labels in the {split} files. {_REMEDY}."
            )
    refuse(problems)
    return found["train", "images"], found["train", "labels"], found["test", "images"], found["test", "labels"]


def _names(split: str, kind: str) -> list[str]:
    """The names a file has: as downloaded, unpacked, and with the dot that some mirrors put."""
    start, end = f"{_PREFIXES[split]}-{kind}", f"idx{_DIMENSIONS[kind]}-ubyte"
    return [f"{start}{mark}{end}{packed}" for mark in "-." for packed in ("", ".gz")]


def _find(folder: Path, split: str, kind: str) -> Path | None:
    return next((folder / name for name in _names(split, kind) if (folder / name).is_file()), None)


def _read(path: Path, dimensions: int) -> np.ndarray:
    """The values of an idx file, uint8 [...]; never unpacks more than its header states."""
    try:
        with open(path, "rb") as raw:
            packed = raw.read(len(_GZIP)) == _GZIP
            raw.seek(0)
            file = gzip.GzipFile(fileobj=raw) if packed else raw
            shape = _shape(path, file.read(4 + 4 * dimensions), dimensions)
            stated, size = math.prod(shape), os.fstat(raw.fileno()).st_size
            if stated > (max(MOST_RATIO * size, _SMALL) if packed else size):
                raise DataError(
                    f"{path}: its header states {_times(shape)} = {stated:,} values, more than a file of "
                    f"{size:,} bytes can hold. It is truncated or damaged. {_REMEDY}."
                )
            data = file.read(stated + 1)
    except (OSError, EOFError, zlib.error) as error:
        cause = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read, or is truncated ({cause}). {_REMEDY}.") from None
    if len(data) != stated:
        has = f"only {len(data):,}" if len(data) < stated else "more"
        raise DataError(f"{path}: its header states {_times(shape)} = {stated:,} values, but it has {has}. {_REMEDY}.")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    expected = bytes([0, 0, 8, dimensions])
    if header[:4] != expected:
        raise DataError(
            f"{path}: begins with {header[:4].hex(' ') or 'nothing'}, expected {expected.hex(' ')} (idx, bytes in "
            f"{dimensions} dimension{'s' if dimensions > 1 else ''}). It is another file, or a web page. {_REMEDY}."
        )
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{path}: ends within its header, after {len(header)} bytes. {_REMEDY}.")
    return struct.unpack(f">{dimensions}I", header[4:])


def _wrong(path: Path, values: np.ndarray) -> Iterator[str]:
    if not len(values):
        yield f"{path}: holds no values. {_REMEDY}."
    elif values.ndim == 3 and values.shape[1:] != (SIDE, SIDE):
        yield f"{path}: images of {_times(values.shape[1:])}; those of MNIST are {SIDE}×{SIDE}. Give an image folder."
    elif values.ndim == 1:
        wrong = np.flatnonzero(values >= len(CLASSES))
        if len(wrong):
            first = f"the first is {values[wrong[0]]} in row {wrong[0]}"
            yield f"{path}: {len(wrong):,} labels are out of range (0..9); {first}. {_REMEDY}."


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
