"""What every source becomes before it is split: ids, labels and references to images."""

import re
import struct
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

# Folder, split and key names as they are used in the wild.
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_CHUNK_BYTES = 1 << 30


@dataclass
class Samples:
    """One row per image, in any order; `images` is an Arrow struct<bytes: binary, path: string>."""

    ids: list[str]
    labels: np.ndarray  # int64 [N], index into classes
    classes: list[str]
    images: pa.Array | pa.ChunkedArray
    splits: list[str] | None = None  # train | validation | test, where the source says so
    groups: list[str] | None = None  # from a column
    folders: list[str] | None = None  # the folder of each image: below its class, or of its path in a table
    columns: list[str] = field(default_factory=list)  # what `group` could name

    def to_dataset(self, groups: list[str], classes: list[str] | None = None) -> datasets.Dataset:
        """All rows as one Dataset with the columns id, image, label, group; `classes` where none is labelled (-1)."""
        features = datasets.Features(
            id=datasets.Value("string"),
            image=datasets.Image(),
            label=datasets.ClassLabel(names=classes or self.classes),
            group=datasets.Value("string"),
        )
        columns: dict[str, Any] = {
            "id": pa.array(self.ids, pa.string()),
            "image": self.images,
            "label": pa.array(self.labels, pa.int64()),
            "group": pa.array(groups, pa.string()),
        }
        return datasets.Dataset(pa.table(columns), info=datasets.DatasetInfo(features=features))


def take_rows(dataset: datasets.Dataset, rows: np.ndarray) -> datasets.Dataset:
    """The rows as a Dataset of their own; what is large stays memory-mapped behind an index.

    A plain table is read column-wise at once, which an index makes thirty times slower.
    """
    if dataset.data.nbytes > _CHUNK_BYTES:
        return dataset.select(rows)
    return datasets.Dataset(dataset.data.table.take(pa.array(rows)), info=dataset.info.copy())


def relabelled(dataset: datasets.Dataset, classes: list[str]) -> datasets.Dataset:
    """The same rows with labels as indices into `classes`, which hold all of the dataset's own."""
    own = dataset.features["label"].names
    if own == classes:
        return dataset
    labels = np.array([classes.index(name) for name in own])[np.asarray(dataset["label"])]
    features = dataset.features.copy()
    features["label"] = datasets.ClassLabel(names=classes)
    return dataset.remove_columns("label").add_column("label", labels).cast(features)


def natural_key(text: str) -> tuple[Any, ...]:
    """Sort key that puts class2 before class10 and ignores case."""
    parts = re.split(r"(\d+)", text.casefold())
    return (*[int(part) if part.isdecimal() else part for part in parts], text)


def encode(names: list[str], classes: list[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Class names of rows -> (int64 [N], the classes: as given, or the distinct names in natural order)."""
    classes = sorted(set(names), key=natural_key) if classes is None else classes
    number = {name: position for position, name in enumerate(classes)}
    return np.fromiter((number[name] for name in names), np.int64, len(names)), classes


def numbered_ids(prefix: str, count: int) -> list[str]:
    """`prefix/00000` ...: ids for sources without names, whose text order is their row order."""
    width = max(5, len(str(count - 1)))
    return [f"{prefix}/{row:0{width}d}" for row in range(count)]


def path_images(paths: list[str]) -> pa.Array:
    """References to image files, `[{"bytes": None, "path": path}]`."""
    nothing = pa.nulls(len(paths), pa.binary())
    return pa.StructArray.from_arrays([nothing, pa.array(paths, pa.string())], names=["bytes", "path"])


def array_images(pixels: np.ndarray) -> pa.ChunkedArray:
    """uint8 [N, H, W] or [N, H, W, 3] as BMP files in memory: lossless, and built for all images at once."""
    count, height, width = pixels.shape[:3]
    grey = pixels.ndim == 3
    stride = -(-width * (1 if grey else 3) // 4) * 4
    header = _bmp_header(height, width, stride, grey)
    step = max(1, _CHUNK_BYTES // (len(header) + stride * height))
    chunks = []
    for start in range(0, count, step):
        part = pixels[start : start + step]
        files = np.zeros((len(part), len(header) + stride * height), np.uint8)
        files[:, : len(header)] = np.frombuffer(header, np.uint8)
        rows = files[:, len(header) :].reshape(len(part), height, stride)
        if grey:
            rows[:, :, :width] = part
        else:
            rows[:, :, : 3 * width].reshape(len(part), height, width, 3)[...] = part[..., ::-1]
        offsets = np.arange(len(part) + 1, dtype=np.int32) * np.int32(files.shape[1])
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(files)]
        data = pa.Array.from_buffers(pa.binary(), len(part), buffers)
        nothing = pa.nulls(len(part), pa.string())
        chunks.append(pa.StructArray.from_arrays([data, nothing], names=["bytes", "path"]))
    return pa.chunked_array(chunks, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def _bmp_header(height: int, width: int, stride: int, grey: bool) -> bytes:
    palette = np.repeat(np.arange(256, dtype=np.uint8), 4).tobytes() if grey else b""
    size = 54 + len(palette)
    # A negative height says that rows run from top to bottom.
    return (
        struct.pack("<2sIHHI", b"BM", size + stride * height, 0, 0, size)
        + struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 8 if grey else 24, 0, stride * height, 0, 0, 0, 0)
        + palette
    )
