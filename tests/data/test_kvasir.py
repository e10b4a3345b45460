import io
import random
import zipfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from finesight.data import folders, images, kvasir
from finesight.data.images import decode_resized, split_zip_path
from finesight.errors import DataError
from tests.data.making import class_names, encoded, entry, make_folder, make_zip
from tests.data.test_borders import frame, with_text

CLASSES = ("esophagitis", "normal-cecum", "normal-z-line", "polyps")


def summary(samples):
    return sorted(zip(samples.ids, samples.splits or [None] * len(samples.ids), samples.folders, strict=True))


def test_normal_and_abnormal_classes(tmp_path):
    folder = make_folder(tmp_path / "kvasir", class_names(3, CLASSES))
    everything = kvasir.read(folder)
    assert kvasir.normal_classes(everything) == ["normal-cecum", "normal-z-line"]
    assert len(everything.ids) == 12
    assert everything.splits is None
    normal, abnormal = kvasir.read(folder, "normal"), kvasir.read(folder, "abnormal")
    assert sorted(normal.ids) == class_names(3, CLASSES[1:3])
    assert sorted(abnormal.ids) == class_names(3, (CLASSES[0], CLASSES[3]))
    assert normal.labels.tolist() == [0] * 6
    assert normal.classes == ["image"]
    for name, image in zip(normal.ids, normal.images, strict=True):
        assert image.as_py() == {"bytes": None, "path": str(folder / name)}


@pytest.mark.parametrize("which", ["normal", "abnormal", "all"])
def test_a_folder_around_it_and_a_zip_change_nothing(tmp_path, which, monkeypatch):
    folder = make_folder(tmp_path / "data", class_names(3, CLASSES, "train/") + class_names(2, CLASSES, "valid/"))
    expected = summary(kvasir.read(folder, which))
    assert {split for _, split, _ in expected} == {"train", "validation"}
    for number, prefix in enumerate(["", "around/", "around/it all/"]):
        path = make_zip(tmp_path / f"{number}.zip", folder, prefix)
        found = kvasir.read(path, which)
        assert summary(found) == expected
        for name, image in zip(found.ids, found.images, strict=True):
            assert split_zip_path(image.as_py()["path"]) == (str(path), f"{prefix}{name}")
    walk = folders._walk

    def shuffled(root):
        files, below = walk(root)
        random.shuffle(files)
        return files, below

    monkeypatch.setattr(folders, "_walk", shuffled)
    assert summary(kvasir.read(tmp_path / "data", which)) == expected


def test_a_single_normal_class_is_not_taken_for_an_enclosing_folder(tmp_path):
    folder = make_folder(tmp_path, ["normal-cecum/1.png", "normal-cecum/2.png"])
    assert sorted(kvasir.read(folder, "normal").ids) == ["normal-cecum/1.png", "normal-cecum/2.png"]
    with pytest.raises(DataError, match="all its classes are normal \\('normal-cecum'\\)"):
        kvasir.read(folder, "abnormal")


def test_without_normal_classes_normal_cannot_be_asked_for(tmp_path):
    folder = make_folder(tmp_path, class_names(2))
    with pytest.raises(DataError, match=r"has no class folder normal-.*Folders: 'cat', 'dog'"):
        kvasir.read(folder, "abnormal")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["images/1.png", "masks/1.png"], [("images/1.png", None, "")]),
        (["Kvasir-SEG/images/1.png", "Kvasir-SEG/masks/1.png"], [("images/1.png", None, "")]),
        (["Images/1.png", "annotations/1.png", "other/1.png"], [("Images/1.png", None, "")]),
        (
            ["images/train/1.png", "images/valid/p/2.png", "masks/train/1.png", "masks/valid/p/2.png"],
            [("images/train/1.png", "train", ""), ("images/valid/p/2.png", "validation", "p")],
        ),
        (
            ["a/train/images/1.png", "a/test/images/2.png", "a/train/masks/1.png", "a/test/masks/2.png"],
            [("test/images/2.png", "test", ""), ("train/images/1.png", "train", "")],
        ),
        (["images/1.png", "images/2.png"], [("1.png", None, ""), ("2.png", None, "")]),
        (["masks/1.png", "other/2.png"], [("masks/1.png", None, "masks"), ("other/2.png", None, "other")]),
    ],
)
def test_masks_beside_images_are_never_read(tmp_path, names, expected):
    folder = make_folder(tmp_path / "data", names)
    assert summary(kvasir.read(folder)) == expected
    assert summary(kvasir.read(make_zip(tmp_path / "a.zip", folder, "around/"))) == expected


def test_splits_at_the_top_are_honoured_or_explained(tmp_path):
    flat = make_folder(tmp_path / "flat", ["train/1.png", "test/2.png", "VAL/3.png"])
    assert [split for _, split, _ in summary(kvasir.read(flat))] == ["validation", "test", "train"]
    vehicles = make_folder(tmp_path / "vehicles", class_names(2, ("bus", "car", "train")))
    assert kvasir.read(vehicles).splits is None
    mixed = make_folder(tmp_path / "mixed", ["train/1.png", "test/2.png", "extra/3.png", "4.png"])
    with pytest.raises(DataError, match="'test', 'train' look like splits, but 'the images beside them', 'extra' do"):
        kvasir.read(mixed)


def test_nothing_to_read(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="holds no images. Give a folder or a zip"):
        kvasir.read(tmp_path)
    with pytest.raises(DataError, match="holds no images"):
        kvasir.read(tmp_path / "notes.txt")
    folder = make_folder(tmp_path / "a::b", ["1.png"])
    assert kvasir.read(folder).ids == ["1.png"]
    with pytest.raises(DataError, match="path with '::' in it"):
        kvasir.read(make_zip(tmp_path / "a::b" / "c.zip", folder))


def test_crop_border_is_what_fit_border_decodes():
    image = with_text(frame(300, 420, (150, 240), (120, 130)), 4, 3)
    for data in (encoded(image), encoded(image, "JPEG")):
        shown = images.decode(data, "x")
        cut = kvasir.crop_border(shown)
        assert cut.shape == (96, 96, 3)
        assert cut.dtype == np.uint8
        np.testing.assert_array_equal(decode_resized(entry(data), "x", 96, "border"), cut.transpose(2, 0, 1))
    top, left, side = 30, 120, 241
    by_hand = Image.fromarray(image[top : top + side, left : left + side]).resize((96, 96), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(kvasir.crop_border(image), np.asarray(by_hand))


def test_the_polyps_of_kvasir_seg(real_data):
    path = real_data / "kvasir_seg" / "kvasir_seg.zip"
    found = kvasir.read(path)
    assert Counter(found.splits) == {"train": 700, "validation": 200}
    assert all(name.startswith("images/") for name in found.ids)
    with zipfile.ZipFile(path) as archive:
        for name in found.ids[::90]:
            shown = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            entry_of = {"bytes": archive.read(name), "path": None}
            cut = kvasir.crop_border(shown)
            np.testing.assert_array_equal(decode_resized(entry_of, name, 96, "border"), cut.transpose(2, 0, 1))
            assert np.asarray(cut).std() > 10
