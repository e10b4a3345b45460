"""Zip archives read in place: checked whole before the first byte is used, then random access.

An index (member -> offset, sizes, checksum) is kept per process and survives a fork; the open file
belongs to one process, so loader workers never share a file position.
"""

import functools
import os
import re
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from finesight.data.problems import refuse
from finesight.errors import DataError

MOST_ENTRIES = 1_000_000
MOST_RATIO = 100
NESTED = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
_REMEDY = "Make the archive anew from a plain folder, or unpack it where you trust it and give the folder"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_EXTRA_GUESS = 64


class Member(NamedTuple):
    """Where one file lies in the archive, in bytes."""

    offset: int
    compressed: int
    size: int
    crc: int
    method: int


class _Version(NamedTuple):
    """One state of an archive: a replaced file is another key in the caches below."""

    path: str
    size: int
    modified: int


def is_clutter(name: str) -> bool:
    """Whether a path is what an operating system left behind: `__MACOSX/`, hidden files, `Thumbs.db`."""
    parts = name.split("/")
    return parts[-1] in ("Thumbs.db", "desktop.ini") or any(
        part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in parts
    )


def index(path: str) -> dict[str, Member]:
    """Every file of the archive by its name, without directories and clutter.

    Raises `DataError` naming archive and members if the archive is damaged, or if any member is
    absolute, climbs out, is a link, stands twice, is encrypted, is itself an archive, or explodes.
    """
    return _index(_version(path))


def read(path: str, name: str) -> bytes:
    """The bytes of one member, verified against its checksum. Raises `DataError`."""
    version = _version(path)
    member = _index(version).get(name)
    if member is None:
        raise DataError(f"{path}: holds no member {name!r}. Was the archive replaced? Load the data anew.")
    handle, lock = _handle((version, os.getpid()))
    try:
        with lock:
            raw = _raw(handle, member, len(name.encode()))
        return _decompress(raw, member)
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{path}: member {name!r} is damaged ({error}). Copy the archive anew.") from None


def _version(path: str) -> _Version:
    try:
        state = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    return _Version(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _index(version: _Version) -> dict[str, Member]:
    path = version.path
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise DataError(f"{path}: not a readable zip archive ({error}). Copy or download it anew.") from None
    if len(entries) > MOST_ENTRIES:
        raise DataError(
            f"{path}: {len(entries):,} entries, more than {MOST_ENTRIES:,} are refused. "
            "Split the archive, or unpack it and give the folder."
        )
    refuse([f"{path}: {problem}. {_REMEDY}." for problem in _problems(entries, version.size)])
    return {
        entry.filename: Member(
            entry.header_offset, entry.compress_size, entry.file_size, entry.CRC, entry.compress_type
        )
        for entry in entries
        if not entry.is_dir() and not is_clutter(entry.filename)
    }


def _problems(entries: list[zipfile.ZipInfo], archive_size: int) -> Iterator[str]:
    total = sum(entry.file_size for entry in entries)
    if total > MOST_RATIO * archive_size:
        yield f"unpacks to {total:,} bytes, more than {MOST_RATIO} times its size of {archive_size:,}"
    seen: set[str] = set()
    for entry in entries:
        name = entry.orig_filename
        key = name if "/." not in name and "//" not in name else os.path.normpath(name)
        if key in seen:
            yield f"member {name!r} stands twice"
        seen.add(key)
        cause = _unsafe_name(name) or _unsafe_content(entry)
        if cause:
            yield f"member {name!r} {cause}"


def _unsafe_name(name: str) -> str | None:
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "has an absolute path"
    if "\\" in name:
        return "has a backslash in its path"
    if ".." in name and ".." in name.split("/"):
        return "climbs out of the archive with '..'"
    if "\0" in name:
        return "has a null byte in its name"
    return None


def _unsafe_content(entry: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link" if kind == stat.S_IFLNK else "is a special file"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.file_size > MOST_RATIO * max(entry.compress_size, 1):
        return f"unpacks to {entry.file_size:,} bytes, more than {MOST_RATIO} times its packed size"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {entry.compress_type}; only stored and deflate are read"
    if entry.filename.lower().endswith(NESTED) and not is_clutter(entry.filename):
        return "is itself an archive, where images are expected"
    return None


@functools.lru_cache(maxsize=16)
def _handle(owner: tuple[_Version, int]) -> tuple[BinaryIO, threading.Lock]:
    """The open file of one process, given as (version, process id): after a fork it is opened anew."""
    return open(owner[0].path, "rb", buffering=0), threading.Lock()


def _raw(handle: BinaryIO, member: Member, name_length: int) -> bytes:
    # The local header repeats the name and has its own extra field, whose length only it knows; one
    # read with some slack nearly always gets both header and data.
    handle.seek(member.offset)
    block = handle.read(_LOCAL_HEADER.size + name_length + _EXTRA_GUESS + member.compressed)
    signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(block)
    if signature != b"PK\x03\x04":
        raise ValueError("its header is missing")
    start = _LOCAL_HEADER.size + name_bytes + extra_bytes
    if start + member.compressed > len(block):
        handle.seek(member.offset + start)
        block, start = handle.read(member.compressed), 0
    return block[start : start + member.compressed]


def _decompress(raw: bytes, member: Member) -> bytes:
    if member.method == zipfile.ZIP_STORED:
        data = raw
    else:
        # Bounded by the size that was checked: a member that lies about it cannot explode here.
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, member.size + 1)
    if len(data) != member.size:
        raise ValueError(f"{len(data):,} bytes where {member.size:,} were promised")
    if zlib.crc32(data) != member.crc:
        raise ValueError("its checksum is wrong")
    return data
