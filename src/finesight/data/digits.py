"""The handwritten digits that come with scikit-learn: real data without a download."""

import numpy as np

from finesight.data.samples import Samples, array_images, numbered_ids


def read() -> Samples:
    """1,797 images uint8 [8, 8], the source's 0..16 scaled to 0..255; classes "0" to "9", no splits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    classes = [str(name) for name in digits.target_names]
    ids = numbered_ids("digits", len(pixels))
    return Samples(ids, digits.target.astype(np.int64), classes, array_images(pixels))
