"""MNIST-M (Ganin et al. 2016, JMLR 17(59), section 5.2.4): digits blended into patches of photographs.

It is published as a folder of PNGs and as pickled arrays, both read here, or made anew from MNIST and
any photographs. A third form, an npz of `images` and `labels`, is read like any other.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from finesight.data import archives, mnist, unpickling
from finesight.data.images import BadImage, decode, is_image_name, zip_path
from finesight.data.images import read as read_image
from finesight.data.problems import examples, refuse
from finesight.data.samples import SPLITS, Samples, array_images, numbered_ids, path_images
from finesight.errors import DataError

_HALVES = ("train", "test")
_FOLDER = "mnist_m"
_SHAPES = ((28, 28, 3), (32, 32, 3))
# Photographs are held in memory, decoded: BSDS500 has 0.2 GB.
_MOST_BYTES = 1 << 31
_CHUNK = 2048
# The second word of the key of the random numbers, where augmentation has its epoch: never the same draws.
_STREAM = int.from_bytes(b"mnist_m")
_OFFICIAL = "Unpack mnist_m.tar.gz anew"
_PICKLE = "Get the official keras_mnistm.pkl.gz."


def synthesise(digits: np.ndarray, backgrounds: list[np.ndarray], seed: int) -> np.ndarray:
    """Blend each digit with a random patch of a random photograph: |patch - digit| in each channel.

    digits: uint8 [N, 28, 28], or another square; backgrounds: uint8 [H, W, 3] each, of any sizes from that.
    Returns uint8 [N, 28, 28, 3]. Row i depends on (seed, i), its digit and the backgrounds only, not on N.
    `with_ink(digits)` gives the published look. Raises `DataError` for arrays of another kind.
    """
    problems, side = [], mnist.SIDE
    if digits.dtype != np.uint8 or digits.ndim != 3 or digits.shape[1] != digits.shape[2]:
        problems.append(f"digits are {digits.dtype} {list(digits.shape)}; give uint8 [N, {side}, {side}].")
    else:
        side = digits.shape[1]
    if not backgrounds:
        problems.append("No background photographs are given; at least one is needed.")
    problems += [cause for row, photo in enumerate(backgrounds) if (cause := _unfit(f"background {row}", photo, side))]
    refuse(problems)
    sizes = np.array([photo.shape[:2] for photo in backgrounds])
    starts = np.concatenate([[0], np.cumsum(3 * sizes.prod(1))[:-1]])
    values = np.concatenate([photo.reshape(-1) for photo in backgrounds])
    # One row of a patch lies in one piece: gathering pieces is much faster than gathering pixels.
    pieces = np.lib.stride_tricks.sliding_window_view(values, 3 * side)
    key = np.array([seed % 2**64, _STREAM], dtype=np.uint64)
    draws = np.random.Generator(np.random.Philox(key=key)).random((len(digits), 3))
    photo = (draws[:, 0] * len(backgrounds)).astype(np.int64)
    top, left = (draws[:, 1:] * (sizes[photo] - side + 1)).astype(np.int64).T
    width = sizes[photo, 1]
    first = starts[photo] + 3 * (top * width + left)
    output = np.empty((len(digits), side, side, 3), np.uint8)
    for start in range(0, len(digits), _CHUNK):
        rows = slice(start, start + _CHUNK)
        places = first[rows, None] + 3 * width[rows, None] * np.arange(side)
        patch = pieces[places].reshape(-1, side, side, 3)
        digit = digits[rows, :, :, None]
        np.subtract(np.maximum(patch, digit), np.minimum(patch, digit), out=output[rows])
    return output


def with_ink(digits: np.ndarray) -> np.ndarray:
    """Every pixel above 0 as ink of 255: what the published MNIST-M was blended from. uint8 [N, S, S] to the same.

    Found by undoing the blend on the published test images, which also keep the digits' 28 pixels inside a
    margin of 2.
    """
    return np.where(digits > 0, np.uint8(255), np.uint8(0))


def read_backgrounds(path: Path) -> list[np.ndarray]:
    """The photographs in a folder or zip, such as BSDS500, in the order of their names: uint8 [H, W, 3] each.

    Raises `DataError` with all that cannot be decoded or are smaller than 28 pixels.
    """
    path = Path(os.path.abspath(path))
    if path.is_dir():
        below = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
        places = {name: str(file) for name, file in below.items() if not archives.is_clutter(name)}
    else:
        places = {name: zip_path(str(path), name) for name in archives.index(str(path))}
    names = sorted(name for name in places if is_image_name(name))
    if not names:
        raise DataError(f"{path}: holds no photographs. Give a folder or zip of them, such as the images of BSDS500.")
    photos: list[np.ndarray] = []
    problems: list[str] = []
    held = 0
    for name in names:
        try:
            photo = decode(read_image({"bytes": None, "path": places[name]}), f"{path}: {name}")
        except BadImage as error:
            problems += error.problems
            continue
        problems += [cause] if (cause := _unfit(f"{path}: {name}", photo, mnist.SIDE)) else []
        photos.append(photo)
        held += photo.nbytes
        if held > _MOST_BYTES:
            raise DataError(f"{path}: more than {_MOST_BYTES:,} bytes of pixels. Give fewer or smaller photographs.")
    refuse(problems)
    return photos


def split_backgrounds(backgrounds: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Photographs for a training and for a test half: every fifth is for test, and none is in both.

    Of photographs that are there twice, pixel for pixel, one is taken. Raises `DataError` below two.
    """
    first: dict[object, np.ndarray] = {}
    for photo in backgrounds:
        first.setdefault((photo.shape, hashlib.sha256(photo.tobytes()).digest()), photo)
    distinct = list(first.values())
    if len(distinct) < 2:
        raise DataError(f"{len(distinct)} different photographs; two or more are needed to have some for each half.")
    return [photo for row, photo in enumerate(distinct) if row % 5], distinct[::5]


def _unfit(name: str, photo: np.ndarray, side: int) -> str | None:
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        return f"{name} is {photo.dtype} {list(photo.shape)}; give uint8 [H, W, 3]."
    if min(photo.shape[:2]) < side:
        return f"{name} has {photo.shape[0]}×{photo.shape[1]} pixels; at least {side}×{side} are needed."
    return None


def official_folder(root: Path) -> Path | None:
    """The folder of mnist_m.tar.gz: `root` or `root/mnist_m`; None if neither."""
    for folder in (root, root / _FOLDER):
        if any(place.exists() for half in _HALVES for place in _places(folder, half)):
            return folder
    return None


def read_folder(folder: Path) -> Samples:
    """The official folder; ids are `train/00000` ... and `test/00000` ... in the order of file names.

    Raises `DataError` with every line that is no label and every image or label without its counterpart.
    """
    paths: list[str] = []
    labels: list[int] = []
    ids: list[str] = []
    problems: list[str] = []
    for half in _HALVES:
        try:
            images, table = _places(folder, half)
            found = _read_labels(table)
            _check_names(images, table, set(found))
        except DataError as error:
            problems += error.problems
            continue
        names = sorted(found)
        paths += [os.path.join(images, name) for name in names]
        labels += [found[name] for name in names]
        ids += numbered_ids(half, len(names))
    refuse(problems)
    splits = [name.split("/")[0] for name in ids]
    return Samples(ids, np.array(labels, np.int64), list(mnist.CLASSES), path_images(paths), splits)


def _places(folder: Path, half: str) -> tuple[Path, Path]:
    return folder / f"mnist_m_{half}", folder / f"mnist_m_{half}_labels.txt"


def _read_labels(table: Path) -> dict[str, int]:
    """The label of each file, from lines `00000000.png 5`."""
    try:
        lines = table.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        cause = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DataError(f"{table}: {cause}. {_OFFICIAL}.") from None
    found: dict[str, int] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        name, _, label = line.strip().rpartition(" ")
        if not label:
            continue
        if not is_image_name(name) or "/" in name or label not in mnist.CLASSES:
            problems.append(f"{table}, line {number}: {line[:60]!r}; expected a line such as '00000000.png 5'.")
        elif name in found:
            problems.append(f"{table}, line {number}: {name!r} stands twice. {_OFFICIAL}.")
        else:
            found[name] = int(label)
    refuse(problems or ([] if found else [f"{table}: holds no labels. {_OFFICIAL}."]))
    return found


def _check_names(images: Path, table: Path, labelled: set[str]) -> None:
    try:
        there = {name for name in os.listdir(images) if is_image_name(name) and not archives.is_clutter(name)}
    except OSError as error:
        raise DataError(f"{images}: cannot be read: {error.strerror}. {_OFFICIAL}.") from None
    missing, unlabelled = sorted(labelled - there), sorted(there - labelled)
    problems = []
    if missing:
        problems.append(f"{table}: names {len(missing):,} absent images: {examples(missing)}. {_OFFICIAL}.")
    if unlabelled:
        problems.append(f"{images}: {len(unlabelled):,} images without label: {examples(unlabelled)}. {_OFFICIAL}.")
    refuse(problems)


def read_pickle(path: Path) -> Samples:
    """The arrays `train`, `test` and perhaps `valid`, uint8 [N, 28, 28, 3], with the labels of MNIST.

    The labels come from the MNIST idx files in the same folder or in `mnist` below it: as published, `valid`
    is made of the first training digits, `train` of the others. Raises `DataError`, also if counts differ.
    """
    parts = _unpickled(path)
    folder = mnist.idx_folder(path.parent) or mnist.idx_folder(path.parent / "mnist")
    if folder is None:
        raise DataError(
            f"{path}: holds images without labels; these are those of MNIST. Put its four idx files into "
            f"{path.parent / 'mnist'}."
        )
    _, train, _, test = mnist.arrays(folder)
    tested = len(parts["test"])
    trained = sum(map(len, parts.values())) - tested
    refuse(
        [
            f"{path}: {count:,} {half} images, but {len(labels):,} labels in {folder}; they cannot be paired. {_PICKLE}"
            for half, count, labels in (("training", trained, train), ("test", tested, test))
            if count != len(labels)
        ]
    )
    ids = [text for split, pixels in parts.items() for text in numbered_ids(split, len(pixels))]
    images = pa.chunked_array([chunk for pixels in parts.values() for chunk in array_images(pixels).chunks])
    splits = [text.split("/")[0] for text in ids]
    return Samples(ids, np.concatenate([train, test]).astype(np.int64), list(mnist.CLASSES), images, splits)


def _unpickled(path: Path) -> dict[str, np.ndarray]:
    """The arrays by split, in the order of the labels: validation where it is there, train, test."""
    content = unpickling.load_arrays(path, _PICKLE)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, expected a dict of train and test. {_PICKLE}")
    parts = {}
    problems = []
    for name in ("valid", "train", "test"):
        pixels = content.get(name, content.get(name.encode()))
        if name == "valid" and pixels is None:
            continue
        if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] in _SHAPES and len(pixels):
            parts[SPLITS[name]] = pixels
        else:
            problems.append(f"{path}: {name!r} is no uint8 array [N, 28, 28, 3] or [N, 32, 32, 3]. {_PICKLE}")
    refuse(problems)
    return parts
