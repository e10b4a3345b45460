"""Hashes of image contents and of whole data sets: cache keys, and proof of what a run has seen."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets

from finesight.data.images import split_zip_path
from finesight.errors import DataError
from finesight.files import replacing

_BYTES = 16
_BLOCK = 1 << 20
_BLOCK_ROWS = 4096
_MEMO = "file_hashes.json"
_MOST_MEMOS = 1_000_000
# A file changed again within the clock's tick would keep its time stamp: too young ones are not remembered.
_SETTLED_SECONDS = 2.0


def content_hashes(dataset: datasets.Dataset, cache_dir: str | Path | None = None) -> list[str]:
    """One hash (32 hex digits, BLAKE2b) per image, in row order.

    Of a file or of bytes: the hash of the encoded bytes, so equal files have equal hashes. Of a zip
    member: of the archive's hash and the member's name. Hashes of files are remembered by path, size and
    time of change in `cache_dir` (default $FINESIGHT_CACHE, else ~/.cache/finesight); without a writable
    folder they are computed anew. Raises `DataError` for files that cannot be read.
    """
    entries = dataset.select_columns(["image"]).with_format("arrow")
    rows: list[tuple[str | None, tuple[str, ...]]] = []
    for start in range(0, len(entries), _BLOCK_ROWS):
        for chunk in entries[start : start + _BLOCK_ROWS]["image"].chunks:
            paths = chunk.field("path").to_pylist()
            for data, path in zip(chunk.field("bytes"), paths, strict=True):
                content = _hash(data.as_buffer()) if data.is_valid else None
                rows.append((content, split_zip_path(path) or (path,)))
    folder = cache_dir or os.environ.get("FINESIGHT_CACHE") or Path.home() / ".cache" / "finesight"
    of_file = _Memo(Path(folder).expanduser()).hashes({place[0] for content, place in rows if not content})
    return [
        content or (_hash(f"{of_file[place[0]]}\0{place[1]}".encode()) if place[1:] else of_file[place[0]])
        for content, place in rows
    ]


def fingerprint(dataset: datasets.Dataset | datasets.DatasetDict, cache_dir: str | Path | None = None) -> str:
    """32 hex digits over split names, class names, ids, labels, captions (if any) and contents, in row order.

    It does not depend on where the files lie, and changes with any byte of any image.
    Raises `DataError`.
    """
    parts = dataset if isinstance(dataset, dict) else {"": dataset}
    total = hashlib.blake2b(digest_size=_BYTES)
    for name, part in parts.items():
        names = [column for column in ("id", "label", "caption", "captions") if column in part.column_names]
        columns = part.select_columns(names).with_format("arrow")[:]
        rows = zip(*(columns[column].to_pylist() for column in names), content_hashes(part, cache_dir), strict=True)
        # JSON, so that no choice of names can look like another list of rows.
        total.update(json.dumps([name, part.features["label"].names, list(rows)]).encode())
    return total.hexdigest()


def _hash(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=_BYTES).hexdigest()


def _hash_file(path: str) -> str:
    state = hashlib.blake2b(digest_size=_BYTES)
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                state.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    return state.hexdigest()


def _marks(state: os.stat_result) -> list[str]:
    """What changes when a file is rewritten or replaced, even by a tool that keeps the modification time."""
    return [str(value) for value in (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)]


class _Memo:
    """Remembers hashes of files. Processes may share the folder: each replaces the file whole, and an
    entry that another one overwrote is only computed again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / _MEMO

    def hashes(self, paths: Iterable[str]) -> dict[str, str]:
        wanted = sorted(paths)
        if not wanted:
            return {}
        known = self._read()
        states = {path: os.stat(path) if os.path.exists(path) else None for path in wanted}
        found = {}
        for path, state in states.items():
            *remembered, content = str(known.get(path)).split(" ")
            if state is not None and remembered == _marks(state):
                found[path] = content
        missing = [path for path in wanted if path not in found]
        with ThreadPoolExecutor(4) as pool:
            found.update(zip(missing, pool.map(_hash_file, missing), strict=True))
        self._add(
            {
                path: " ".join([*_marks(state), found[path]])
                for path in missing
                if (state := states[path]) and time.time() - state.st_mtime > _SETTLED_SECONDS
            }
        )
        return found

    def _read(self) -> dict[str, str]:
        try:
            content = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _add(self, entries: dict[str, str]) -> None:
        if not entries:
            return
        content = self._read() | entries
        if len(content) > _MOST_MEMOS:
            content = entries
        with contextlib.suppress(OSError):  # read-only or full: the memo is a convenience
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(content), encoding="utf-8")
