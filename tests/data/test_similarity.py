import numpy as np
import pytest

from finesight.data import similarity
from finesight.data.similarity import TURNS, by_accident, describe, flat, invariants, orientations
from tests.data.scenes import COPIES, TURNED, scene, thumb, thumbs


def test_brightness_and_contrast_drop_out():
    picture = thumb(scene(0)).astype(float)
    darker = np.rint(0.5 * picture + 20).astype(np.uint8)
    one, two = describe(np.stack([thumb(scene(0)), darker]))
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-6)
    assert float((one * two).sum()) > 0.9995


@pytest.mark.parametrize("name", TURNED)
def test_each_orientation_is_recognised_by_name(name):
    first = scene(3)
    one, two = describe(thumbs([first, first.transpose(TURNED[name])]))
    scores = orientations(one[None], two[None])[0]
    assert TURNS[int(scores.argmax())] == name
    assert scores.max() > 0.999
    assert np.sort(scores)[-2] < 0.7


@pytest.mark.parametrize("name", COPIES)
def test_copies_stay_alike(name):
    changed = [COPIES[name](scene(seed)) for seed in range(20)]
    one, two = describe(thumbs([scene(seed) for seed in range(20)])), describe(thumbs(changed))
    assert orientations(one, two)[:, 0].min() > 0.97


def test_other_pictures_are_not_alike():
    made = describe(thumbs([scene(seed) for seed in range(60)]))
    first, second = np.triu_indices(60, 1)
    assert orientations(made[first], made[second]).max() < 0.8


def test_invariants_bound_the_best_orientation_from_above():
    """A bound that fails once would lose pairs: it holds for noise, scenes, and turned scenes."""
    generator = np.random.default_rng(0)
    noise = list(generator.integers(0, 256, (40, 32, 32), np.uint8))
    turned = [thumb(scene(seed).transpose(turn)) for seed, turn in enumerate(TURNED.values())]
    made = describe(np.stack([*noise, *thumbs([scene(seed) for seed in range(40)]), *turned]))
    first, second = np.triu_indices(len(made), 1)
    bounds = invariants(made)
    bound = (bounds[first] * bounds[second]).sum(axis=1)
    best = orientations(made[first], made[second]).max(axis=1)
    assert (bound >= best - 1e-5).all()
    assert bound[best > 0.99] == pytest.approx(1, abs=0.01)


def test_blank_pictures_are_flat():
    generator = np.random.default_rng(0)
    black, grey = np.zeros((32, 32)), 128 + generator.normal(0, 2, (32, 32))
    made = np.stack([black, grey, thumb(scene(0))]).astype(np.uint8)
    assert flat(made).tolist() == [True, True, False]


def test_accidents_follow_the_normal_curve():
    """z = arctanh(score) normal with mean 0.3, deviation 0.2: 0.01 of 1,000 tests lies 4.26 deviations above."""
    scores = np.tanh(np.random.default_rng(0).normal(0.3, 0.2, 200_000))
    assert np.arctanh(by_accident(scores, 1000)) == pytest.approx(0.3 + 4.265 * 0.2, abs=0.02)
    assert by_accident(scores, 100_000) > by_accident(scores, 1000)


def test_some_true_pairs_hardly_move_the_accidents():
    scores = np.tanh(np.random.default_rng(0).normal(0.3, 0.2, 2000))
    with_pairs = np.concatenate([scores, np.full(60, 0.99)])
    assert by_accident(with_pairs, 1000) == pytest.approx(by_accident(scores, 1000), abs=0.03)


def test_without_scores_nothing_is_known():
    assert by_accident(np.array([]), 10) == 0


def test_description_uses_what_its_name_says():
    assert describe(np.zeros((0, 32, 32), np.uint8)).shape == (0, similarity.BAND, similarity.BAND)
