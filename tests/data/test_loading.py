import random
import sys
import time
import types

import datasets
import numpy as np
import pytest

from finesight.data import folders, loading
from finesight.data.config import DataConfig
from finesight.data.images import decode_resized
from finesight.errors import DataError
from tests.data.making import class_names, make_folder, make_zip

COLUMNS = ["id", "image", "label", "group"]


def load(root, seed=0, **options):
    return loading.load(DataConfig(root=str(root), **options), seed)


def ids(data):
    return {name: part["id"][:] for name, part in data.items()}


def test_the_form_that_everything_else_relies_on(tmp_path):
    data = load(make_folder(tmp_path, class_names(10)))
    assert list(data) == ["train", "validation", "test"]
    assert [len(part) for part in data.values()] == [14, 2, 4]
    for part in data.values():
        assert part.column_names == COLUMNS
        assert isinstance(part.features["image"], datasets.Image)
        assert part.features["label"].names == ["cat", "dog"]
        assert part["group"][:] == part["id"][:] == sorted(part["id"])
        for row in part.cast_column("image", datasets.Image(decode=False)):
            assert row["image"] == {"bytes": None, "path": str(tmp_path / row["id"])}
            assert row["id"].startswith(["cat", "dog"][row["label"]])
        assert part.data.table["image"].num_chunks == 1  # no index behind which reading column-wise is slow
    every = [name for part in data.values() for name in part["id"]]
    assert sorted(every) == sorted(class_names(10))


def test_splits_depend_on_the_seed_and_not_on_the_listing(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "data", class_names(30))
    first = ids(load(folder))
    archive = make_zip(tmp_path / "a.zip", folder, "around/")  # written in reverse order
    assert ids(load(archive)) == first
    walk = folders._walk

    def shuffled(root):
        files, below = walk(root)
        random.shuffle(files)
        return files, below

    monkeypatch.setattr(folders, "_walk", shuffled)
    assert ids(load(folder)) == first
    assert ids(load(folder, seed=1)) != first


def test_given_splits_are_kept_and_missing_ones_made(tmp_path):
    make_folder(tmp_path, [*class_names(20, prefix="train/"), *class_names(5, prefix="test/")])
    data = load(tmp_path, validation=0.2)
    assert ids(data)["test"] == class_names(5, prefix="test/")
    assert len(data["validation"]) == 8
    assert all(name.startswith("train/") for name in ids(data)["validation"])
    new = load(tmp_path, splits="new")
    assert {name.split("/")[0] for name in ids(new)["test"]} == {"train", "test"}


def test_groups_stay_together(tmp_path):
    make_folder(tmp_path, [f"{name}/p{leaf}/{photo}.png" for name in "ab" for leaf in range(20) for photo in range(3)])
    data = load(tmp_path, group="folder")
    homes = {name: set(part["group"]) for name, part in data.items()}
    assert sum(map(len, homes.values())) == 20
    assert all(len(home) > 1 for home in homes.values())
    assert load(tmp_path, group=r"^(\w/p\d+)/")["test"]["group"][0].startswith("a/p")


def test_groups_that_straddle_given_splits_stop_the_run(tmp_path):
    make_folder(tmp_path, [*class_names(4, prefix="train/"), *class_names(2, prefix="test/")])
    with pytest.raises(DataError, match="4 of 8 groups lie in more than one of the given splits.*--data.splits new"):
        load(tmp_path, group=r"/(\w+/\d+)")
    load(tmp_path, group=r"/(\w+/\d+)", splits="new")


def test_near_duplicates_join_groups(tmp_path, monkeypatch):
    seen = {}

    def near_duplicate_groups(dataset, sixteen_bit):
        seen.update(columns=dataset.column_names, sixteen_bit=sixteen_bit)
        return [int(name.split("/")[1][:2]) // 5 for name in dataset["id"]]  # 5 numbers at a time, of both classes

    stand_in = types.ModuleType("finesight.data.duplicates")
    stand_in.near_duplicate_groups = near_duplicate_groups
    monkeypatch.setitem(sys.modules, "finesight.data.duplicates", stand_in)
    monkeypatch.setattr("finesight.data.duplicates", stand_in, raising=False)
    make_folder(tmp_path, class_names(40))
    data = load(tmp_path, near_duplicates="group", sixteen_bit="minmax")
    assert seen == {"columns": COLUMNS, "sixteen_bit": "minmax"}
    homes = [set(part["group"]) for part in data.values()]
    assert sum(map(len, homes)) == 8
    for part in data.values():
        assert len(part) % 10 == 0


def test_limits(tmp_path):
    data = load(make_folder(tmp_path, class_names(20)), limit_train=6, limit_validation=2, limit_test=4)
    assert [np.bincount(part["label"]).tolist() for part in data.values()] == [[3, 3], [1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("names", "causes"),
    [
        (class_names(5, ("cat",)), ["only one class, 'cat' (5 images)"]),
        ([*class_names(5), "horse/1.png"], ["Class 'horse' has 1 image;"]),
        (
            [*class_names(5), "cow/1.png", "horse/1.png"],
            ["Class 'cow' has 1 image;", "Class 'horse' has 1 image;"],
        ),
        (
            [*class_names(5, prefix="train/"), *class_names(2, ("cow", "dog", "fox"), prefix="test/")],
            ["The test split has classes without any training image: 'cow', 'fox'."],
        ),
    ],
)
def test_classes_that_cannot_be_learnt_are_reported_together(tmp_path, names, causes):
    make_folder(tmp_path, names)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert len(caught.value.problems) == len(causes)
    for problem, cause in zip(caught.value.problems, causes, strict=True):
        assert cause in problem


def test_new_splits_mend_a_class_that_only_the_test_split_has(tmp_path):
    make_folder(tmp_path, [*class_names(5, prefix="train/"), *class_names(3, ("cow",), prefix="test/")])
    assert "cow" in {name.split("/")[1] for name in load(tmp_path, splits="new")["train"]["id"]}


def test_a_root_that_is_not_there_names_the_nearest(tmp_path):
    make_folder(tmp_path / "tomatoes", class_names(3))
    with pytest.raises(DataError, match=r"tomatos: no such file or folder; did you mean '.*/tomatoes'\?"):
        load(tmp_path / "tomatos")
    with pytest.raises(DataError, match=r"tomatos/train: no such file or folder; did you mean '.*/tomatoes'\?"):
        load(tmp_path / "tomatos" / "train")
    with pytest.raises(DataError, match=r"no such file or folder \('.*' exists\)\. Give an image folder"):
        load(tmp_path / "0123456789")
    with pytest.raises(DataError, match="No data given. Set --data.root to an image folder"):
        loading.load(DataConfig(), 0)


def test_files_that_are_no_source(tmp_path):
    for name, cause in (
        ("a.tar.gz", "Unpack it and give the folder"),
        ("a.jpg", ".jpg is no source that is read"),
        ("a", "a file without extension is no source"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DataError, match=cause):
            load(tmp_path / name)
    (tmp_path / "a.csv").write_bytes(b"")
    with pytest.raises(DataError, match=r"a.csv: the file is empty \(0 bytes\)"):
        load(tmp_path / "a.csv")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="nothing: holds no images and no files"):
        load(tmp_path / "nothing")


def test_home_and_relative_paths(tmp_path, monkeypatch):
    make_folder(tmp_path / "data", class_names(10))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert ids(load("~/data")) == ids(load("data")) == ids(load(tmp_path / "data"))
    image = load("data")["train"].data.table["image"][0].as_py()
    monkeypatch.chdir("/")
    assert decode_resized(image, "x", 4).shape == (3, 4, 4)  # found from anywhere


def test_ids_that_stand_twice_are_refused(tmp_path):
    np.savez(
        tmp_path / "x.npz",
        **{
            f"{split}_{kind}": np.zeros((4, 2, 2) if kind == "images" else 4, np.uint8)
            for split in ("val", "valid")
            for kind in ("images", "labels")
        },
    )
    with pytest.raises(DataError, match="4 ids stand twice: 'validation/00000'"):
        load(tmp_path / "x.npz")


def test_tomato_by_leaf(real_data):
    path = real_data / "tomato" / "tomato.zip"
    data = load(path, group="leaf")
    assert [len(part) for part in data.values()] == [724, 80, 196]
    assert "Tomato___Tomato_Yellow_Leaf_Curl_Virus" in data["train"].features["label"].names
    assert np.bincount(data["test"]["label"]).tolist() == [40, 40, 40, 20, 16, 40]
    new = load(path, group="leaf", splits="new")
    assert len(new["test"]) == 200
    for parts in (data, new):
        homes = [set(part["group"]) for part in parts.values()]
        assert sum(map(len, homes)) == len(set().union(*homes)) == 908
        row = parts["test"].cast_column("image", datasets.Image(decode=False))[7]
        assert decode_resized(row["image"], row["id"], 256).std() > 10


def test_60000_images_in_a_zip_are_loaded_in_seconds(real_data):
    start = time.perf_counter()
    data = load(real_data / "cifar10" / "cifar10_jpeg.zip")
    assert time.perf_counter() - start < 6  # 1.0 s when nothing else runs
    assert [len(part) for part in data.values()] == [45_000, 5_000, 10_000]


def test_archives_without_classes_say_what_is_expected(real_data):
    with pytest.raises(DataError, match="images lie directly in 'train', without class folders; expected FOLDER/CLASS"):
        load(real_data / "bsds500" / "images.zip")


def test_masks_beside_images_load_as_two_classes(real_data):
    data = load(real_data / "kvasir_seg" / "kvasir_seg.zip")
    assert data["train"].features["label"].names == ["images", "masks"]
    assert sum(map(len, data.values())) == 1800
