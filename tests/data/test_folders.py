import os
import zipfile

import pytest

from finesight.data import folders
from finesight.data.images import split_zip_path
from finesight.errors import DataError
from tests.data.making import class_names, encoded, make_folder, make_zip, pixels


def summary(samples):
    return sorted(
        zip(
            samples.ids,
            [samples.classes[label] for label in samples.labels],
            samples.splits or [None] * len(samples.ids),
            samples.folders,
            strict=True,
        )
    )


def test_classes_at_the_top(tmp_path):
    samples = folders.read_folder(make_folder(tmp_path, ["class10/1.png", "class2/1.PNG", "class2/2.png"]))
    assert samples.classes == ["class2", "class10"]
    assert summary(samples) == [
        ("class10/1.png", "class10", None, ""),
        ("class2/1.PNG", "class2", None, ""),
        ("class2/2.png", "class2", None, ""),
    ]
    assert samples.images[0].as_py() == {"bytes": None, "path": str(tmp_path / samples.ids[0])}


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), ("Training", "train"), ("val", "validation"), ("valid", "validation")]
    + [("VALIDATION", "validation"), ("dev", "validation"), ("test", "test"), ("testing", "test")],
)
def test_splits_at_the_top(tmp_path, name, split):
    make_folder(tmp_path, [*class_names(2, prefix=f"{name}/"), "train/cat/leaf/x.png"])
    samples = folders.read_folder(tmp_path)
    assert samples.classes == ["cat", "dog"]
    assert (f"{name}/cat/00.png", "cat", split, "") in summary(samples)
    assert ("train/cat/leaf/x.png", "cat", "train", "leaf") in summary(samples)


def test_a_zip_is_the_same_as_its_folder_with_or_without_a_folder_around_it(tmp_path):
    folder = make_folder(tmp_path / "data", [*class_names(3, prefix="train/"), *class_names(2, prefix="test/")])
    expected = summary(folders.read_folder(folder))
    for number, prefix in enumerate(["", "around/", "around/it all/"]):
        samples = folders.read_zip(make_zip(tmp_path / f"{number}.zip", folder, prefix))
        assert summary(samples) == expected
        for name, image in zip(samples.ids, samples.images, strict=True):
            assert split_zip_path(image.as_py()["path"]) == (str(tmp_path / f"{number}.zip"), f"{prefix}{name}")
    assert summary(folders.read_folder(tmp_path / "data")) == expected
    os.rename(folder, tmp_path / "deeper")
    (tmp_path / "data").mkdir()
    os.rename(tmp_path / "deeper", tmp_path / "data" / "inner")
    assert summary(folders.read_folder(tmp_path / "data")) == expected


def test_clutter_and_other_files_are_ignored(tmp_path):
    names = class_names(2)
    make_folder(tmp_path, [*names, ".git/cat/1.png", "cat/._00.png", "__MACOSX/cat/1.png", "cat/.x/1.png"])
    for name in ("readme.md", "cat/Thumbs.db", "cat/.DS_Store", "cat/notes.txt"):
        (tmp_path / name).write_text("x")
    assert sorted(folders.read_folder(tmp_path).ids) == names


def test_a_class_may_be_named_like_a_split(tmp_path):
    samples = folders.read_folder(make_folder(tmp_path, class_names(2, ("bus", "car", "train"))))
    assert samples.classes == ["bus", "car", "train"]
    assert samples.splits is None


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        ([], "holds no images and no files"),
        (["train/1.png", "test/1.png"], "images lie directly in 'test', 'train', without class folders"),
        (["train/cat/1.png", "extra/cat/1.png"], "'train' look like splits .* but 'extra' do not"),
        (["cat/1.png", "dog/1.png", "1.png", "2.png"], r"2 images lie outside any class folder \('1.png', '2.png'\)"),
        (["train/cat/1.png", "train/dog/1.png", "test/1.png"], r"1 images lie outside .*'test/1.png'"),
    ],
)
def test_other_layouts_are_explained(tmp_path, names, cause):
    make_folder(tmp_path, names)
    with pytest.raises(DataError, match=cause):
        folders.read_folder(tmp_path)


def test_an_empty_class_folder_and_stray_images_are_reported_together(tmp_path):
    make_folder(tmp_path, [*class_names(2), "stray.png"])
    (tmp_path / "horse").mkdir()
    (tmp_path / "cow").mkdir()
    with pytest.raises(DataError) as caught:
        folders.read_folder(tmp_path)
    assert len(caught.value.problems) == 3
    assert "class folder 'cow' holds no images" in caught.value.problems[1]


def test_a_class_folder_empty_in_one_split_only_is_fine(tmp_path):
    make_folder(tmp_path, class_names(2, prefix="train/"))
    (tmp_path / "test" / "cat").mkdir(parents=True)
    make_folder(tmp_path, ["test/dog/1.png"])
    assert len(folders.read_folder(tmp_path).ids) == 5


def test_a_folder_of_tables_says_what_to_give(tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\n")
    with pytest.raises(DataError, match=r"no images \(but 'labels.csv': to use one of these, give its path\)"):
        folders.read_folder(tmp_path)


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    make_folder(tmp_path / "away", ["1.png", "2.png"])
    make_folder(tmp_path / "data", ["cat/1.png", "cat/2.png"])
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "away")
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data")
    assert sorted(folders.read_folder(tmp_path / "data").ids) == class_ids("cat") + class_ids("dog")


def class_ids(name):
    return [f"{name}/1.png", f"{name}/2.png"]


def test_a_file_name_that_is_no_utf8_is_reported(tmp_path):
    make_folder(tmp_path, class_names(2))
    with open(os.fsencode(tmp_path) + b"/cat/\xff.png", "wb") as file:
        file.write(encoded(pixels()))
    with pytest.raises(DataError, match=r"file name 'cat/\\udcff.png' is not valid UTF-8"):
        folders.read_folder(tmp_path)


def test_a_zip_without_images_or_with_an_attack_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(DataError, match=r"a.zip: holds no images \(only .txt\)"):
        folders.read_zip(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("cat/1.png", "x")
        archive.writestr("../dog/1.png", "x")
    with pytest.raises(DataError, match=r"'../dog/1.png' climbs out"):
        folders.read_zip(tmp_path / "b.zip")
