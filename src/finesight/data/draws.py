"""Random numbers that belong to a sample: a function of (seed, use, sample), not of its batch or process."""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(ids: Sequence[str], count: int, *key: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), [len(ids), count]; the row of a sample depends on its id and `key`, e.g. (seed, epoch).

    SplitMix64 (Steele, Lea & Flood 2014), started at a hash of id and key; 53 bits each.
    """
    salt = ",".join(map(str, key)).encode()
    digests = b"".join(hashlib.blake2b(os.fsencode(name) + b"\0" + salt, digest_size=8).digest() for name in ids)
    state = np.frombuffer(digests, "<u8")[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((state ^ (state >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def normal(ids: Sequence[str], count: int, *key: int) -> NDArray[np.float64]:
    """Standard normal numbers [len(ids), count], by Box and Muller (1958) from `uniform`."""
    even = count + count % 2
    radius, angle = np.split(uniform(ids, even, *key), 2, axis=1)
    length = np.sqrt(-2 * np.log1p(-radius))
    return np.concatenate([length * np.cos(2 * np.pi * angle), length * np.sin(2 * np.pi * angle)], 1)[:, :count]
