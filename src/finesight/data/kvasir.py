"""Endoscopy frames in the layouts of Kvasir, and any other folder or zip of images, without labels.

Kvasir v1 and v2 (Pogorelov et al. 2017): a folder per class, of which `normal-cecum`, `normal-pylorus` and
`normal-z-line` show nothing abnormal. Kvasir-SEG (Jha et al. 2020): `images/` and `masks/` side by side;
a mask is never read as an image. What is in no such layout is read as it lies.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from finesight.data import borders, folders
from finesight.data.problems import examples
from finesight.data.samples import SPLITS, Samples
from finesight.errors import DataError

Which = Literal["normal", "abnormal", "all"]

_NORMAL = "normal-"
_IMAGES = "images"
# Beside `images`: what is drawn per pixel (Kvasir-SEG; ADE20K).
_MASKS = ("masks", "annotations")


def crop_border(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame uint8 [H, W, 3] without its black border, as the model sees it: uint8 [96, 96, 3].

    What `--data.fit border` does at size 96 (`borders`; report 003). Raises `DataError` for another kind of array.
    """
    return np.array(borders.steps(image, 96).resized)


def read(path: Path, which: Which = "all") -> Samples:
    """The images of a folder or zip; labels are all 0, of the one class "image".

    Ids are paths below the folders that enclose everything. Where each image lies below a folder such as
    train, valid or test, these are the splits. Where `images` and `masks` stand side by side, only what is
    below `images` is read. `folders` has the class or whatever other folder an image lies in. `which`:
    "normal" takes the classes named normal-..., "abnormal" all other classes of a set that has those.
    Raises `DataError` where there are no such images.
    """
    path = Path(os.path.abspath(path))
    if path.is_file() and "::" in str(path):
        raise DataError(f"{path}: an archive cannot be read below a path with '::' in it. Rename that folder.")
    found = folders.read_unlabelled(path, [], every=True)
    if found is None:
        raise DataError(f"{path}: holds no images. Give a folder or a zip of images, in whatever folders.")
    kept, depths = _without_masks(found.ids)
    ids = _without_enclosing([found.ids[row] for row in kept], depths)
    parts = [_parts(name, depth) for name, depth in zip(ids, depths, strict=True)]
    splits = _splits(parts, path)
    samples = replace(
        _take(found, kept),
        ids=ids,
        labels=np.zeros(len(kept), np.int64),
        classes=["image"],
        splits=splits,
        folders=["/".join(part[1 if splits else 0 : -1]) for part in parts],
    )
    return samples if which == "all" else choose(samples, which, path)


def normal_classes(samples: Samples) -> list[str]:
    """The class folders named normal-... of what `read` found, in the order of their names."""
    return sorted({name for name in map(_class, samples.folders or []) if _is_normal(name)})


def choose(samples: Samples, which: Literal["normal", "abnormal"], path: Path) -> Samples:
    """The normal or the abnormal classes of what `read` found at `path`. Raises `DataError` without any."""
    classes = [_class(folder) for folder in samples.folders or []]
    if not normal_classes(samples):
        seen = sorted({name for name in classes if name})
        raise DataError(
            f"{path}: has no class folder {_NORMAL}..., so normal and abnormal images cannot be told apart. Folders: "
            f"{examples(seen, 8) or 'none'}. Rename those of normal images, or keep the two in folders of their own."
        )
    rows = [row for row, name in enumerate(classes) if _is_normal(name) == (which == "normal")]
    if not rows:
        raise DataError(
            f"{path}: all its classes are normal ({examples(normal_classes(samples))}). Add a class folder of "
            "abnormal images beside them, or give another folder."
        )
    return _take(samples, rows)


def normal_folder(name: str) -> str | None:
    """The class folder normal-... in an id that `read` gave, or None: the first folder, or the one below a split."""
    return next((part for part in name.split("/")[:-1][:2] if _is_normal(part)), None)


def _class(folder: str) -> str:
    return folder.partition("/")[0]


def _is_normal(name: str) -> bool:
    return name.casefold().startswith(_NORMAL)


def _take(samples: Samples, rows: list[int]) -> Samples:
    return replace(
        samples,
        ids=[samples.ids[row] for row in rows],
        labels=samples.labels[rows],
        images=samples.images.take(pa.array(rows, pa.int64())),
        splits=samples.splits and [samples.splits[row] for row in rows],
        folders=samples.folders and [samples.folders[row] for row in rows],
    )


def _without_masks(names: list[str]) -> tuple[list[int], list[int]]:
    """The rows to read; and for each, from the right, which part of its path is the `images` beside masks, or 0."""
    split = [name.split("/") for name in names]
    homes: dict[str, set[tuple[str, ...]]] = {kind: set() for kind in (_IMAGES, *_MASKS)}
    for parts in split:
        for depth, part in enumerate(parts[:-1]):
            if part.casefold() in homes:
                homes[part.casefold()].add(tuple(parts[:depth]))
    paired = homes[_IMAGES] & set().union(*(homes[kind] for kind in _MASKS))
    if not paired:
        return list(range(len(names))), [0] * len(names)
    kept, depths = [], []
    for row, parts in enumerate(split):
        for depth, part in enumerate(parts[:-1]):
            if part.casefold() == _IMAGES and tuple(parts[:depth]) in paired:
                kept.append(row)
                depths.append(depth - len(parts))
                break
    return kept, depths


def _without_enclosing(names: list[str], depths: list[int]) -> list[str]:
    """The names without the leading folders that all share and that carry no meaning."""
    above = [name.split("/")[: depth or -1] for name, depth in zip(names, depths, strict=True)]
    first, last = min(above), max(above)  # what these two share, all share
    depth = 0
    while depth < len(first) and first[depth] == last[depth] and not _has_meaning(first[depth]):
        depth += 1
    enclosing = sum(len(part) + 1 for part in first[:depth])
    return [name[enclosing:] for name in names]


def _has_meaning(folder: str) -> bool:
    return folder.lower() in SPLITS or _is_normal(folder)


def _parts(name: str, depth: int) -> list[str]:
    """The parts of a path, without the one at `depth` from the right."""
    parts = name.split("/")
    return parts[:depth] + parts[depth + 1 :] if depth else parts


def _splits(parts: list[list[str]], path: Path) -> list[str] | None:
    """The split of each image by its first folder; None where these are no splits.

    A single `train` among others is a class like any other (of vehicles): nothing is held out by it.
    """
    tops = [part[0] if len(part) > 1 else "" for part in parts]
    known = sorted({top for top in tops if top.lower() in SPLITS})
    others = sorted(set(tops) - set(known))
    if not others:
        return [SPLITS[top.lower()] for top in tops]
    if any(SPLITS[top.lower()] != "train" for top in known):
        lying = examples([top or "the images beside them" for top in others])
        raise DataError(
            f"{path}: {examples(known)} look like splits, but {lying} do not. Move every image below one of the "
            "splits, or rename their folders."
        )
    return None
