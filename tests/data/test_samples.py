import numpy as np
import pytest

from finesight.data import samples
from finesight.data.images import decode
from finesight.data.samples import Samples, array_images, encode, natural_key, numbered_ids, take_rows


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 7, 3), (5, 4, 6, 3), (5, 5, 7, 3), (1, 1, 1, 3), (3, 1, 1)])
def test_arrays_come_back_pixel_by_pixel(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    images = array_images(pixels)
    for image, expected in zip(images.to_pylist(), pixels, strict=True):
        assert image["path"] is None
        decoded = decode(image["bytes"], "x")
        np.testing.assert_array_equal(decoded, expected if expected.ndim == 3 else np.stack([expected] * 3, -1))


def test_large_arrays_are_cut_into_chunks(monkeypatch):
    monkeypatch.setattr(samples, "_CHUNK_BYTES", 1000)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)
    images = array_images(pixels)
    assert images.num_chunks == 3  # 246 bytes each, 4 to a chunk: 4 + 4 + 2
    assert all((decode(image["bytes"], "x") == pixels[row]).all() for row, image in enumerate(images.to_pylist()))


def test_names_are_ordered_naturally():
    names = ["class10", "Class2", "class1", "a", "b"]
    assert sorted(names, key=natural_key) == ["a", "b", "class1", "Class2", "class10"]
    assert sorted(["1a", "a1", "10", "9"], key=natural_key) == ["1a", "9", "10", "a1"]
    labels, classes = encode(["b", "a", "b"])
    assert (labels.tolist(), classes) == ([1, 0, 1], ["a", "b"])
    assert encode(["b", "a"], ["b", "x", "a"])[0].tolist() == [0, 2]


def test_numbered_ids_sort_as_their_rows():
    ids = numbered_ids("train", 100_001)
    assert ids[0] == "train/000000"
    assert ids == sorted(ids)
    assert numbered_ids("test", 3) == ["test/00000", "test/00001", "test/00002"]


def test_large_sources_stay_where_they_are_and_small_ones_become_plain_tables(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 2, 3), np.uint8)
    ids = [f"x{row}" for row in range(6)]
    whole = Samples(ids, np.array([0, 1] * 3), ["a", "b"], array_images(pixels)).to_dataset(ids)
    plain = take_rows(whole, np.array([4, 1]))
    assert plain.data.num_rows == 2
    monkeypatch.setattr(samples, "_CHUNK_BYTES", 10)
    indexed = take_rows(whole, np.array([4, 1]))
    assert indexed.data.num_rows == 6
    assert plain[:] == indexed[:]
    assert plain["id"][:] == ["x4", "x1"]
