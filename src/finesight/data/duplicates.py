"""Find images that are the same: byte for byte, or to the eye.

Two kinds of near duplicates are found. *Copies* (`copies`): re-encoded, resized, brighter or of other
contrast, in any of the 8 mirrored and turned orientations. *Retakes* (`retakes`): the same thing
photographed twice, or a shifted, slightly turned or cropped copy, the same way up. What similarity
makes a pair is decided from the set itself, within stated floors, so that sets of simple pictures
that all resemble each other (digits, X-rays) are not reported whole.

Measured with `finesight data check` and by looking at the pairs:

- Every one of 200 images each of tomato leaves, BSDS500, Kvasir, chest X-rays and CIFAR-10 was found again as JPEG of
  quality 75, 50 and 30, at 0.8 times the size, 20 % brighter or darker, and mirrored; cropped by 3 % on each side, or
  shifted by 3 %, 89 to 100 %; turned by 3 degrees 89 to 100 %.
- Tomato leaves of PlantVillage (1,000): all 86 pairs of an original, its `_180deg` and its `_flipTB`; the 9 brightened
  copies (`_newPixel25`) beside their 9 originals; 8 pairs of leaves photographed twice, 2 of them on both sides of the
  given split. 113 pairs, none false. Not found: copies turned by 30 degrees (`_new30degFlipLR`), and some ten second
  photographs that fit less well than 0.8.
- CIFAR-10 as JPEG (60,000): 265 copies, of 100 looked at below 0.975 none false; 1,422 retakes, of 100 looked at below
  0.9 two or three false (aircraft of one type); 3.7 % of the test images have a near duplicate in train (Barz and
  Denzler 2020 found 3.3 % by other means). Below 0.8 one retake in five would be false.
- Kvasir polyps (900): 4 copies; chest X-rays (285): 6 copies, 3 retakes of one patient; BSDS500 (200): none; no pair
  false. USPS (9,298), MNIST (70,000), scikit-learn's digits (1,797): 1, 1 and 2 pairs, upright strokes.

The search takes about 40 s of processor time for the 60,000 images of CIFAR-10, and grows with the square.

Limits. Of copies cropped by 5 % on each side 84 to 98 % were found, by 8 % a third, by 12 % none; turned by 5 degrees
59 to 99 %, by 12 degrees few; with a white box over an eighth of the picture half. Mirrored second photographs and
inverted brightness go unnoticed, images that are nearly blank are not compared, and simple shapes among photographs
(masks of one organ) can be taken for copies. Sets above 100,000 images are searched for copies only.
"""

import datasets
import numpy as np

from finesight.data import copies, images, retakes
from finesight.data.scan import Scan, scan
from finesight.data.similarity import OTHER_WAY, Pairs, describe, flat


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
    """A cluster number per row: equal for images that are the same by bytes or by `near_duplicates`.

    Unreadable images are clusters of their own.
    """
    found = scan(dataset, sixteen_bit)
    return clusters(found, near_duplicates(found)).tolist()


def clusters(found: Scan, pairs: Pairs) -> np.ndarray:
    """int [N]: connected components of near pairs and equal bytes."""
    first, second = [pairs.first], [pairs.second]
    for same in exact_duplicates(found.hashes):
        first.append(np.full(len(same) - 1, same[0]))
        second.append(np.array(same[1:]))
    return copies.join(np.arange(len(found.hashes)), np.concatenate(first), np.concatenate(second))


def comparable(found: Scan) -> np.ndarray:
    """Rows (int64, ascending) that are compared by looks: readable, not blank, the first of equal files."""
    fit = ~flat(found.thumbs)
    fit[list(found.faults)] = False
    for same in exact_duplicates(found.hashes):
        fit[same[1:]] = False
    return np.flatnonzero(fit)


def near_duplicates(found: Scan, *, shown: bool = True) -> Pairs:
    """Near pairs among the rows of a scan, ascending; of files with equal bytes only the first takes part.

    The same images give the same pairs in whatever order they are listed.
    """
    rows = comparable(found)
    rows = rows[np.argsort(np.array(found.hashes)[rows], kind="stable")]
    pairs = near_duplicate_pairs(found.thumbs[rows], shown=shown)
    ends = np.stack([rows[pairs.first], rows[pairs.second]])
    turn = np.where(ends[0] < ends[1], pairs.turn, OTHER_WAY[pairs.turn])
    first, second = np.sort(ends, axis=0)
    order = np.lexsort((second, first))
    return Pairs(first[order], second[order], pairs.similarity[order], turn[order], pairs.retake[order])


def near_duplicate_pairs(thumbs: np.ndarray, *, shown: bool = True) -> Pairs:
    """Copies and retakes among thumbnails (uint8 [N, 32, 32], grey, none of them blank)."""
    described = describe(thumbs)
    same = copies.find(described, shown=shown)
    again = retakes.find(thumbs, described, same, shown=shown)
    columns = [
        np.concatenate([getattr(part, name) for part in (same, again)])
        for name in ("first", "second", "similarity", "turn", "retake")
    ]
    return Pairs(*columns)
