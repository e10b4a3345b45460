import os

# The official batches exist in this format only; the attack below needs it, too.
import pickle

import numpy as np
import pytest

from finesight.data import cifar10, loading
from finesight.data.config import DataConfig
from finesight.data.images import decode, read
from finesight.errors import DataError

PER_BATCH = 20


def batch(seed, count=PER_BATCH):
    """A dict like those of the official files: bytes as keys, rows of 1024 red, 1024 green, 1024 blue."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)
    names = [f"photo_{row}.png".encode() for row in range(count)]
    labels = [row % 10 for row in range(count)]
    return {b"batch_label": b"batch", b"labels": labels, b"data": pixels, b"filenames": names}


def write(path, content, protocol=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))


@pytest.fixture
def batches(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    for number in range(1, 6):
        write(folder / f"data_batch_{number}", batch(number))
    write(folder / "test_batch", batch(6))
    write(folder / "batches.meta", {b"label_names": [name.encode() for name in cifar10.CLASSES]})
    return folder


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_official_batches(batches, protocol):
    write(batches / "data_batch_2", batch(2), protocol)
    samples = cifar10.read_batches(batches)
    assert samples.ids[:2] == ["train/00000", "train/00001"]
    assert samples.ids[100] == "test/00000"
    assert samples.splits == ["train"] * 100 + ["test"] * 20
    assert samples.classes == list(cifar10.CLASSES)
    assert samples.labels.tolist() == [row % 10 for row in range(PER_BATCH)] * 6
    row = batch(2)[b"data"][5]
    pixels = decode(samples.images[25].as_py()["bytes"], "x")
    assert pixels[3, 7].tolist() == [row[3 * 32 + 7], row[1024 + 3 * 32 + 7], row[2048 + 3 * 32 + 7]]


def test_the_folder_or_its_parent_is_given(batches):
    for root in (batches, batches.parent):
        data = loading.load(DataConfig(root=str(root)), 0)
        assert {name: len(part) for name, part in data.items()} == {"train": 90, "validation": 10, "test": 20}


def test_files_written_by_python_2_are_read(batches):
    # Python 2 wrote text as bytes, opcode U, and numpy's module as numpy.core.multiarray.
    content = {"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))}
    data = pickle.dumps(content, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    data = data.replace(b"X\x04\x00\x00\x00data", b"U\x04data").replace(b"X\x06\x00\x00\x00labels", b"U\x06labels")
    (batches / "test_batch").write_bytes(data)
    assert len(cifar10.read_batches(batches).ids) == 110


class Attack:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.mark.parametrize("where", ["value", "object array"])
def test_a_file_that_would_run_code_is_refused(batches, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    content = batch(1)
    content[b"data"] = Attack() if where == "value" else np.array([Attack()], object)
    write(batches / "data_batch_1", content)
    with pytest.raises(
        DataError, match=r"data_batch_1: refused: it (names (posix|nt|os)\.system|holds values of type 'O8')"
    ):
        loading.load(DataConfig(root=str(batches)), 0)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["builtins.eval", "numpy.load", "numpy.core.multiarray.fromstring", "os.system"])
def test_no_other_name_is_looked_up(batches, name):
    module, _, attribute = name.rpartition(".")
    (batches / "test_batch").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(DataError, match=f"refused: it names {name}"):
        cifar10.read_batches(batches)


def test_all_damaged_batches_are_reported(batches):
    (batches / "data_batch_1").write_bytes((batches / "data_batch_1").read_bytes()[:500])
    write(batches / "data_batch_2", {**batch(2), b"data": np.zeros((20, 3071), np.uint8)})
    write(batches / "data_batch_3", {**batch(3), b"labels": [*range(19), 10]})
    write(batches / "data_batch_4", {b"fine_labels": [1]})
    write(batches / "data_batch_5", [1, 2])
    os.remove(batches / "test_batch")
    with pytest.raises(DataError) as caught:
        cifar10.read_batches(batches)
    assert len(caught.value.problems) == 6
    assert sum("not a CIFAR-10 batch" in problem for problem in caught.value.problems) == 4
    assert "test_batch is missing" in caught.value.problems[-1]


def first(part, label, count):
    rows = [row for row, value in enumerate(part["label"]) if value == label][:count]
    return [decode(read(part.data.table["image"][row].as_py()), "x") for row in rows]


def test_the_forms_agree_on_order_and_classes(real_data):
    lossless = loading.load(DataConfig(root=str(real_data / "cifar10/cifar10_lossless_5000.npz")), 0)
    folder = loading.load(DataConfig(root=str(real_data / "cifar10/cifar10_jpeg.zip")), 0)
    names = folder["train"].features["label"].names
    assert names == lossless["train"].features["label"].names == list(cifar10.CLASSES)
    assert [len(folder[name]) for name in ("train", "validation", "test")] == [45_000, 5_000, 10_000]
    assert [len(lossless[name]) for name in ("train", "validation", "test")] == [3_600, 400, 1_000]
    assert np.bincount(folder["validation"]["label"]).tolist() == [500] * 10
    # The k-th image of a class of the lossless test half is the k-th of its JPEG folder, but for losses.
    for label in (0, 3, 9):
        exact, lossy = first(lossless["test"], label, 3), first(folder["test"], label, 3)
        for left, right in zip(exact, lossy, strict=True):
            error = np.mean((left.astype(float) - right) ** 2)
            assert 10 * np.log10(255**2 / error) > 22
