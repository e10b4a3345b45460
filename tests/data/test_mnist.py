import gzip
import struct

import numpy as np
import pytest

from finesight.data import arrays, loading, mnist
from finesight.data.config import DataConfig
from finesight.data.images import decode
from finesight.errors import DataError

COUNTS = {"train": 40, "t10k": 20}


def idx(values):
    values = np.asarray(values, np.uint8)
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def labels(part):
    """In turn, upwards for training and downwards for test."""
    return np.arange(COUNTS[part])[:: 1 if part == "train" else -1] % 10


def content(part):
    """Images and labels as the bytes of an idx file."""
    count = COUNTS[part]
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
    return {"images-idx3": idx(images), "labels-idx1": idx(labels(part))}


def write(folder, pattern="{part}-{kind}-ubyte.gz"):
    folder.mkdir(parents=True, exist_ok=True)
    for part in COUNTS:
        for kind, data in content(part).items():
            path = folder / pattern.format(part=part, kind=kind)
            path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return folder


def change(folder, name, data):
    (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(data))


def problems(folder):
    with pytest.raises(DataError) as caught:
        mnist.arrays(folder)
    return caught.value.problems


@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("pattern", ["{part}-{kind}-ubyte.gz", "{part}-{kind}-ubyte"])
def test_the_four_files_wherever_they_are_kept(tmp_path, pattern, below):
    write(tmp_path / below, pattern)
    samples = loading.read(DataConfig(root=str(tmp_path)))
    assert samples.ids[:2] == ["train/00000", "train/00001"]
    assert samples.ids[40] == "test/00000"
    assert samples.splits == ["train"] * 40 + ["test"] * 20
    assert samples.classes == list("0123456789")
    assert samples.labels.dtype == np.int64
    assert samples.labels.tolist() == [*labels("train"), *labels("t10k")]
    original = np.frombuffer(content("t10k")["images-idx3"][16:], np.uint8).reshape(-1, 28, 28)
    pixels = decode(samples.images[43].as_py()["bytes"], "x")
    assert pixels.shape == (28, 28, 3)
    np.testing.assert_array_equal(pixels, np.repeat(original[3][..., None], 3, 2))
    assert {name: len(part) for name, part in loading.load(DataConfig(root=str(tmp_path)), 0).items()} == {
        "train": 30,
        "validation": 10,
        "test": 20,
    }


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_names_with_a_dot_and_names_that_lie_about_packing(tmp_path, ending):
    folder = write(tmp_path)
    expected = mnist.arrays(folder)
    for path in list(folder.iterdir()):
        data = path.read_bytes()
        path.unlink()
        # With ending "": packed without saying so. With ".gz": unpacked by a browser that kept the name.
        dotted = path.name.replace("-idx", ".idx").removesuffix(".gz") + ending
        (folder / dotted).write_bytes(gzip.decompress(data) if ending else data)
    for left, right in zip(mnist.arrays(folder), expected, strict=True):
        np.testing.assert_array_equal(left, right)


def test_another_folder_is_none(tmp_path):
    (tmp_path / "train-images.png").write_bytes(b"")
    assert mnist.idx_folder(tmp_path) is None
    assert len(problems(tmp_path)) == 4


def test_everything_wrong_with_the_files_is_said_at_once(tmp_path):
    folder = write(tmp_path)
    packed = folder / "train-images-idx3-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:5000])
    change(folder, "train-labels-idx1", idx([1, 12, 9, 10]))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"<!DOCTYPE html><title>Not found</title>")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    found = problems(folder)
    assert len(found) == 4
    assert "train-images-idx3-ubyte.gz: cannot be read, or is truncated (Compressed file ended" in found[0]
    assert "train-labels-idx1-ubyte.gz: 2 labels are out of range (0..9); the first is 12 in row 1" in found[1]
    assert "t10k-images-idx3-ubyte.gz: begins with 3c 21 44 4f, expected 00 00 08 03" in found[2]
    assert "t10k-labels-idx1-ubyte.gz is missing" in found[3]


IMAGES = content("t10k")["images-idx3"]


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (IMAGES[:-1], r"states 20×28×28 = 15,680 values, but it has only 15,679"),
        (IMAGES + b"\0", "15,680 values, but it has more"),
        (IMAGES[:9], "ends within its header, after 9 bytes"),
        (b"", "begins with nothing, expected 00 00 08 03"),
        (content("t10k")["labels-idx1"], "begins with 00 00 08 01, expected 00 00 08 03"),
        (b"\0\0\x0d" + IMAGES[3:], "begins with 00 00 0d 03"),
        (idx(np.zeros((20, 27, 28))), "images of 27×28; those of MNIST are 28×28"),
        (idx(np.zeros((0, 28, 28))), "holds no values"),
        (idx(np.zeros((19, 28, 28))), "19 images, but 20 labels in the test files"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 28, 28), "more than a file of [0-9]+ bytes can hold"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_file_that_does_not_fit_is_explained(tmp_path, data, cause, packed):
    folder = write(tmp_path)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(DataError, match=cause):
        mnist.arrays(folder)


@pytest.mark.parametrize("byte", [5, 3000, -6])
def test_a_damaged_archive_is_noticed(tmp_path, byte):
    # Within the deflated data, and in the checksum at the end; the name of time in the header does not matter.
    folder = write(tmp_path)
    path = folder / "train-images-idx3-ubyte.gz"
    data = bytearray(path.read_bytes())
    data[byte] ^= 255
    path.write_bytes(data)
    if byte == 5:
        assert len(mnist.arrays(folder)[0]) == 40
    else:
        assert "train-images-idx3-ubyte.gz: " in problems(folder)[0]


def test_no_more_is_unpacked_than_the_header_states(tmp_path, monkeypatch):
    folder = write(tmp_path)
    change(folder, "t10k-images-idx3", IMAGES + bytes(50_000_000))
    asked = []
    unpack = gzip.GzipFile.read

    def counted(self, size=-1):
        data = unpack(self, size)
        asked.append(len(data))
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    assert "20×28×28 = 15,680 values, but it has more" in problems(folder)[0]
    assert max(asked) <= 40 * 28 * 28 + 1


def test_a_header_that_promises_a_bomb_is_refused_unread(tmp_path):
    folder = write(tmp_path)
    # 50 MB of zeros in 50 kB: allowed by the format, refused by the ratio.
    change(folder, "t10k-images-idx3", struct.pack(">BBBB3I", 0, 0, 8, 3, 64_000, 28, 28) + bytes(64_000 * 784))
    assert "states 64000×28×28 = 50,176,000 values, more than a file of" in problems(folder)[0]


def test_the_real_files(real_data):
    train_images, train_labels, test_images, test_labels = mnist.arrays(real_data / "mnist")
    assert train_images.shape == (60_000, 28, 28)
    assert test_images.shape == (10_000, 28, 28)
    # The published counts, first labels and mean intensity 0.1307.
    assert np.bincount(train_labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert train_images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)


def test_usps_with_arrays_of_no_concern(real_data):
    path = real_data / "usps/usps.npz"
    samples = arrays.read_npz(path, None)
    assert samples.splits == ["train"] * 7291 + ["test"] * 2007
    assert samples.classes == list("0123456789")
    assert samples.columns == ["test_images_f32", "train_images_f32"]
    with np.load(path) as archive:
        assert samples.labels[7291:].tolist() == archive["test_labels"].tolist()
        pixels = decode(samples.images[7291 + 5].as_py()["bytes"], "x")
        np.testing.assert_array_equal(pixels[..., 2], archive["test_images"][5])
