import numpy as np
import pytest

from finesight.data import arrays
from finesight.data.images import decode
from finesight.errors import DataError

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def read(tmp_path, name="data.npz", group=None, **content):
    np.savez(tmp_path / name, **content)
    return arrays.read_npz(tmp_path / name, group)


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("x", "y"), ("X", "Y")])
def test_one_set(tmp_path, images, labels):
    samples = read(tmp_path, **{images: COLOUR, labels: LABELS})
    assert samples.ids == [f"image/0000{row}" for row in range(6)]
    assert samples.splits is None
    assert samples.classes == ["0", "1", "2"]
    np.testing.assert_array_equal(decode(samples.images[3].as_py()["bytes"], "x"), COLOUR[3])


@pytest.mark.parametrize("pattern", [("{}_images", "{}_labels"), ("x_{}", "y_{}")])
def test_splits(tmp_path, pattern):
    content = {}
    for split, rows in (("train", slice(0, 3)), ("val", slice(3, 5)), ("test", slice(5, 6))):
        content[pattern[0].format(split)] = COLOUR[rows]
        content[pattern[1].format(split)] = LABELS[rows]
    samples = read(tmp_path, **content)
    assert samples.splits == ["train"] * 3 + ["validation"] * 2 + ["test"]
    assert samples.ids[3:] == ["validation/00000", "validation/00001", "test/00000"]
    assert samples.labels.tolist() == LABELS.tolist()
    np.testing.assert_array_equal(decode(samples.images[4].as_py()["bytes"], "x"), COLOUR[4])


def test_grey_images_text_labels_and_labels_in_a_column(tmp_path):
    samples = read(tmp_path, images=COLOUR[..., 0], labels=np.array(["b10", "b9", "a"] * 2))
    assert samples.classes == ["a", "b9", "b10"]
    assert samples.labels.tolist() == [2, 1, 0, 2, 1, 0]
    assert decode(samples.images[0].as_py()["bytes"], "x")[..., 1].tolist() == COLOUR[0, ..., 0].tolist()
    assert read(tmp_path, images=COLOUR, labels=LABELS[:, None]).labels.tolist() == LABELS.tolist()


def test_class_names_and_groups(tmp_path):
    names = np.array(["zebra", "ant", "bee", "never seen"])
    content = {"images": COLOUR, "labels": LABELS, "classes": names}
    samples = read(tmp_path, **content, groups=np.array([7, 7, 8, 8, 9, 9]))
    assert samples.classes == names.tolist()
    assert samples.groups == ["7", "7", "8", "8", "9", "9"]
    assert read(tmp_path, **content, patient=np.array(list("aabbcc")), group="patient").groups == list("aabbcc")
    splits = {"train_images": COLOUR, "train_labels": LABELS, "test_images": COLOUR, "test_labels": LABELS}
    samples = read(tmp_path, **splits, train_groups=np.arange(6), test_groups=np.arange(6, 12))
    assert samples.groups == [str(number) for number in range(12)]
    with pytest.raises(DataError, match="'test_groups' must give one group for each"):
        read(tmp_path, **splits, train_groups=np.arange(6), test_groups=np.arange(5))


def test_cifar10_is_recognised_by_name_and_shape(tmp_path):
    pixels = np.zeros((20, 32, 32, 3), np.uint8)
    content = {"images": pixels, "labels": np.arange(20) % 10}
    assert read(tmp_path, "cifar-10_part.npz", **content).classes[8] == "ship"
    assert read(tmp_path, "other.npz", **content).classes[8] == "8"
    assert read(tmp_path, "cifar100.npz", **content).classes[8] == "8"


def test_pickled_objects_are_refused_with_the_reason(tmp_path):
    with pytest.raises(DataError, match="'labels' holds pickled Python objects, which can run any code .* refused"):
        read(tmp_path, images=COLOUR, labels=np.array(["a", None, 1, 2, 3, 4], object))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ({"images": COLOUR / 255.0, "labels": LABELS}, "images is float64; scale to 0..255 and store np.uint8"),
        ({"images": COLOUR.transpose(0, 3, 1, 2), "labels": LABELS}, "channels first"),
        ({"images": COLOUR[0, 0], "labels": LABELS}, r"images is \[4, 3\]; expected"),
        ({"images": COLOUR[:0], "labels": LABELS[:0]}, r"images is \[0, 5, 4, 3\]; expected"),
        ({"images": COLOUR, "labels": LABELS[:5]}, "6 in images, but 5 in labels"),
        ({"images": COLOUR, "labels": np.eye(6)}, r"labels is float64 \[6, 6\]; expected one whole number"),
        ({"images": COLOUR, "labels": np.array(3)}, r"labels is int64 \[\]; expected one whole number"),
        ({"images": COLOUR, "labels": LABELS - 1}, "label -1 in row 0 is out of range"),
        (
            {"images": COLOUR, "labels": LABELS, "classes": np.array(["a", "b"])},
            "label 2 in row 2 is out of range .0..1, as there are 2 classes",
        ),
        ({"images": COLOUR, "labels": LABELS, "classes": np.array(["a", "b", "a"])}, "names a class twice"),
        ({"pictures": COLOUR, "labels": LABELS}, "has the keys pictures, labels; expected images and labels"),
    ],
)
def test_what_does_not_fit_is_explained(tmp_path, content, cause):
    with pytest.raises(DataError, match=cause):
        read(tmp_path, **content)


def test_problems_of_all_splits_are_reported_at_once(tmp_path):
    with pytest.raises(DataError) as caught:
        read(
            tmp_path,
            train_images=COLOUR.astype(np.int64),
            train_labels=LABELS[:2],
            test_images=COLOUR,
            test_labels=LABELS[:1],
        )
    assert len(caught.value.problems) == 3


def test_damaged_files(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"\x80\x04not an npz")
    with pytest.raises(DataError, match="not an npz archive, or damaged"):
        arrays.read_npz(path, None)
    np.savez(path, images=COLOUR, labels=LABELS)
    data = bytearray(path.read_bytes())
    data[300] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.npz: damaged .*Bad CRC"):
        arrays.read_npz(path, None)
