"""The same thing photographed twice: shifted, turned by a few degrees, nearer or farther.

Each image is compared with the three that resemble it most. The second of a pair is moved, turned
and scaled onto the first until they fit best (inverse compositional Gauss-Newton, Baker and
Matthews 2004), on thumbnails whose local contrast is evened out, so that a common frame or a strong
outline counts no more than what it surrounds.
"""

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.ndimage import gaussian_filter1d

from finesight.data.similarity import SIDE, Pairs, by_accident
from finesight.progress import Progress

RETAKE = 0.8
"""Least correlation after alignment; sets whose images resemble each other need more."""
MOST_IMAGES = 100_000
"""Larger sets are searched for copies only: the time grows with the square."""

_NEIGHBOURS = 3
_NEAR = 0.5
_MOST_TRIED = 30_000
_SAMPLE = 2000
_BAND = 8
_BLOCK = 2048
_AT_ONCE = 1000
_STEPS = 5
_MORE_STEPS = 20
_PROMISING = 0.5
_FARTHEST = 6
_OVERLAP = 0.6
_CENTRE = (SIDE - 1) / 2
_Y, _X = (axis.ravel().astype(np.float32) - _CENTRE for axis in np.mgrid[:SIDE, :SIDE])


def find(thumbs: np.ndarray, described: np.ndarray, copies: Pairs, *, shown: bool = True) -> Pairs:
    """Pairs of thumbnails (uint8 [N, 32, 32], the same way up) that fit onto each other, `copies` excepted.

    Tries at most the 30,000 most similar pairs of neighbours.
    """
    if len(thumbs) > MOST_IMAGES:
        return _pairs(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.float32)))
    first, second, score, others = _neighbours(described, copies, shown)
    least = max(RETAKE, by_accident(_fits(thumbs, *others, False), max(len(first), 1)))
    tried = np.sort(np.argsort(-score, kind="stable")[:_MOST_TRIED])
    first, second = first[tried], second[tried]
    fit = _fits(thumbs, first, second, shown)
    promising = np.flatnonzero((fit >= _PROMISING) & (fit < 1))
    fit[promising] = _fits(thumbs, first[promising], second[promising], shown, _MORE_STEPS)
    good = fit >= least
    return _pairs(first[good], second[good], fit[good])


def _pairs(first: np.ndarray, second: np.ndarray, fit: np.ndarray) -> Pairs:
    return Pairs(first, second, fit, np.zeros(len(fit), np.uint8), np.ones(len(fit), bool))


def _fits(thumbs: np.ndarray, first: np.ndarray, second: np.ndarray, shown: bool, steps: int = _STEPS) -> np.ndarray:
    fit = np.empty(len(first), np.float32)
    progress = Progress("aligning look-alikes", len(first), "pairs", shown=shown)
    for at in range(0, len(first), _AT_ONCE):
        part = slice(at, at + _AT_ONCE)
        fit[part] = aligned(evened(thumbs[first[part]]), evened(thumbs[second[part]]), steps)
        progress.update(min(at + _AT_ONCE, len(first)))
    progress.close()
    return fit


def _neighbours(
    described: np.ndarray, copies: Pairs, shown: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The three nearest of each row by the lowest frequencies, which a small shift changes least.

    Returns the pairs (first, second), how near they are, and a sample of third neighbours: alike, but
    hardly ever the same, even where every image has a retake.
    """
    low = described[:, :_BAND, :_BAND].reshape(len(described), _BAND**2)
    low = low / np.maximum(np.linalg.norm(low, axis=1, keepdims=True), 1e-6)
    known = _both_ways(copies)
    nearest = np.zeros((len(low), _NEIGHBOURS), np.int64)
    scores = np.full((len(low), _NEIGHBOURS), -1, np.float32)
    progress = Progress("looking for look-alikes", len(low), "images", shown=shown)
    for start in range(0, len(low), _BLOCK):
        product = low[start : start + _BLOCK] @ low.T
        rows = np.arange(len(product))
        product[rows, rows + start] = -1
        begin, end = np.searchsorted(known[0], [start, start + len(product)])
        product[known[0][begin:end] - start, known[1][begin:end]] = -1
        for place in range(_NEIGHBOURS):
            best = product.argmax(axis=1)
            nearest[start + rows, place], scores[start + rows, place] = best, product[rows, best]
            product[rows, best] = -1
        progress.update(start + len(product))
    progress.close()
    row, rank = np.nonzero(scores >= _NEAR)
    ends = np.sort(np.stack([row, nearest[row, rank]], axis=1), axis=1)
    pairs, at = np.unique(ends, axis=0, return_index=True)
    last = np.random.default_rng(0).permutation(np.flatnonzero(scores[:, -1] >= _NEAR))[:_SAMPLE]
    return pairs[:, 0], pairs[:, 1], scores[row, rank][at], (last, nearest[last, -1])


def _both_ways(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Each pair in both orders, sorted by the first row."""
    first = np.concatenate([pairs.first, pairs.second])
    second = np.concatenate([pairs.second, pairs.first])
    order = np.argsort(first, kind="stable")
    return first[order], second[order]


def evened(thumbs: np.ndarray) -> np.ndarray:
    """uint8 [N, 32, 32] -> float32: without what is broader than 2 pixels, by the local contrast."""
    grey = thumbs.astype(np.float32)
    detail = grey - _blurred(grey, 2)
    # 10 grey levels keep the noise of an empty background from counting as contrast.
    return detail / np.sqrt(_blurred(detail**2, 3) + 10.0**2)


def _blurred(grey: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter1d(gaussian_filter1d(grey, sigma, axis=1, mode="nearest"), sigma, axis=2, mode="nearest")


def aligned(fixed: np.ndarray, moving: np.ndarray, steps: int) -> np.ndarray:
    """float32 [N]: the best correlation of each two of [N, 32, 32] while the second is moved onto the first."""
    slopes, inverse = _slopes(fixed)
    flat = fixed.reshape(len(fixed), -1)
    turn, shift = np.ones(len(fixed), np.complex64), _shift(fixed, moving)
    best = np.full(len(fixed), -1, np.float32)
    for step in range(steps):
        moved, inside = _moved(moving, turn, shift)
        one, other = _centred(flat, inside), _centred(moved, inside)
        norms = np.linalg.norm(one, axis=1) + 1e-6, np.linalg.norm(other, axis=1) + 1e-6
        fit = np.einsum("nk,nk->n", one, other) / (norms[0] * norms[1])
        enough = inside.mean(axis=1) >= _OVERLAP
        np.maximum(best, fit, out=best, where=enough)
        if step == steps - 1:
            break
        error = other * (norms[0] / norms[1])[:, None] - one
        change = (inverse @ (slopes @ error[:, :, None]))[:, :, 0]
        # The inverse of a small move of the fixed image, applied before the present one.
        turn = turn / (1 + np.clip(change[:, 0], -0.1, 0.1) + 1j * np.clip(change[:, 1], -0.1, 0.1))
        shift = shift - turn * (np.clip(change[:, 2], -2, 2) + 1j * np.clip(change[:, 3], -2, 2))
    return best


def _shift(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """complex64 [N], x + iy: the shift of whole pixels, at most 6 each way, at which two images fit best."""
    size = SIDE + 2 * _FARTHEST + 4
    product = np.conj(rfft2(fixed, (size, size))) * rfft2(moving, (size, size))
    steps = np.arange(-_FARTHEST, _FARTHEST + 1)
    fits = irfft2(product, (size, size))[:, steps[:, None], steps]
    down, right = np.divmod(fits.reshape(len(fits), -1).argmax(axis=1), len(steps))
    return (steps[right] + 1j * steps[down]).astype(np.complex64)


def _slopes(fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How each pixel changes with scale, angle and shift [N, 4, 1024]; the inverse Gauss-Newton matrix [N, 4, 4]."""
    down, right = (slope.reshape(len(fixed), -1) for slope in np.gradient(fixed, axis=(1, 2)))
    slopes = np.stack([right * _X + down * _Y, down * _X - right * _Y, right, down], axis=1)
    square = slopes @ slopes.swapaxes(1, 2)
    damping = 2.5e-4 * np.trace(square, axis1=1, axis2=2) + 1e-6
    return slopes, np.linalg.inv(square + damping[:, None, None] * np.eye(4, dtype=np.float32))


def _moved(images: np.ndarray, turn: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images sampled where each pixel lands, bilinear, float32 [N, 1024]; and which pixels landed inside."""
    place = turn[:, None] * (_X + 1j * _Y).astype(np.complex64) + shift[:, None]
    x, y = place.real + np.float32(_CENTRE), place.imag + np.float32(_CENTRE)
    inside = ((x >= 0) & (x <= SIDE - 1) & (y >= 0) & (y <= SIDE - 1)).astype(np.float32)
    x, y = np.clip(x, 0, SIDE - 1.001), np.clip(y, 0, SIDE - 1.001)
    left, top = x.astype(np.int32), y.astype(np.int32)
    x, y = x - left, y - top
    pixels = images.reshape(-1)
    at = np.arange(len(images), dtype=np.int32)[:, None] * SIDE**2 + top * SIDE + left
    upper = pixels[at] * (1 - x) + pixels[at + 1] * x
    lower = pixels[at + SIDE] * (1 - x) + pixels[at + SIDE + 1] * x
    return upper * (1 - y) + lower * y, inside


def _centred(pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    mean = (pixels * inside).sum(axis=1, keepdims=True) / np.maximum(inside.sum(axis=1, keepdims=True), 1)
    return (pixels - mean) * inside
