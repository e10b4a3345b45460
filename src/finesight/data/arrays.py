"""Images in an npz: uint8 [N, H, W] or [N, H, W, 3] with labels, in one or several splits.

Keys: `images`/`labels` (or `x`/`y`), or per split `train_images`/`train_labels` (or
`x_train`/`y_train`), likewise val and test. Optional: `classes` (names by number), and `groups` or
the key that `group` names, with a split in front where images have one.
"""

import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from finesight.data import cifar10
from finesight.data.problems import SHOWN, refuse
from finesight.data.samples import SPLITS, Samples, array_images, encode, numbered_ids
from finesight.errors import DataError

_KEYS = "images and labels, or train_images, train_labels, test_images, test_labels (or x_train, y_train, ...)"


def read_npz(path: Path, group: str | None) -> Samples:
    """Samples of an npz file; ids are `SPLIT/00000` or `image/00000`. Raises `DataError`."""
    arrays = _load(path)
    found = {split: keys for split in ("", *SPLITS) if (keys := _keys(arrays, split))}
    if not found:
        raise DataError(f"{path}: has the keys {', '.join(arrays) or 'none'}; expected {_KEYS}.")
    problems: list[str] = []
    for image_key, label_key in found.values():
        problems += _check_pair(path, image_key, arrays[image_key], label_key, arrays[label_key])
    refuse(problems)
    labels = np.concatenate([arrays[label_key].reshape(-1) for _, label_key in found.values()])
    shape = arrays[next(iter(found.values()))[0]].shape
    numbers, classes = _classes(path, arrays, labels, shape)
    ids = [
        name
        for split, (image_key, _) in found.items()
        for name in numbered_ids(SPLITS.get(split, "image"), len(arrays[image_key]))
    ]
    images = pa.chunked_array(
        [chunk for image_key, _ in found.values() for chunk in array_images(arrays[image_key]).chunks]
    )
    splits = None if "" in found else [name.split("/")[0] for name in ids]
    columns = sorted(set(arrays) - {key for keys in found.values() for key in keys})
    groups = _groups(path, arrays, found, group)
    return Samples(ids, numbers, classes, images, splits, groups, columns=columns)


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays by key in lower case."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not an npz archive, or damaged. Write it with numpy.savez.")
    problems = []
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                try:
                    arrays[key.lower()] = archive[key]
                except ValueError as error:
                    problems.append(_unreadable(path, key, error))
    except (OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}). Copy or write it anew.") from None
    refuse(problems)
    return arrays


def _unreadable(path: Path, key: str, error: ValueError) -> str:
    if "allow_pickle" in str(error):
        return (
            f"{path}: {key!r} holds pickled Python objects, which can run any code when they are read: "
            "refused. Save plain arrays, e.g. np.array(names, dtype='U')."
        )
    return f"{path}: {key!r} cannot be read ({error})."


def _keys(arrays: dict[str, np.ndarray], split: str) -> tuple[str, str] | None:
    pairs = (
        [(f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}")]
        if split
        else [("images", "labels"), ("x", "y")]
    )
    return next((pair for pair in pairs if pair[0] in arrays and pair[1] in arrays), None)


def _check_pair(path: Path, image_key: str, images: np.ndarray, label_key: str, labels: np.ndarray) -> list[str]:
    problems = []
    shape = list(images.shape)
    if images.dtype != np.uint8:
        remedy = "scale to 0..255 and store np.uint8" if images.dtype.kind == "f" else "store np.uint8"
        problems.append(f"{path}: {image_key} is {images.dtype}; {remedy}.")
    if images.ndim == 4 and shape[1] == 3 and shape[3] != 3:
        problems.append(f"{path}: {image_key} is {shape}, channels first; store [N, H, W, 3].")
    elif not (images.ndim == 3 or (images.ndim == 4 and shape[3] == 3)) or 0 in shape:
        problems.append(f"{path}: {image_key} is {shape}; expected [N, H, W] or [N, H, W, 3].")
    if labels.dtype.kind not in "iuUS" or labels.ndim == 0 or labels.size != len(labels):
        problems.append(
            f"{path}: {label_key} is {labels.dtype} {list(labels.shape)}; expected one whole number or text per image."
        )
    elif len(labels) != len(images):
        problems.append(f"{path}: {len(images)} in {image_key}, but {len(labels)} in {label_key}.")
    return problems


def _classes(
    path: Path, arrays: dict[str, np.ndarray], labels: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, list[str]]:
    if labels.dtype.kind in "US":
        return encode(labels.astype(str).tolist())
    names = _names(path, arrays) or cifar10.names_for(path, shape, labels)
    most = len(names) - 1 if names else np.iinfo(np.int64).max
    wrong = np.flatnonzero((labels < 0) | (labels > most))
    stated = f"0..{most}, as there are {len(names)} classes" if names else "numbers from 0 up"
    refuse(
        [f"{path}: label {labels[row]} in row {row} is out of range ({stated})." for row in wrong[:SHOWN]]
        + ["(not shown)"] * (len(wrong) - SHOWN)
    )
    return (labels.astype(np.int64), names) if names else encode(labels.astype(str).tolist())


def _names(path: Path, arrays: dict[str, np.ndarray]) -> list[str] | None:
    if "classes" not in arrays:
        return None
    names = arrays["classes"].reshape(-1).astype(str).tolist()
    if len(set(names)) < len(names):
        raise DataError(f"{path}: 'classes' names a class twice: {', '.join(names)}.")
    return names


def _groups(
    path: Path, arrays: dict[str, np.ndarray], found: dict[str, tuple[str, str]], group: str | None
) -> list[str] | None:
    name = "groups" if group is None else group.lower()
    keys = [f"{split}_{name}" if split else name for split in found]
    if not any(key in arrays for key in keys):
        return None
    values = []
    for key, (image_key, _) in zip(keys, found.values(), strict=True):
        if key not in arrays or arrays[key].shape != (len(arrays[image_key]),):
            raise DataError(f"{path}: {key!r} must give one group for each of the images in {image_key}.")
        values += arrays[key].astype(str).tolist()
    return values
