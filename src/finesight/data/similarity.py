"""How alike two small grey pictures are, and how alike they would be by accident.

A picture is described by the low frequencies of its 32x32 thumbnail, each weighted by its frequency:
natural images have amplitudes that fall as 1/f, so that plain correlation sees little but a bright
and a dark half. Brightness and contrast drop out; a mirrored or turned picture has the same
coefficients with other signs and swapped axes (the cosine transform of a reversed row changes the
sign of its odd terms), so all 8 orientations are compared without touching pixels again.
"""

from dataclasses import dataclass

import numpy as np
from scipy.fft import dctn
from scipy.special import ndtri

SIDE = 32
BAND = 12
"""Frequencies 0..11 of each axis: detail down to 3 pixels of the thumbnail, which JPEG keeps."""
FLATTEST = 4.0
"""Standard deviation in grey levels below which a thumbnail says too little to be compared."""
TURNS = (
    "same way up", "flipped left-right", "flipped top-bottom", "turned by 180°",
    "transposed", "turned by 270°", "turned by 90°", "transversed",
)  # fmt: skip
OTHER_WAY = np.array([0, 1, 2, 3, 4, 6, 5, 7], np.uint8)
"""How the first lies to the second, by how the second lies to the first."""
ACCIDENTS = 0.01
"""How many pairs may be expected to pass a threshold by accident, in the whole set."""

_BLOCK = 4096
_FREQUENCY = np.hypot(*np.mgrid[:BAND, :BAND]).astype(np.float32)
_UPPER = np.triu_indices(BAND, 1)


@dataclass
class Pairs:
    """Rows that show the same, `first[i] < second[i]`, ascending."""

    first: np.ndarray  # int64 [P]
    second: np.ndarray  # int64 [P]
    similarity: np.ndarray  # float32 [P], correlation in (0, 1]
    turn: np.ndarray  # uint8 [P], index into TURNS: how the second one lies to the first (clockwise)
    retake: np.ndarray  # bool [P]: found by alignment (`retakes`); not a copy, but a second photograph


def flat(thumbs: np.ndarray) -> np.ndarray:
    """bool [N]: too little contrast to be compared (blank, or nearly)."""
    return thumbs.reshape(len(thumbs), thumbs.shape[1] * thumbs.shape[2]).std(axis=1) < FLATTEST


def describe(thumbs: np.ndarray) -> np.ndarray:
    """uint8 [N, 32, 32] -> float32 [N, 12, 12], norm 1: frequency-weighted cosine coefficients."""
    made = np.empty((len(thumbs), BAND, BAND), np.float32)
    for start in range(0, len(thumbs), _BLOCK):
        part = dctn(thumbs[start : start + _BLOCK].astype(np.float32), axes=(1, 2), norm="ortho")
        part = part[:, :BAND, :BAND] * _FREQUENCY
        made[start : start + _BLOCK] = part / np.maximum(np.linalg.norm(part, axis=(1, 2), keepdims=True), 1e-6)
    return made


def invariants(described: np.ndarray) -> np.ndarray:
    """float32 [N, 144]: the same for all 8 orientations, and never less alike than the pictures.

    Absolute values, and of each two coefficients that a transposition swaps the larger one first.
    Neither step moves two descriptions apart, so the product of two rows bounds the correlation of
    the best orientation from above, and no pair above a threshold is missed below it.
    """
    size = np.abs(described)
    one, other = size[:, _UPPER[0], _UPPER[1]], size[:, _UPPER[1], _UPPER[0]]
    return np.hstack([np.maximum(one, other), np.minimum(one, other), np.einsum("nii->ni", size)])


def orientations(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Correlations float32 [N, 8] of descriptions row by row, `two` turned in each way of `TURNS`."""
    straight = (one * two).reshape(len(one), BAND**2) @ _PARITY
    swapped = (one * two.swapaxes(1, 2)).reshape(len(one), BAND**2) @ _PARITY
    return np.hstack([straight @ _SIGNS, swapped @ _SIGNS])


def by_accident(scores: np.ndarray, tests: int) -> float:
    """The score that `ACCIDENTS` of `tests` pairs reach by accident, where `scores` are of unrelated pairs.

    Correlations are made normal by Fisher's transformation; median and 90th percentile give the
    curve, so that a minority of true pairs among the scores does not move it. An a-contrario test
    in the sense of Desolneux, Moisan and Morel (2000).
    """
    if len(scores) < 2:
        return 0.0
    middle, high = np.quantile(np.arctanh(np.clip(scores, -0.9999, 0.9999)), [0.5, 0.9])
    spread = (high - middle) / ndtri(0.9)
    return float(np.tanh(middle - ndtri(min(0.5, ACCIDENTS / tests)) * spread))


def _parity() -> np.ndarray:
    """float32 [144, 4]: which coefficients have odd or even row and column numbers."""
    row, column = np.mgrid[:BAND, :BAND] % 2
    return np.eye(4, dtype=np.float32)[(2 * row + column).ravel()]


def _signs() -> np.ndarray:
    """float32 [4, 4]: the sign of each parity under no flip, left-right, top-bottom, both."""
    parity, turn = np.mgrid[:4, :4]
    odd = (turn & 1) * (parity & 1) + (turn >> 1) * (parity >> 1)
    return np.where(odd % 2, np.float32(-1), np.float32(1))


_PARITY, _SIGNS = _parity(), _signs()
