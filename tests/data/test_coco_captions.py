"""The JSON of COCO and of Karpathy's splits: the same samples as a table, and every fault told."""

import json
from pathlib import Path
from typing import Any

import pytest

from finesight.data import captions
from finesight.data.captions import CaptionsConfig, texts_of
from finesight.errors import DataError
from tests.data.making import make_folder

COUNT = 10


def coco() -> dict[str, Any]:
    """As captions_val2017.json."""
    images = [{"id": 100 + number, "file_name": f"{number:02d}.png", "width": 9} for number in range(COUNT)]
    notes = [
        {"id": 3 * number + place, "image_id": 100 + number, "caption": f"picture  {number} by {place}\n"}
        for place in range(2)
        for number in range(COUNT)
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": notes}


def karpathy() -> dict[str, Any]:
    """As dataset_coco.json."""
    splits = ["train"] * 5 + ["restval", "val", "val", "test", "test"]
    images = [
        {
            "filepath": "val2014", "filename": f"{number:02d}.png", "split": splits[number], "cocoid": number,
            "sentences": [{"raw": f"picture {number} by {place}", "tokens": []} for place in range(2)],
        }
        for number in range(COUNT)
    ]  # fmt: skip
    return {"images": images, "dataset": "coco"}


def place(folder: Path, content: Any, name: str = "dataset.json", images: str = "") -> Path:
    make_folder(folder, [f"{images}{number:02d}.png" for number in range(COUNT)])
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def load(path: Path, **options: Any) -> Any:
    return captions.load(CaptionsConfig(root=str(path), **options), 0)


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("captions.json", ""),
        ("captions.json", "images/"),
        ("annotations/captions_val2017.json", "val2017/"),
        ("annotations/captions_val2017.json", "images/"),
        ("annotations/captions_val2017.json", ""),
    ],
)
def test_annotations_of_coco(tmp_path: Path, name: str, images: str) -> None:
    data = load(place(tmp_path, coco(), name, images))
    found = dict(pair for part in data.values() for pair in zip(part["id"], texts_of(part), strict=True))
    assert found == {f"{n:02d}.png": [f"picture {n} by 0", f"picture {n} by 1"] for n in range(COUNT)}
    assert {split: len(part) for split, part in data.items()} == {"train": 7, "validation": 1, "test": 2}


def test_splits_of_karpathy(tmp_path: Path) -> None:
    path = place(tmp_path, karpathy(), images="val2014/")
    data = load(path)
    assert {split: len(part) for split, part in data.items()} == {"train": 6, "validation": 2, "test": 2}
    assert data["test"]["id"] == ["val2014/08.png", "val2014/09.png"]
    assert texts_of(data["test"])[0] == ["picture 8 by 0", "picture 8 by 1"]


def test_the_images_may_be_elsewhere(tmp_path: Path) -> None:
    path = place(tmp_path / "here", coco())
    moved = path.rename(tmp_path / "alone.json")
    with pytest.raises(DataError, match=r"row 1: no image at .*00\.png"):
        load(moved)
    assert len(load(moved, image_folder=str(tmp_path / "here"))["train"]) == 7
    with pytest.raises(DataError, match="image_folder .* no such folder"):
        load(moved, image_folder=str(tmp_path / "nowhere"))


def changed(**parts: Any) -> dict[str, Any]:
    return coco() | parts


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not readable as JSON"),
        ("[1]", "not the JSON of COCO"),
        ({"images": []}, "lists no images"),
        ({"images": [{"id": 1}]}, "1 images have no file name, such as number 1"),
        (changed(images=coco()["images"] + [{"id": 100, "file_name": "x.png"}]), "1 images have no id of their own"),
        (changed(images=coco()["images"] + [{"id": 7, "file_name": "00.png"}]), "row 11: the caption is empty"),
        (
            changed(annotations=coco()["annotations"] + [{"image_id": 5, "caption": "x"}]),
            "annotation 21: no image with",
        ),
        (changed(annotations=[{"image_id": 5, "caption": "x"}]), "annotation 1: no image with the id 5"),
        (changed(annotations=coco()["annotations"] + [{"image_id": 101}]), "hold an empty one: '01.png'"),
        ({"images": [{"filename": "00.png", "split": "mine", "sentences": [{"raw": "a"}]}]}, "split 'mine' is not one"),
    ],
)
def test_faults_are_told(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load(place(tmp_path, content))
