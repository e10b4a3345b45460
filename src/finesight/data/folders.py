"""Image folders, on disk or in a zip: root/class/image or root/split/class/image.

Folders below a class are allowed (a patient, a leaf) and belong to that class. Hidden files,
`__MACOSX/` and files that are no images are left out. One enclosing folder around it all is ignored.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from finesight.data import archives
from finesight.data.images import is_image_name, zip_path
from finesight.data.problems import examples, refuse
from finesight.data.samples import SPLITS, Samples, encode, path_images
from finesight.errors import DataError

_LAYOUT = "expected FOLDER/CLASS/image.jpg or FOLDER/train/CLASS/image.jpg (and test/, validation/)"


def read_folder(root: Path) -> Samples:
    """Samples of an image folder; ids are paths relative to it. Raises `DataError`."""
    files, folders = _walk(str(root))
    return _arrange(files, folders, str(root), lambda name: f"{root}{os.sep}{name}")


def read_zip(path: Path) -> Samples:
    """Samples of a zip of an image folder; ids are member names. Raises `DataError`."""
    names = list(archives.index(str(path)))
    folders = {name.rsplit("/", depth)[0] for name in names for depth in range(1, min(name.count("/"), 3) + 1)}
    if "::" in str(path):
        raise DataError(f"{path}: an archive cannot be read below a path with '::' in it. Rename that folder.")
    return _arrange(names, folders, str(path), lambda name: zip_path(str(path), name))


def read_unlabelled(root: Path, classes: list[str], *, every: bool = False) -> Samples | None:
    """Samples with label -1 of a folder or zip whose images lie in one folder that is none of `classes`.

    None for anything else; with `every`, all images below `root`, in whatever folders.
    """
    if root.is_dir():
        files, _ = _walk(str(root))
        paths = {name: f"{root}{os.sep}{name}" for name in files}
    elif root.suffix.lower() == ".zip" and root.is_file():
        paths = {name: zip_path(str(root), name) for name in archives.index(str(root))}
    else:
        return None
    names = sorted(name for name in paths if is_image_name(name))
    parents = {name.rpartition("/")[0] for name in names}
    if not names or (not every and (len(parents) > 1 or parents.pop().rpartition("/")[2] in classes)):
        return None
    refuse(_not_utf8(names, str(root)))
    images = path_images([os.path.abspath(paths[name]) if root.is_dir() else paths[name] for name in names])
    return Samples(names, np.full(len(names), -1, np.int64), [], images)


def _walk(root: str) -> tuple[list[str], set[str]]:
    """Every file and folder below root, relative, with "/"; links are followed, but not in circles."""
    files: list[str] = []
    folders: set[str] = set()
    waiting, seen = [""], set()
    while waiting:
        prefix = waiting.pop()
        here = os.path.join(root, prefix)
        state = os.stat(here)
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        try:
            entries = list(os.scandir(here))
        except OSError as error:
            raise DataError(f"{here}: cannot be read: {error.strerror}.") from None
        for entry in entries:
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            if archives.is_clutter(entry.name):
                continue
            if entry.is_dir():
                folders.add(name)
                waiting.append(name)
            else:
                files.append(name)
    return files, folders


def _arrange(files: list[str], folders: set[str], root: str, locate: Callable[[str], str]) -> Samples:
    """Sort files into classes and splits by their first folders; `locate` makes an image reference."""
    names = [name for name in files if is_image_name(name)]
    refuse(_not_utf8(names, root))
    if not names:
        raise DataError(f"{root}: holds no images{_what_else(files)}; {_LAYOUT}.")
    enclosing = _enclosing(names)
    if enclosing:
        files_below = len(enclosing) + 1
        folders = {name[files_below:] for name in folders if name.startswith(f"{enclosing}/")}
    ids = [name[len(enclosing) + 1 :] for name in names] if enclosing else names
    parts = [name.split("/") for name in ids]
    has_splits = _has_splits(parts, root)
    level = 1 if has_splits else 0
    problems = _stray([name for name, part in zip(ids, parts, strict=True) if len(part) < level + 2], root)
    problems += _empty([part for part in parts if len(part) >= level + 2], folders, level, root)
    refuse(problems)
    labels, classes = encode([part[level] for part in parts])
    return Samples(
        ids=ids,
        labels=labels,
        classes=classes,
        images=path_images([locate(name) for name in names]),
        splits=[SPLITS[part[0].lower()] for part in parts] if has_splits else None,
        folders=["/".join(part[level + 1 : -1]) for part in parts],
    )


def _not_utf8(names: list[str], root: str) -> list[str]:
    odd = [name for name in names if not name.isascii() and any("\udc80" <= letter <= "\udcff" for letter in name)]
    return [f"{root}: the file name {name!a} is not valid UTF-8; rename it." for name in odd]


def _what_else(files: list[str]) -> str:
    endings = sorted({os.path.splitext(name)[1].lower() or "no extension" for name in files})
    tables = [name for name in files if name.endswith((".csv", ".jsonl", ".parquet", ".npz", ".zip"))]
    if tables:
        return f" (but {examples(sorted(tables))}: to use one of these, give its path)"
    return f" (only {', '.join(endings[:5])})" if endings else " and no files"


def _enclosing(names: list[str]) -> str:
    """The folder or folders around the data set that carry no meaning, `a/b`, or nothing."""
    prefix: list[str] = []
    parts = [name.split("/") for name in names]
    while True:
        depth = len(prefix)
        if min(len(part) for part in parts) < depth + 3:
            break
        top = {part[depth] for part in parts}
        if len(top) > 1 or next(iter(top)).lower() in SPLITS:
            break
        prefix.append(top.pop())
    return "/".join(prefix)


def _has_splits(parts: list[list[str]], root: str) -> bool:
    tops = {part[0] for part in parts if len(part) > 1}
    nested = {part[0] for part in parts if len(part) > 2 and part[0].lower() in SPLITS}
    others = sorted(top for top in tops if top.lower() not in SPLITS)
    if nested and others:
        raise DataError(
            f"{root}: {examples(sorted(nested))} look like splits with class folders inside, but "
            f"{examples(others)} do not. Keep either splits or classes at the top; {_LAYOUT}."
        )
    if tops and not others and not nested:
        raise DataError(f"{root}: images lie directly in {examples(sorted(tops))}, without class folders; {_LAYOUT}.")
    return bool(nested)


def _stray(names: list[str], root: str) -> list[str]:
    if not names:
        return []
    return [
        f"{root}: {len(names)} images lie outside any class folder ({examples(sorted(names))}); "
        "move them into a class folder or remove them."
    ]


def _empty(parts: list[list[str]], folders: set[str], level: int, root: str) -> list[str]:
    filled = {part[level] for part in parts}
    classes = {name.rsplit("/", 1)[-1] for name in folders if name.count("/") == level}
    return [
        f"{root}: the class folder {name!r} holds no images; fill or remove it." for name in sorted(classes - filled)
    ]
