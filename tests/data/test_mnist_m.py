import gzip
import os

# One published form of MNIST-M is a pickle; the attack below needs it, too.
import pickle
import time

import numpy as np
import pytest

from finesight.data import arrays, loading, mnist, mnist_m, unpickling
from finesight.data.config import DataConfig
from finesight.data.images import decode, read
from finesight.errors import DataError
from tests.data.making import encoded, make_zip, pixels
from tests.data.test_mnist import labels as mnist_labels
from tests.data.test_mnist import write as write_mnist

COUNTS = {"train": 30, "test": 20}


def digits(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)


def photos(*sizes):
    return [pixels(row, height, width) for row, (height, width) in enumerate(sizes)]


def windows(photo):
    return np.lib.stride_tricks.sliding_window_view(photo, (28, 28), (0, 1)).transpose(0, 1, 3, 4, 2)


def place(patch, backgrounds):
    """(photograph, top, left) of a patch."""
    found = [
        (row, *map(int, at))
        for row, photo in enumerate(backgrounds)
        for at in np.argwhere((windows(photo) == patch).all((2, 3, 4)))
    ]
    assert len(found) == 1
    return found[0]


# Blending


def test_black_gives_the_patch_white_its_negative_and_grey_the_difference():
    backgrounds = photos((28, 28), (30, 41), (41, 30))
    digit = digits(50)
    patches = mnist_m.synthesise(np.zeros_like(digit), backgrounds, 3)
    assert patches.dtype == np.uint8
    assert patches.shape == (50, 28, 28, 3)
    assert {place(patch, backgrounds)[0] for patch in patches} == {0, 1, 2}
    np.testing.assert_array_equal(mnist_m.synthesise(np.full_like(digit, 255), backgrounds, 3), 255 - patches)
    expected = abs(patches.astype(int) - digit[..., None])
    np.testing.assert_array_equal(mnist_m.synthesise(digit, backgrounds, 3), expected)


def test_every_photograph_and_every_place_is_as_likely():
    # 2 and 3 places down, 3 and 2 across: six patches in each, also those at the last row and column.
    backgrounds = photos((29, 30), (30, 29))
    patches = mnist_m.synthesise(np.zeros((6000, 28, 28), np.uint8), backgrounds, 0)
    kinds, counts = np.unique(patches.reshape(6000, -1), axis=0, return_counts=True)
    places = {place(patch.reshape(28, 28, 3), backgrounds) for patch in kinds}
    assert places == {(0, top, left) for top in range(2) for left in range(3)} | {
        (1, top, left) for top in range(3) for left in range(2)
    }
    # 500 expected of each; five standard deviations.
    assert abs(counts - 500).max() < 5 * np.sqrt(500)


def test_a_row_depends_on_the_seed_and_its_number_and_not_on_the_others():
    backgrounds = photos((60, 50), (33, 90), (28, 200))
    count = 2 * mnist_m._CHUNK + 5
    digit = digits(count)
    full = mnist_m.synthesise(digit, backgrounds, 7)
    for fewer in (0, 1, 9, mnist_m._CHUNK, mnist_m._CHUNK + 1):
        np.testing.assert_array_equal(mnist_m.synthesise(digit[:fewer], backgrounds, 7), full[:fewer])
    changed = digit.copy()
    changed[:-1] = 0
    np.testing.assert_array_equal(mnist_m.synthesise(changed, backgrounds, 7)[-1], full[-1])
    other = mnist_m.synthesise(digit, backgrounds, 8)
    assert (other == full).all((1, 2, 3)).mean() < 0.01
    assert len(mnist_m.synthesise(digit[:3], backgrounds, -1)) == 3


def test_views_and_the_arguments_are_left_alone():
    backgrounds = photos((60, 50), (40, 40))
    digit = digits(20)
    turned = [photo.transpose(1, 0, 2) for photo in backgrounds]
    for array in (digit, *backgrounds):
        array.setflags(write=False)
    expected = mnist_m.synthesise(digit, [photo.copy() for photo in turned], 0)
    np.testing.assert_array_equal(mnist_m.synthesise(digit, turned, 0), expected)


@pytest.mark.parametrize(
    ("digit", "backgrounds", "causes"),
    [
        (digits(2), [], ["No background photographs are given"]),
        (digits(2) / 255, photos((28, 28)), [r"digits are float64 \[2, 28, 28\]; give uint8 \[N, 28, 28\]"]),
        (digits(2)[0], photos((28, 28)), [r"digits are uint8 \[28, 28\]"]),
        (
            digits(2)[:, :27],
            [pixels(0, 27, 50), pixels(1, 28, 28), pixels(2, 50, 50)[..., 0], pixels(3, 50, 50) / 255],
            [
                r"digits are uint8 \[2, 27, 28\]",
                "background 0 has 27×50 pixels; at least 28×28 are needed",
                r"background 2 is uint8 \[50, 50\]; give uint8 \[H, W, 3\]",
                r"background 3 is float64",
            ],
        ),
    ],
)
def test_arrays_of_another_kind_are_refused(digit, backgrounds, causes):
    with pytest.raises(DataError) as caught:
        mnist_m.synthesise(digit, backgrounds, 0)
    assert len(caught.value.problems) == len(causes)
    for cause in causes:
        assert caught.match(cause)


# Photographs


def test_photographs_come_in_the_order_of_names_from_folder_and_zip(tmp_path):
    folder = tmp_path / "photos"
    expected = {"b/2.png": pixels(0, 30, 40), "a.png": pixels(1, 40, 30), "b/10.png": pixels(2, 28, 28)}
    for name, photo in expected.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(photo))
    (folder / "notes.txt").write_text("no photograph")
    (folder / "._a.png").write_bytes(b"left behind by macOS")
    for source in (folder, make_zip(tmp_path / "photos.zip", folder)):
        found = mnist_m.read_backgrounds(source)
        assert len(found) == 3
        for name, photo in zip(["a.png", "b/10.png", "b/2.png"], found, strict=True):
            np.testing.assert_array_equal(photo, expected[name])


def test_unreadable_and_small_photographs_are_named(tmp_path):
    (tmp_path / "good.png").write_bytes(encoded(pixels(0, 30, 30)))
    (tmp_path / "cut.png").write_bytes(encoded(pixels(0, 30, 30))[:200])
    (tmp_path / "small.png").write_bytes(encoded(pixels(0, 30, 27)))
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        mnist_m.read_backgrounds(tmp_path)
    assert len(caught.value.problems) == 3
    assert "cut.png: cannot be decoded" in caught.value.problems[0]
    assert "empty.jpg: the file is empty" in caught.value.problems[1]
    assert "small.png has 30×27 pixels; at least 28×28" in caught.value.problems[2]


def test_a_place_without_photographs_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="holds no photographs"):
        mnist_m.read_backgrounds(tmp_path)
    with pytest.raises(DataError, match="absent: cannot be read"):
        mnist_m.read_backgrounds(tmp_path / "absent")
    (tmp_path / "a.png").write_bytes(encoded(pixels(0, 30, 30)))
    monkeypatch.setattr(mnist_m, "_MOST_BYTES", 2699)
    with pytest.raises(DataError, match="more than 2,699 bytes of pixels"):
        mnist_m.read_backgrounds(tmp_path)


def test_no_photograph_is_in_both_halves():
    given = photos(*[(30, 30)] * 12)
    # 3 again as 5 and as the last: they would otherwise be on both sides.
    given[5] = given[3].copy()
    given.append(given[3].copy())
    train, test = mnist_m.split_backgrounds(given)
    assert [len(train), len(test)] == [8, 3]
    names = {photo.tobytes(): row for row, photo in reversed(list(enumerate(given)))}
    assert [names[photo.tobytes()] for photo in test] == [0, 6, 11]
    assert [names[photo.tobytes()] for photo in train] == [1, 2, 3, 4, 7, 8, 9, 10]
    with pytest.raises(DataError, match="1 different photographs; two or more"):
        mnist_m.split_backgrounds([given[0], given[0]])


# The published folder


@pytest.fixture
def folder(tmp_path):
    """Labels of row i are 7 * i modulo 10; the lines stand in reverse order."""
    root = tmp_path / "mnist_m"
    for half, count in COUNTS.items():
        (root / f"mnist_m_{half}").mkdir(parents=True)
        for row in range(count):
            (root / f"mnist_m_{half}/{row:08d}.png").write_bytes(encoded(pixels(count + row, 32, 32)))
        lines = [f"{row:08d}.png {7 * row % 10}\n" for row in range(count)]
        (root / f"mnist_m_{half}_labels.txt").write_text("".join(reversed(lines)))
    return root


def folder_problems(folder):
    with pytest.raises(DataError) as caught:
        loading.read(DataConfig(root=str(folder)))
    return caught.value.problems


def test_the_published_folder_or_its_parent(folder):
    for root in (folder, folder.parent):
        samples = loading.read(DataConfig(root=str(root)))
        assert samples.ids == [f"train/{row:05d}" for row in range(30)] + [f"test/{row:05d}" for row in range(20)]
        assert samples.splits == ["train"] * 30 + ["test"] * 20
        assert samples.classes == list("0123456789")
        assert samples.labels.tolist() == [7 * row % 10 for row in (*range(30), *range(20))]
        np.testing.assert_array_equal(decode(read(samples.images[34].as_py()), "x"), pixels(24, 32, 32))
    data = loading.load(DataConfig(root=str(folder)), 0)
    assert {name: len(part) for name, part in data.items()} == {"train": 20, "validation": 10, "test": 20}


@pytest.mark.parametrize("end", ["\r\n", "\n\n"])
def test_lines_that_ended_otherwise(folder, end):
    table = folder / "mnist_m_test_labels.txt"
    table.write_bytes(table.read_text().replace("\n", end).encode())
    assert len(loading.read(DataConfig(root=str(folder))).ids) == 50


def test_a_missing_label_file_and_a_missing_half_are_said_at_once(folder):
    (folder / "mnist_m_train_labels.txt").unlink()
    for image in (folder / "mnist_m_test").iterdir():
        image.unlink()
    (folder / "mnist_m_test").rmdir()
    found = folder_problems(folder)
    assert len(found) == 2
    assert "mnist_m_train_labels.txt: is missing. Unpack mnist_m.tar.gz anew" in found[0]
    assert "mnist_m_test: cannot be read: No such file" in found[1]


def test_labels_and_images_without_a_counterpart(folder):
    (folder / "mnist_m_train/00000002.png").unlink()
    (folder / "mnist_m_train/extra.png").write_bytes(encoded(pixels(0, 32, 32)))
    found = folder_problems(folder)
    assert len(found) == 2
    assert "mnist_m_train_labels.txt: names 1 absent images: '00000002.png'" in found[0]
    assert "mnist_m_train: 1 images without label: 'extra.png'" in found[1]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("00000003.png 12", "line 4: '00000003.png 12'; expected a line such as"),
        ("00000003.png -1", "expected a line"),
        ("00000003.png ²", "cannot be read"),
        ("00000003.png", "expected a line"),
        ("../mnist_m_test/00000003.png 3", "expected a line"),
        ("/etc/passwd 3", "expected a line"),
        ("00000002.png 3", "line 4: '00000002.png' stands twice"),
    ],
)
def test_lines_that_are_no_labels(folder, line, cause):
    lines = [f"{row:08d}.png 1" for row in range(30)]
    lines[3] = line
    (folder / "mnist_m_train_labels.txt").write_text("\n".join(lines))
    (found,) = folder_problems(folder)
    assert cause in found


def test_an_empty_label_file(folder):
    (folder / "mnist_m_test_labels.txt").write_text("\n")
    assert folder_problems(folder) == (
        f"{folder / 'mnist_m_test_labels.txt'}: holds no labels. Unpack mnist_m.tar.gz anew.",
    )


# The published pickle


def colour(count, seed, side=28):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.fixture
def published(tmp_path):
    """Where the pickle goes, beside a folder with the idx files of 40 and 20 digits."""
    write_mnist(tmp_path / "mnist")
    return tmp_path / "keras_mnistm.pkl"


def put(path, content, protocol=2):
    data = pickle.dumps(content, protocol)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return DataConfig(root=str(path))


@pytest.mark.parametrize("ending", [".pkl", ".pkl.gz"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_published_pickle(published, ending, protocol):
    content = {"train": colour(40, 0), "test": colour(20, 1)}
    samples = loading.read(put(published.with_suffix(ending), content, protocol))
    assert samples.splits == ["train"] * 40 + ["test"] * 20
    assert samples.ids[40] == "test/00000"
    assert samples.labels.tolist() == [*mnist_labels("train"), *mnist_labels("t10k")]
    np.testing.assert_array_equal(decode(samples.images[41].as_py()["bytes"], "x"), content["test"][1])


def test_validation_is_made_of_the_first_training_digits(published):
    # Keys as bytes: so Python 2 wrote them. The idx files lie in the same folder here.
    write_mnist(published.parent)
    content = {b"train": colour(33, 0, 32), b"valid": colour(7, 1, 32), b"test": colour(20, 2, 32)}
    samples = loading.read(put(published, content))
    assert samples.splits == ["validation"] * 7 + ["train"] * 33 + ["test"] * 20
    assert samples.ids[7] == "train/00000"
    assert samples.labels[7:10].tolist() == [7, 8, 9]
    np.testing.assert_array_equal(decode(samples.images[8].as_py()["bytes"], "x"), content[b"train"][1])


class Attack:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.mark.parametrize("ending", [".pkl", ".pkl.gz"])
@pytest.mark.parametrize("where", ["value", "object array", "whole"])
def test_a_pickle_that_would_run_code_is_refused(published, monkeypatch, where, ending):
    monkeypatch.chdir(published.parent)
    content = {"train": colour(40, 0), "test": Attack() if where == "value" else np.array([Attack()], object)}
    source = put(published.with_suffix(ending), Attack() if where == "whole" else content)
    with pytest.raises(
        DataError, match=r"keras_mnistm\S+: refused: it (names (posix|nt|os)\.system|holds values of type 'O8')"
    ):
        loading.load(source, 0)
    assert not (published.parent / "owned").exists()


def test_a_pickle_that_unpacks_without_end_is_refused(published, monkeypatch):
    source = put(published.with_suffix(".pkl.gz"), {"train": np.zeros((10_000, 28, 28, 3), np.uint8)})
    monkeypatch.setattr(unpickling, "MOST_BYTES", 100_000)
    asked = []
    unpack = gzip.GzipFile.read

    def counted(self, size=-1):
        asked.append(len(data := unpack(self, size)))
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(DataError, match="refused: it unpacks to more than 100,000 bytes"):
        loading.read(source)
    assert asked == [100_001]


@pytest.mark.parametrize("ending", [".pkl", ".pkl.gz"])
def test_a_pickle_that_was_cut(published, ending):
    path = published.with_suffix(ending)
    source = put(path, {"train": colour(40, 0), "test": colour(20, 0)})
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"keras_mnistm\S+: (damaged|pickle data was truncated)"):
        loading.read(source)


@pytest.mark.parametrize(
    ("content", "causes"),
    [
        ([1, 2], ["holds a list, expected a dict"]),
        ({"train": colour(40, 0)}, ["'test' is no uint8 array"]),
        (
            {"train": colour(40, 0) / 255.0, "valid": "text", "test": colour(20, 0)[..., 0]},
            ["'valid' is no uint8 array", "'train' is no uint8 array", "'test' is no uint8 array"],
        ),
        (
            {"train": colour(39, 0), "test": colour(21, 0)},
            ["39 training images, but 40 labels in .*cannot be paired", "21 test images, but 20 labels"],
        ),
        ({"train": colour(40, 0), "valid": colour(1, 0), "test": colour(20, 0)}, ["41 training images, but 40"]),
    ],
)
def test_a_pickle_with_something_else(published, content, causes):
    source = put(published, content)
    with pytest.raises(DataError) as caught:
        loading.read(source)
    assert len(caught.value.problems) == len(causes)
    for cause in causes:
        assert caught.match(cause)


def test_a_pickle_without_mnist_has_no_labels(tmp_path):
    source = put(tmp_path / "keras_mnistm.pkl", {"train": colour(4, 0), "test": colour(2, 0)})
    with pytest.raises(DataError, match=r"images without labels.*four idx files into \S+mnist\."):
        loading.read(source)


# Real data


@pytest.fixture(scope="module")
def real(real_data):
    """The published test half in colour [9001, 32, 32, 3], the MNIST digits it was made of, and BSDS500."""
    with np.load(real_data / "mnist_m/mnist_m_test.npz") as archive:
        images, rows = archive["images"], archive["index"]
    backgrounds = mnist_m.read_backgrounds(real_data / "bsds500/images.zip")
    return images, mnist.arrays(real_data / "mnist")[2][rows], backgrounds


def test_the_published_test_half_as_npz(real_data):
    samples = arrays.read_npz(real_data / "mnist_m/mnist_m_test.npz", None)
    assert len(samples.ids) == 9001
    assert samples.splits is None
    assert samples.classes == list("0123456789")
    assert samples.labels.tolist() == mnist.arrays(real_data / "mnist")[3][:9001].tolist()


def test_the_photographs_are_as_expected(real):
    _, _, backgrounds = real
    assert len(backgrounds) == 200
    assert {photo.shape for photo in backgrounds} == {(321, 481, 3), (481, 321, 3)}
    assert list(map(len, mnist_m.split_backgrounds(backgrounds))) == [160, 40]


def measured(images, ink):
    """Mean and spread of each channel, then mean on ink, then mean step between rows."""
    values = images.astype(np.float32)
    steps = abs(np.diff(values, axis=1)).mean()
    return values.mean((0, 1, 2)), values.std((0, 1, 2)), values[ink].mean(0), steps


def test_synthesised_images_have_the_statistics_of_the_published_ones(real):
    images, digit, backgrounds = real
    ink = digit > 0
    mean, spread, on_ink, steps = measured(images[:, 2:-2, 2:-2], ink)
    own = mnist_m.synthesise(digit, backgrounds, 0)
    # Where there is no ink, both are photographs, so the outermost pixels agree up to the choice of patches.
    border, own_border = images[:, 2, 2:-2].astype(np.float32), own[:, 0].astype(np.float32)
    assert abs(border.mean((0, 1)) - own_border.mean((0, 1))).max() < 4
    assert abs(border.std((0, 1)) - own_border.std((0, 1))).max() < 3
    # As a whole the grey digits are close in spread, but darker by 8 to 10: the published ones are not grey.
    found = measured(own, ink)
    assert abs(found[0] - mean).max() < 12
    assert abs(found[1] - spread).max() < 5
    assert (on_ink - found[2]).min() > 30
    # From black and white digits, every measure agrees.
    found = measured(mnist_m.synthesise(np.where(ink, 255, 0).astype(np.uint8), backgrounds, 0), ink)
    assert abs(found[0] - mean).max() < 3
    assert abs(found[1] - spread).max() < 2
    assert abs(found[2] - on_ink).max() < 4
    assert found[3] == pytest.approx(steps, rel=0.05)


def test_the_published_images_are_black_and_white_digits_within_a_margin_of_two(real):
    # |patch - 255| = 255 - patch: undoing it at the right pixels leaves a photograph without a visible border.
    images, digit, _ = real
    images = images[:1000].astype(np.int16)
    padded = np.pad(digit[:1000], ((0, 0), (2, 2), (2, 2)))

    def roughness(ink):
        undone = np.where(ink[..., None], 255 - images, images)
        return abs(np.diff(undone, axis=1)).mean() + abs(np.diff(undone, axis=2)).mean()

    right = roughness(padded > 0)
    wrong = [roughness(np.roll(padded > 0, shift, (1, 2))) for shift in ((0, 1), (1, 0), (-1, 0), (0, -1))]
    wrong += [roughness(padded > 127), roughness(np.zeros_like(padded) > 0)]
    assert right < 0.75 * min(wrong)


def test_all_of_mnist_within_seconds(real, real_data):
    train, _, test, _ = mnist.arrays(real_data / "mnist")
    digit = np.concatenate([train, test])
    start = time.perf_counter()
    images = mnist_m.synthesise(digit, real[2], 0)
    assert time.perf_counter() - start < 30
    assert images.shape == (70_000, 28, 28, 3)
