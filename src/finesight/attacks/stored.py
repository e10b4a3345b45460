"""A stored adversarial test set: 8-bit images within the budget, labels, ids and classes, and a manifest with its hash.

adversarial.npz: images uint8 [N, H, W, 3], labels int64 [N], ids [N], groups [N], classes [C]; adversarial.json beside
it says what made it. Both are plain data: nothing in them is run when they are read.
"""

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finesight.attacks.budget import Norm
from finesight.errors import DataError
from finesight.files import human_bytes, read_json, sha256, write_json

FORMAT = 1
ARRAYS = ("images", "labels", "ids", "groups", "classes")
MOST_BYTES = 16_000_000_000
MOST_COMPRESSED = 100
"""A stored set that would unpack to more bytes, or to more times its size, is refused."""

_HALVINGS = 20


@dataclass(frozen=True)
class StoredSet:
    """images: uint8 [N, 3, H, W]; labels: int64 [N], numbers of `classes`; ids, groups: N names; about: manifest."""

    images: Tensor
    labels: NDArray[np.int64]
    ids: list[str]
    groups: list[str]
    classes: list[str]
    about: dict[str, Any]


def to_8_bit(adversarial: Tensor, images: Tensor, eps: float, norm: Norm) -> Tensor:
    """Adversarial pixels as 8-bit values that keep the budget, which plain rounding may break.

    adversarial: float [B, C, H, W] in [0, 1], within eps of the images; images: uint8 [B, C, H, W]. With linf the
    change is rounded and cut to whole steps within eps, so that a budget below 1/255 leaves nothing. With l2 it is
    shortened until its rounded form fits. Returns uint8 [B, C, H, W].
    """
    clean = images.double()
    change = adversarial.double() * 255 - clean
    if norm == "linf":
        most = np.floor(255 * eps + 1e-4)
        moved = change.round().clamp(-most, most)
    else:
        # Each rounded value grows with the factor, so the largest one that fits is found by halving.
        low = torch.zeros(len(clean), 1, 1, 1, dtype=torch.float64, device=clean.device)
        high = torch.ones_like(low)
        for halving in range(_HALVINGS):
            middle = high if halving == 0 else (low + high) / 2
            length = torch.linalg.vector_norm((middle * change).round(), dim=(1, 2, 3), keepdim=True)
            fits = length <= 255 * eps * (1 + 1e-6)
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        moved = (low * change).round()
    return (clean + moved).clamp(0, 255).to(torch.uint8)


def write(directory: Path, found: StoredSet) -> None:
    """Write adversarial.npz and, with its hash, adversarial.json into a folder."""
    path = directory / "adversarial.npz"
    arrays: dict[str, Any] = {
        "images": found.images.permute(0, 2, 3, 1).contiguous().numpy(),
        "labels": found.labels,
        "ids": np.array(found.ids, dtype=np.str_),
        "groups": np.array(found.groups, dtype=np.str_),
        "classes": np.array(found.classes, dtype=np.str_),
    }
    np.savez(path, **arrays)
    about = {"format": FORMAT, "sha256": sha256(path), "images": len(found.ids), "classes": found.classes}
    write_json(directory / "adversarial.json", about | found.about)


def read(path: Path) -> StoredSet:
    """A stored set. Raises `DataError` for a file that is missing, changed since it was written, or too large."""
    manifest = path.with_suffix(".json")
    for file in (path, manifest):
        if not file.is_file():
            raise DataError(
                f"{file}: no such file. A stored set is adversarial.npz with its adversarial.json beside it, as "
                "finesight attack RUN writes them into RUN/attack."
            )
    about = _manifest(manifest)
    if sha256(path) != about["sha256"]:
        raise DataError(
            f"{path}: changed since it was written: its hash is not the one in {manifest.name}. Copy both files anew."
        )
    _refuse_large(path)
    try:
        _check_headers(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a stored set ({error}); write it with finesight attack RUN.") from None
    return _checked(path, arrays, about)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        about = read_json(path)
        if about["format"] != FORMAT:
            raise DataError(f"{path}: written by another version of finesight; use that version to read it.")
        str(about["sha256"]), float(about["eps"]), str(about["norm"]), str(about["model"]["name"])
        list(about["classes"]), str(about["attack"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); copy it anew from the run that made it.") from None
    return about


def _refuse_large(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not an npz archive ({error}); copy it anew.") from None
    if sorted(part.filename for part in parts) != sorted(f"{name}.npy" for name in ARRAYS):
        raise DataError(f"{path}: holds {', '.join(part.filename for part in parts)}; expected {', '.join(ARRAYS)}.")
    size = sum(part.file_size for part in parts)
    if size > MOST_BYTES or size > MOST_COMPRESSED * path.stat().st_size:
        raise DataError(
            f"{path}: would unpack to {human_bytes(size)} from {human_bytes(path.stat().st_size)}, more than "
            f"{human_bytes(MOST_BYTES)} or {MOST_COMPRESSED} times its size; it is not read."
        )


def _check_headers(path: Path) -> None:
    """Raise `ValueError` where a header claims another size than its array has: numpy would reserve what it claims."""
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            with archive.open(part) as stream:
                version = np.lib.format.read_magic(stream)
                if version not in ((1, 0), (2, 0)):
                    raise ValueError(f"{part.filename} is of npy version {version}")
                first = version == (1, 0)
                read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(stream)
                if dtype.hasobject or math.prod(shape) * dtype.itemsize != part.file_size - stream.tell():
                    raise ValueError(f"{part.filename} is no plain {dtype} array of shape {shape}")


def _checked(path: Path, arrays: dict[str, NDArray[Any]], about: dict[str, Any]) -> StoredSet:
    images, labels, ids, groups, classes = (arrays[name] for name in ARRAYS)
    count, known = len(ids), len(classes)
    fits = (
        images.dtype == np.uint8 and images.ndim == 4 and images.shape[0] == count > 0 and images.shape[3] == 3
        and labels.dtype == np.int64 and labels.shape == ids.shape == groups.shape == (count,) and classes.ndim == 1
        and ids.dtype.kind == groups.dtype.kind == classes.dtype.kind == "U" and len(set(classes.tolist())) == known
        and 0 <= labels.min() <= labels.max() < known and classes.tolist() == about["classes"]
    )  # fmt: skip
    if not fits:
        raise DataError(
            f"{path}: images {images.dtype} {list(images.shape)}, labels {labels.dtype} {list(labels.shape)}, "
            f"{count} ids and {known} classes are no stored set; write it with finesight attack RUN."
        )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return StoredSet(pixels, labels, ids.tolist(), groups.tolist(), classes.tolist(), about)
