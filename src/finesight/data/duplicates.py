"""Find images that are the same: byte for byte, or to the eye, even when mirrored or turned."""

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
from PIL import Image

from finesight.data import images
from finesight.errors import DataError
from finesight.progress import Progress

SIDE = 32
SIMILAR = 0.97
"""Correlation of two 32x32 thumbnails from which on they show the same image."""
FLATTEST = 4.0
"""Standard deviation in grey levels below which a thumbnail says too little to be compared."""
TURNS = (
    "same way up", "flipped left-right", "flipped top-bottom", "turned by 180°",
    "transposed", "turned by 90°", "turned by 270°", "transversed",
)  # fmt: skip

_BAND = 8
_BLOCK = 2048
_CONFIRMED_AT_ONCE = 8192
_MOST_PAIRS = 200_000
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_CHUNK = 64


@dataclass
class Scan:
    """What one pass over all images finds; rows in `faults` could not be read and are zero elsewhere."""

    thumbs: np.ndarray  # uint8 [N, 32, 32], grey
    hashes: list[str]  # of the encoded bytes; "" where they could not be read
    sizes: np.ndarray  # int64 [N, 2], width and height as stored
    kinds: list[str]  # "JPEG RGB": format and Pillow's mode
    faults: dict[int, str] = field(default_factory=dict)  # row -> reason


@dataclass
class Pairs:
    """Rows that show the same image, `first[i] < second[i]`, ascending."""

    first: np.ndarray  # int64 [P]
    second: np.ndarray  # int64 [P]
    similarity: np.ndarray  # float32 [P], correlation in [SIMILAR, 1]
    turn: np.ndarray  # uint8 [P], index into TURNS: how the second one lies to the first


def scan(dataset: datasets.Dataset, sixteen_bit: images.SixteenBit = "full", *, shown: bool = True) -> Scan:
    """Read and decode every image once. Unreadable ones become faults, never an error."""
    entries = dataset.select_columns(["id", "image"]).cast_column("image", datasets.Image(decode=False))
    count = len(entries)
    found = Scan(np.zeros((count, SIDE, SIDE), np.uint8), [""] * count, np.zeros((count, 2), np.int64), [""] * count)
    progress = Progress("looking at images", count, "images", shown=shown)

    def work(start: int) -> None:
        chunk = entries[start : start + _CHUNK]
        for offset, (name, entry) in enumerate(zip(chunk["id"], chunk["image"], strict=True)):
            _look(found, start + offset, name, entry, sixteen_bit)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, _ in enumerate(pool.map(work, range(0, count, _CHUNK))):
            progress.update(min(_CHUNK * (number + 1), count))
    progress.close()
    return found


def _look(found: Scan, row: int, name: str, entry: Mapping[str, Any], sixteen_bit: images.SixteenBit) -> None:
    try:
        data = images.read(entry)
        found.hashes[row] = hashlib.blake2b(data, digest_size=16).hexdigest()
        thumb = images.decode_resized({"bytes": data, "path": None}, name, SIDE, "squash", sixteen_bit)
        with Image.open(io.BytesIO(data)) as image:
            found.sizes[row] = image.size
            found.kinds[row] = f"{image.format} {image.mode}"
    except DataError as error:
        found.faults[row] = str(error)
        return
    found.thumbs[row] = np.rint(np.tensordot(_LUMA, thumb.astype(np.float32), 1))


def exact_duplicates(hashes: list[str]) -> list[list[int]]:
    """Rows with equal bytes, as lists of two or more ascending rows, in the order of their first row.

    `hashes` as of `Scan`; an empty hash (unreadable) equals nothing.
    """
    rows: dict[str, list[int]] = {}
    for row, content in enumerate(hashes):
        if content:
            rows.setdefault(content, []).append(row)
    return [same for same in rows.values() if len(same) > 1]


def near_duplicate_groups(dataset: datasets.Dataset, sixteen_bit: images.SixteenBit = "full") -> list[int]:
    """A cluster number per row: equal for images that are the same by bytes or by `near_duplicate_pairs`.

    Unreadable images are clusters of their own.
    """
    found = scan(dataset, sixteen_bit)
    return clusters(found, near_duplicate_pairs(found.thumbs)).tolist()


def clusters(found: Scan, pairs: Pairs) -> np.ndarray:
    """int32 [N]: connected components of near pairs and equal bytes."""
    first, second = [pairs.first], [pairs.second]
    for same in exact_duplicates(found.hashes):
        first.append(np.full(len(same) - 1, same[0]))
        second.append(np.array(same[1:]))
    return _connected(len(found.hashes), np.concatenate(first), np.concatenate(second))


def _connected(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(first), np.int8), (first, second)), (count, count))
    return connected_components(graph, directed=False)[1]


def near_duplicate_pairs(thumbs: np.ndarray, *, shown: bool = True) -> Pairs:
    """Pairs of thumbnails (uint8 [N, 32, 32]) that correlate above `SIMILAR` in one of 8 orientations.

    The search is exhaustive and exact: low DCT frequencies and the norm of the rest bound the
    correlation from above (Cauchy-Schwarz), blocks of them are multiplied, and what passes the bound
    is compared in full. Thumbnails flatter than `FLATTEST` are the same only if equal in every
    pixel. Beyond 200,000 pairs, those that would join nothing new are left out.
    """
    count = len(thumbs)
    kept = [_flat_pairs(thumbs)]
    rows = np.flatnonzero(thumbs.reshape(count, -1).std(axis=1) >= FLATTEST)
    spectrum = _spectrum(thumbs[rows])
    coarse = _coarse(spectrum)
    progress = Progress("comparing images", len(rows), "images", shown=shown)
    total, joined = 0, np.arange(len(rows))
    for start in range(0, len(rows), _BLOCK):
        for pairs in _block(spectrum, coarse, start, joined if total > _MOST_PAIRS else None):
            total += len(pairs.first)
            kept.append(Pairs(rows[pairs.first], rows[pairs.second], pairs.similarity, pairs.turn))
        progress.update(min(start + _BLOCK, len(rows)))
    progress.close()
    return _sorted(kept)


def _flat_pairs(thumbs: np.ndarray) -> Pairs:
    """Flat thumbnails that are equal in every pixel; each is paired with the first of its kind."""
    flat = np.flatnonzero(thumbs.reshape(len(thumbs), -1).std(axis=1) < FLATTEST)
    alike = exact_duplicates([thumbs[row].tobytes().hex() for row in flat])
    links = [(flat[same[0]], flat[other]) for same in alike for other in same[1:]]
    ends = np.array(links, np.int64).reshape(-1, 2)
    return Pairs(ends[:, 0], ends[:, 1], np.ones(len(ends), np.float32), np.zeros(len(ends), np.uint8))


def _spectrum(thumbs: np.ndarray) -> np.ndarray:
    """float32 [N, 32, 32]: orthonormal DCT of the standardised thumbnails, each of norm 1, without mean."""
    from scipy.fft import dctn

    made = np.empty((len(thumbs), SIDE, SIDE), np.float32)
    for start in range(0, len(thumbs), _BLOCK):
        part = dctn(thumbs[start : start + _BLOCK].astype(np.float32), axes=(1, 2), norm="ortho")
        part[:, 0, 0] = 0
        made[start : start + _BLOCK] = part / np.linalg.norm(part, axis=(1, 2), keepdims=True)
    return made


def _turned(spectrum: np.ndarray, turn: int) -> np.ndarray:
    """The spectrum (float32 [..., S, S]) of the mirrored or turned image: signs change, axes swap."""
    side = spectrum.shape[-1]
    sign = np.where(np.arange(side) % 2, np.float32(-1), np.float32(1))
    if turn & 4:
        spectrum = spectrum.swapaxes(-1, -2)
    if turn & 1:
        spectrum = spectrum * sign
    return spectrum * sign[:, None] if turn & 2 else spectrum


def _coarse(spectrum: np.ndarray) -> np.ndarray:
    """float32 [8, N, 65]: low frequencies of each orientation, and the norm of all others.

    The product of two such rows is never below the correlation of the two images.
    """
    low = spectrum[:, :_BAND, :_BAND]
    rest = np.sqrt(np.clip(1 - (low**2).sum(axis=(1, 2)), 0, None))[:, None]
    return np.stack([np.hstack([_turned(low, turn).reshape(len(low), -1), rest]) for turn in range(len(TURNS))])


def _block(spectrum: np.ndarray, coarse: np.ndarray, start: int, joined: np.ndarray | None) -> Iterator[Pairs]:
    """Pairs whose first row lies in one block; with `joined`, only such as join two clusters (updated)."""
    part = coarse[0, start : start + _BLOCK]
    for other in range(start, len(spectrum), _BLOCK):
        for turn in range(len(TURNS)):
            bound = part @ coarse[turn, other : other + _BLOCK].T
            if bound.max() < SIMILAR:
                continue
            first, second = np.nonzero(bound >= SIMILAR)
            first, second = first + start, second + other
            later = second > first
            yield from _confirmed(spectrum, first[later], second[later], turn, joined)


def _confirmed(
    spectrum: np.ndarray, first: np.ndarray, second: np.ndarray, turn: int, joined: np.ndarray | None
) -> Iterator[Pairs]:
    for start in range(0, len(first), _CONFIRMED_AT_ONCE):
        one, two = first[start : start + _CONFIRMED_AT_ONCE], second[start : start + _CONFIRMED_AT_ONCE]
        if joined is not None:
            apart = joined[one] != joined[two]
            one, two = one[apart], two[apart]
        similarity = np.einsum("nij,nij->n", spectrum[one], _turned(spectrum[two], turn))
        good = similarity >= SIMILAR
        if not good.any():
            continue
        if joined is not None:
            linked = _connected(len(joined), joined[one[good]], joined[two[good]])
            joined[:] = linked[joined]
        yield Pairs(
            one[good],
            two[good],
            np.minimum(similarity[good], 1).astype(np.float32),
            np.full(good.sum(), turn, np.uint8),
        )


def _sorted(parts: list[Pairs]) -> Pairs:
    """All pairs by their rows; of a pair found in several orientations the most similar one."""
    first = np.concatenate([part.first for part in parts])
    second = np.concatenate([part.second for part in parts])
    similarity = np.concatenate([part.similarity for part in parts])
    turn = np.concatenate([part.turn for part in parts])
    order = np.lexsort((turn, -similarity.round(4), second, first))
    ends = np.stack([first[order], second[order]])
    new = np.ones(len(order), bool)
    new[1:] = (ends[:, 1:] != ends[:, :-1]).any(axis=0)
    order = order[new]
    return Pairs(first[order], second[order], similarity[order], turn[order])
