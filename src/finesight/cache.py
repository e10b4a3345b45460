"""Never compute the frozen part twice: decoded images and frozen features, on disk, memory-mapped.

An entry is `KEY.npy` (the array) beside `KEY.json` (what made it). The key covers everything the
array depends on: file hashes, size and fit for images; weights, precision and the images' key for
features. An entry appears by rename, so it is complete or absent.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import __version__ as pillow
from torch import Tensor

from finesight.data import images
from finesight.errors import DataError
from finesight.files import human_bytes, read_json, replacing, write_json
from finesight.progress import Progress

IN_MEMORY = 4 << 30  # bytes: a smaller array is read whole, a larger one stays on disk
Say = Callable[[str], None]


def folder(chosen: str | None) -> Path:
    """The cache folder: the one chosen, else $FINESIGHT_CACHE, else ~/.cache/finesight."""
    return Path(chosen or os.environ.get("FINESIGHT_CACHE") or Path.home() / ".cache" / "finesight").expanduser()


class NoRoom(DataError):
    """The disk has no room for a cache; `cause` says so without the remedies."""

    def __init__(self, problem: str, cause: str = "") -> None:
        super().__init__(problem)
        self.cause = cause


def key_of(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def stored(
    directory: Path,
    key: str,
    shape: tuple[int, ...],
    dtype: Any,
    fill: Callable[[NDArray[Any]], dict[str, Any]],
    what: str,
    say: Say,
) -> tuple[NDArray[Any], dict[str, Any]]:
    """The array of `key`, built by `fill(array) -> facts` when it is not there yet.

    `fill` writes into a memory-mapped array of the given shape; its facts (JSON) are kept beside it.
    The size is said before anything is written; a disk without room is a `NoRoom`, which is a `DataError`.
    """
    path, facts_path = directory / f"{key}.npy", directory / f"{key}.json"
    found = _open(path, shape, dtype)
    if found is not None and facts_path.is_file():
        return found, read_json(facts_path)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise DataError(
            f"{directory}: the cache cannot be written: {error.strerror}. Choose another with --data.cache_dir."
        ) from None
    if size > free * 0.9:
        cause = f"{directory}: {what} need {human_bytes(size)}, {human_bytes(free)} are free."
        raise NoRoom(
            f"{cause} Make room, choose another folder with --data.cache_dir, or lower --model.image_size or "
            "--data.limit_train.",
            cause,
        )
    say(f"Caching {what}: {human_bytes(size)} in {directory}")
    remove_old_leftovers(directory)
    with replacing(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        facts = fill(array)
        array.flush()
        del array
    write_json(facts_path, facts)
    opened = _open(path, shape, dtype)
    assert opened is not None
    return opened, facts


def remove_old_leftovers(directory: Path) -> None:
    """Delete half-built arrays of processes that are gone."""
    for leftover in directory.glob(".tmp-*"):
        process = leftover.name.split("-")[1]
        if process.isdigit() and not Path(f"/proc/{process}").exists() and Path("/proc").exists():
            leftover.unlink(missing_ok=True)


def as_tensor(array: NDArray[Any]) -> Tensor:
    """The array as a tensor: read into memory when small, else a read-only view of the file."""
    if array.nbytes <= IN_MEMORY:
        return torch.from_numpy(np.array(array))
    # Copy-on-write: torch wants a writable array, and the file must never change.
    return torch.from_numpy(np.lib.format.open_memmap(array.filename, mode="c"))  # type: ignore[attr-defined]


def pixels(
    dataset: Any,
    hashes: list[str],
    directory: Path,
    size: int,
    fit: Any,
    sixteen_bit: Any,
    say: Say,
) -> tuple[Tensor, list[tuple[int, str]]]:
    """Every image of a `datasets.Dataset`, decoded once.

    Returns uint8 [N, 3, size, size] and the faults: (row, reason) of what could not be read. The pixels
    of such a row are zero and must be left out; `refuse` decides whether that is allowed.
    """
    from datasets import Image

    entries = dataset.select_columns(["id", "image"]).cast_column("image", Image(decode=False))
    key = key_of("pixels-1", pillow, *hashes, str(size), fit, sixteen_bit)

    def fill(array: NDArray[np.uint8]) -> dict[str, Any]:
        progress = Progress("decoding", len(entries), "images")

        def work(start: int) -> list[tuple[int, str]]:
            chunk, faults = entries[start : start + 64], []
            for offset, (name, entry) in enumerate(zip(chunk["id"], chunk["image"], strict=True)):
                try:
                    array[start + offset] = images.decode_resized(entry, name, size, fit, sixteen_bit)
                except images.BadImage as error:
                    faults.append((start + offset, str(error)))
            return faults

        faults = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for number, found in enumerate(pool.map(work, range(0, len(entries), 64))):
                faults += found
                progress.update(min(64 * (number + 1), len(entries)))
        progress.close()
        return {"bad": faults}

    shape = (len(entries), 3, size, size)
    array, facts = stored(directory, key, shape, np.uint8, fill, f"{len(entries):,} decoded images", say)
    return as_tensor(array), [(row, reason) for row, reason in facts["bad"]]


def features(
    key: str,
    batches: Iterable[Any],
    rows: int,
    width: int,
    compute: Callable[[Any], Tensor],
    directory: Path,
    what: str,
    say: Say,
) -> Tensor:
    """The outputs of a frozen model for every sample, float32 [rows, width], computed once.

    `batches` yields the inputs in order; `compute` maps one to float32 [B, width].
    """

    def fill(array: NDArray[np.float32]) -> dict[str, Any]:
        progress, done = Progress(what, rows, "images"), 0
        for batch in batches:
            block = compute(batch).float().cpu().numpy()
            array[done : done + len(block)] = block
            done += len(block)
            progress.update(done)
        progress.close()
        return {"rows": done}

    array, _ = stored(directory, key, (rows, width), np.float32, fill, what, say)
    return as_tensor(array)


def refuse(faults: list[tuple[int, str]], allowed: int) -> None:
    """Raise one `DataError` naming the unreadable images when there are more than `allowed`."""
    if len(faults) > allowed:
        shown = [reason for _, reason in faults[:20]]
        more = f"... and {len(faults) - 20} more." if len(faults) > 20 else ""
        remedy = (
            f"{len(faults)} unreadable images; {allowed} are allowed. Mend or remove them, "
            f"or pass --data.skip_bad {len(faults)}."
        )
        raise DataError(*shown, *([more] if more else []), remedy)


def _open(path: Path, shape: tuple[int, ...], dtype: Any) -> NDArray[Any] | None:
    """The stored array, or None when it is absent or not what was asked for."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError):
        return None
    return array if array.shape == shape and array.dtype == dtype else None
