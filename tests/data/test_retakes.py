import numpy as np
import pytest
from PIL import Image

from finesight.data import retakes
from finesight.data.similarity import Pairs, describe
from tests.data.scenes import moved, scene, thumb, thumbs

NONE = Pairs(*(np.empty(0, np.int64) for _ in range(5)))
MOVES = {
    "turned": {"angle": 3, "zoom": 1.06},
    "nearer": {"zoom": 1.08},
    "shifted": {"zoom": 1.1, "shift": (0.04, -0.03)},
    "all": {"angle": -2, "zoom": 1.1, "shift": (0.02, 0.03)},
}


def find(made: np.ndarray, known: Pairs = NONE) -> Pairs:
    return retakes.find(made, describe(made), known, shown=False)


def test_second_photographs_are_found_and_nothing_else():
    originals = [scene(seed) for seed in range(60)]
    again = [moved(**move)(originals[10 + row]) for row, move in enumerate(MOVES.values())]
    pairs = find(thumbs(originals + again))
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [
        (10, 60),
        (11, 61),
        (12, 62),
        (13, 63),
    ]
    assert pairs.retake.all()
    assert (pairs.similarity >= retakes.RETAKE).all()


def test_found_even_when_every_image_has_one():
    originals = [scene(seed) for seed in range(60)]
    pairs = find(thumbs(originals + [moved(zoom=1.08)(picture) for picture in originals]))
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(row, 60 + row) for row in range(60)]


@pytest.mark.parametrize("move", MOVES)
def test_alignment_undoes_a_move(move):
    pictures = [scene(seed) for seed in range(30)]
    fixed, moving = thumbs(pictures), thumbs([moved(**MOVES[move])(picture) for picture in pictures])
    even = retakes.evened(fixed), retakes.evened(moving)
    before = [np.corrcoef(one.ravel(), two.ravel())[0, 1] for one, two in zip(*even, strict=True)]
    after = retakes.aligned(*even, 20)
    assert np.median(before) < 0.75
    assert np.median(after) > 0.9


def test_equal_pictures_fit_exactly_and_unrelated_ones_do_not():
    even = retakes.evened(thumbs([scene(0), scene(1)]))
    assert retakes.aligned(even[:1], even[:1], 3)[0] == pytest.approx(1, abs=1e-5)
    assert retakes.aligned(even[:1], even[1:], 20)[0] < 0.6


def test_a_frame_that_all_share_makes_no_pair():
    """Endoscopes and slide scanners put the same black mask around every picture."""
    y, x = np.mgrid[:64, :64]
    mask = ((y - 31.5) ** 2 + (x - 31.5) ** 2 < 28**2) & ~((y > 40) & (x < 22))
    framed = [Image.fromarray((np.asarray(scene(seed)) * mask[..., None]).astype(np.uint8)) for seed in range(60)]
    made = thumbs(framed)
    grey = made.reshape(len(made), -1).astype(float)
    assert np.corrcoef(grey).mean() > 0.4  # so much is the mask
    assert not len(find(made).first)


def test_known_copies_are_not_tried_again():
    picture = scene(0)
    made = np.stack([thumb(picture), thumb(moved(zoom=1.08)(picture))])
    known = Pairs(*(np.array([value]) for value in (0, 1, 1, 0, 0)))
    assert len(find(made).first) == 1
    assert not len(find(made, known).first)


def test_large_sets_are_left_to_copies(monkeypatch):
    picture = scene(0)
    made = np.stack([thumb(picture), thumb(moved(zoom=1.08)(picture))])
    monkeypatch.setattr(retakes, "MOST_IMAGES", 1)
    assert not len(find(made).first)


@pytest.mark.parametrize("count", [0, 1])
def test_tiny_sets(count):
    assert not len(find(thumbs([scene(0)])[:count]).first)
