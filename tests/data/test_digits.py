import numpy as np

from finesight.data import loading
from finesight.data.config import DataConfig
from finesight.data.images import decode


def test_digits_are_scaled_to_8_bits_and_pooled_then_split():
    from sklearn.datasets import load_digits

    data = loading.load(DataConfig(root="sklearn:digits"), 0)
    assert [len(data[name]) for name in ("train", "validation", "test")] == [1293, 145, 359]
    assert data["train"].features["label"].names == [str(digit) for digit in range(10)]
    source = load_digits()
    for part in data.values():
        for row in (0, -1):
            number = int(part[row]["id"].split("/")[1])
            pixels = decode(part.data.table["image"][row % len(part)].as_py()["bytes"], "x")
            np.testing.assert_array_equal(pixels[..., 0], np.rint(source.images[number] * 255 / 16))
            assert part[row]["label"] == source.target[number]
        shares = np.bincount(part["label"]) / len(part)
        assert shares.min() > 0.08
        assert shares.max() < 0.12
