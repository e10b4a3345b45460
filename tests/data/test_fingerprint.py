import hashlib
import json
import multiprocessing
import os

import datasets
import pytest

from finesight.data import fingerprint as module
from finesight.data import loading
from finesight.data.config import DataConfig
from finesight.data.fingerprint import content_hashes, fingerprint
from finesight.errors import DataError
from tests.data.making import class_names, encoded, make_folder, make_zip, pixels

NAMES = class_names(20)


@pytest.fixture
def folder(tmp_path):
    made = make_folder(tmp_path / "data", NAMES)
    age(made)
    return made


def age(folder, seconds=100):
    """Make files old enough to be remembered."""
    for path in folder.rglob("*.*"):
        state = path.stat()
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns - seconds * 10**9))


def load(root, **options):
    return loading.load(DataConfig(root=str(root), **options), 0)


def test_files_are_hashed_by_content(folder, tmp_path):
    data = load(folder)["train"]
    expected = [hashlib.blake2b((folder / name).read_bytes(), digest_size=16).hexdigest() for name in data["id"]]
    assert content_hashes(data, tmp_path / "cache") == expected
    assert len(set(expected)) == len(data)


def test_inline_bytes_are_hashed_like_files(folder, tmp_path):
    data = load(folder)["train"]
    rows = [{"bytes": (folder / name).read_bytes(), "path": None} for name in data["id"]]
    inline = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features(image=datasets.Image()))
    assert content_hashes(inline, tmp_path / "cache") == content_hashes(data, tmp_path / "cache")
    assert content_hashes(inline.select([5, 3]), tmp_path) == content_hashes(data.select([5, 3]), tmp_path)


def test_zip_members_depend_on_archive_and_name(folder, tmp_path):
    data = load(make_zip(tmp_path / "a.zip", folder))["train"]
    first = content_hashes(data, tmp_path / "cache")
    assert len(set(first)) == len(data)
    (folder / NAMES[0]).write_bytes(encoded(pixels(99)))
    changed = load(make_zip(tmp_path / "a.zip", folder))["train"]
    assert not set(first) & set(content_hashes(changed, tmp_path / "cache"))


def test_the_fingerprint_is_of_the_data_and_not_of_its_place(folder, tmp_path):
    first = fingerprint(load(folder), tmp_path / "cache")
    os.rename(folder, tmp_path / "elsewhere")
    assert fingerprint(load(tmp_path / "elsewhere"), tmp_path / "other cache") == first
    assert len(first) == 32


@pytest.mark.parametrize("change", ["pixel", "label", "id", "order", "split", "class name", "one image less"])
def test_every_change_changes_the_fingerprint(folder, tmp_path, change):
    data = load(folder)
    first = fingerprint(data, tmp_path / "cache")
    train = data["train"]
    if change == "pixel":
        (folder / train["id"][3]).write_bytes(encoded(pixels(99, 4, 4)))
    elif change == "label":
        features = train.features
        train = train.map(
            lambda row, number: {"label": 1 - row["label"] if number == 3 else row["label"]}, with_indices=True
        )
        data["train"] = train.cast(features)
    elif change == "id":
        data["train"] = train.map(lambda row, number: {"id": row["id"] + "x" * (number == 3)}, with_indices=True)
    elif change == "order":
        data["train"] = train.select([1, 0, *range(2, len(train))])
    elif change == "split":
        data = datasets.DatasetDict(train=data["validation"], validation=train, test=data["test"])
    elif change == "class name":
        data["train"] = train.cast_column("label", datasets.ClassLabel(names=["cat", "hound"]))
    else:
        data["train"] = train.select(range(len(train) - 1))
    assert fingerprint(data, tmp_path / "cache") != first


def test_files_are_read_once_until_they_change(folder, tmp_path, monkeypatch):
    data = load(folder)["train"]
    first = content_hashes(data, tmp_path / "cache")
    read = []
    hash_file = module._hash_file
    monkeypatch.setattr(module, "_hash_file", lambda path: read.append(path) or hash_file(path))
    assert content_hashes(data, tmp_path / "cache") == first
    assert read == []
    path = folder / data["id"][0]
    state = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"!")  # the same size at another time
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert content_hashes(data, tmp_path / "cache")[0] != first[0]
    assert read == [str(path)]


def test_a_file_changed_just_now_is_not_remembered(folder, tmp_path, monkeypatch):
    path = folder / NAMES[0]
    data = load(folder)
    split = next(part for part in data.values() if NAMES[0] in part["id"][:])
    row = split["id"][:].index(NAMES[0])
    os.utime(path)
    first = content_hashes(split, tmp_path / "cache")[row]
    state = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # within one tick of the clock
    assert content_hashes(split, tmp_path / "cache")[row] != first


@pytest.mark.parametrize("content", [b"", b"no json", b"[1]", b'{"a": 1}', b"\xff\xfe"])
def test_a_damaged_memo_is_replaced(folder, tmp_path, content):
    data = load(folder)["train"]
    expected = content_hashes(data, tmp_path / "first")
    memo = tmp_path / "cache" / "file_hashes.json"
    memo.parent.mkdir()
    memo.write_bytes(content)
    assert content_hashes(data, tmp_path / "cache") == expected
    assert len(json.loads(memo.read_text())) >= len(data)


def test_an_unwritable_cache_folder_costs_only_time(folder, tmp_path):
    data = load(folder)["train"]
    expected = content_hashes(data, tmp_path / "cache")
    (tmp_path / "file").write_text("a file, where a folder is needed")
    assert content_hashes(data, tmp_path / "file" / "cache") == expected


def hash_part(task):
    root, cache, split = task
    return content_hashes(load(root)[split], cache)


def test_processes_may_share_the_memo(folder, tmp_path):
    tasks = [(folder, tmp_path / "cache", split) for split in ("train", "validation", "test")] * 4
    with multiprocessing.get_context("fork").Pool(4) as pool:
        results = pool.map(hash_part, tasks)
    assert results == [hash_part((root, tmp_path / "fresh", split)) for root, _, split in tasks]
    json.loads((tmp_path / "cache" / "file_hashes.json").read_text())
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["file_hashes.json"]


def test_a_vanished_file_is_named(folder, tmp_path):
    data = load(folder)["train"]
    os.remove(folder / data["id"][2])
    with pytest.raises(DataError, match=f"{data['id'][2]}: cannot be read: No such file"):
        content_hashes(data, tmp_path / "cache")
