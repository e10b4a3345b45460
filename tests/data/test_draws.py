"""Random numbers that belong to a sample."""

import numpy as np
import pytest
from scipy import stats

from finesight.data import draws

IDS = [f"image-{number}" for number in range(2000)]


def test_a_row_depends_on_its_sample_and_key_alone() -> None:
    table = draws.uniform(IDS[:5], 196, 0, 3)
    assert (draws.uniform([IDS[3]], 196, 0, 3)[0] == table[3]).all()
    assert (draws.uniform(IDS[4::-1], 196, 0, 3)[::-1] == table).all()
    assert (draws.uniform([IDS[3]], 7, 0, 3)[0] == table[3, :7]).all()
    for key in ((0, 4), (1, 3), (0,), (3, 0)):
        assert not (draws.uniform([IDS[3]], 196, *key)[0] == table[3]).any()


def test_key_and_id_cannot_be_mistaken_for_each_other() -> None:
    assert not np.array_equal(draws.uniform(["a1"], 4, 2), draws.uniform(["a"], 4, 12))


def test_the_numbers_are_uniform_and_independent() -> None:
    table = draws.uniform(IDS, 64, 0)
    assert table.min() >= 0
    assert table.max() < 1
    assert stats.kstest(table.ravel(), "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(table.T) - np.eye(64)).max() < 0.1
    assert np.abs(np.corrcoef(table[:64]) - np.eye(64)).max() < 0.6


@pytest.mark.parametrize("count", [1, 6, 7])
def test_normal_numbers_are_normal(count: int) -> None:
    table = draws.normal(IDS, count, 5)
    assert table.shape == (2000, count)
    assert np.isfinite(table).all()
    assert stats.kstest(table.ravel(), "norm").pvalue > 1e-3
