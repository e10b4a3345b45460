"""CIFAR-10 in its official python batches (Krizhevsky 2009), and its class names.

The other forms need nothing special: the image folder and the Hub set carry the names, and an npz
is recognised by `names_for`.
"""

from pathlib import Path

import numpy as np

from finesight.data import unpickling
from finesight.data.problems import refuse
from finesight.data.samples import Samples, array_images, numbered_ids
from finesight.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-py"
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
_REMEDY = "Get the official cifar-10-python.tar.gz, and unpack it anew."


def batches_folder(root: Path) -> Path | None:
    """The folder with the official batches: `root` or `root/cifar-10-batches-py`; None if neither."""
    for folder in (root, root / FOLDER):
        if (folder / "test_batch").is_file() or (folder / _TRAIN[0]).is_file():
            return folder
    return None


def read_batches(folder: Path) -> Samples:
    """The official batches, in the official order; ids are `train/00000` ... and `test/00000` ...

    Batches that are not there are left out (a smaller set), but training and test need one each.
    Raises `DataError` for anything but the published content: uint8 [N, 3072] and labels 0..9.
    """
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    ids: list[str] = []
    problems: list[str] = []
    for split, names in (("train", _TRAIN), ("test", ("test_batch",))):
        paths = [folder / name for name in names if (folder / name).is_file()]
        if not paths:
            problems.append(f"{folder}: {names[0]} is missing. Unpack cifar-10-python.tar.gz anew.")
        parts = []
        for path in paths:
            try:
                parts.append(_read_batch(path))
            except DataError as error:
                problems.extend(error.problems)
        images += [part[0] for part in parts]
        labels += [part[1] for part in parts]
        ids += numbered_ids(split, sum(len(part[1]) for part in parts))
    refuse(problems)
    splits = [name.split("/")[0] for name in ids]
    return Samples(ids, np.concatenate(labels), list(CLASSES), array_images(np.concatenate(images)), splits)


def names_for(path: Path, shape: tuple[int, ...], labels: np.ndarray) -> list[str] | None:
    """The class names for an npz of numbers only: 32×32 colour, labels 0..9, "cifar10" in the file name."""
    name = path.name.lower().replace("-", "").replace("_", "")
    fits = shape[1:] == (32, 32, 3) and len(labels) > 0 and labels.min() >= 0 and labels.max() <= 9
    return list(CLASSES) if fits and "cifar10" in name and "cifar100" not in name else None


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [N, 32, 32, 3] and int64 [N]."""
    content = unpickling.load_arrays(path, _REMEDY)
    try:
        pixels, labels = content[b"data"], np.asarray(content[b"labels"])
        sound = (
            pixels.dtype == np.uint8
            and pixels.shape == (len(labels), 3072)
            and labels.dtype.kind == "i"
            and 0 <= labels.min() <= labels.max() <= 9
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        sound = False
    if not sound:
        raise DataError(
            f"{path}: not a CIFAR-10 batch: expected b'data' uint8 [N, 3072] and b'labels' of 0..9. {_REMEDY}"
        )
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int64)
