import random
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest

from finesight import config as configuration
from finesight.config import Section
from finesight.data import folders, unlabelled
from finesight.data.images import decode_resized
from finesight.data.unlabelled import AutoencodingDataConfig, ImagesConfig
from finesight.errors import ConfigError, DataError
from tests.data.making import class_names, make_folder, make_zip
from tests.data.test_kvasir import CLASSES
from tests.data.test_rocov2 import make as make_rocov2

COLUMNS = ["id", "image", "label", "group"]


def load(root, seed=0, **options):
    return unlabelled.load(AutoencodingDataConfig(root=str(root), **options), seed)


def ids(data):
    return {name: part["id"][:] for name, part in data.items()}


def numbered(count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{number:02d}.png" for number in range(count)]


def different(root: Path, names: list[str]) -> Path:
    """As `make_folder`, but no image is one of the first hundred that it makes."""
    make_folder(root, [f"skipped/{name}" for name in numbered(100)] + names)
    shutil.rmtree(root / "skipped")
    return root


def test_the_form_that_everything_else_relies_on(tmp_path):
    data = load(make_folder(tmp_path, numbered(20)))
    assert list(data) == ["train", "validation", "test"]
    assert [len(part) for part in data.values()] == [14, 2, 4]
    for part in data.values():
        assert part.column_names == COLUMNS
        assert part.features["label"].names == ["image"]
        assert set(part["label"]) == {0}
        assert part["group"][:] == part["id"][:] == sorted(part["id"])
        for row in part.cast_column("image", datasets.Image(decode=False)):
            assert row["image"] == {"bytes": None, "path": str(tmp_path / row["id"])}
    assert sorted(name for part in data.values() for name in part["id"]) == numbered(20)


def test_splits_depend_on_the_seed_and_not_on_the_listing(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "data", class_names(15))
    first = ids(load(folder))
    assert ids(load(make_zip(tmp_path / "a.zip", folder, "around/"))) == first
    walk = folders._walk

    def shuffled(root):
        files, below = walk(root)
        random.shuffle(files)
        return files, below

    monkeypatch.setattr(folders, "_walk", shuffled)
    assert ids(load(folder)) == first
    assert ids(load(folder, seed=1)) != first


def test_class_folders_are_no_labels_but_can_be_groups(tmp_path):
    data = load(make_folder(tmp_path, [f"p{patient}/{photo}.png" for patient in range(20) for photo in range(3)]))
    assert any(len(set(part["id"])) % 3 for part in data.values())
    data = load(tmp_path, group="folder")
    homes = [set(part["group"]) for part in data.values()]
    assert [len(home) for home in homes] == [14, 2, 4]
    assert len(set().union(*homes)) == 20


def test_given_splits_are_kept_and_missing_ones_made(tmp_path):
    make_folder(tmp_path, [*numbered(20, "train/"), *class_names(5, prefix="test/")])
    data = load(tmp_path)
    assert ids(data)["test"] == class_names(5, prefix="test/")
    assert len(data["validation"]) == 2
    new = load(tmp_path, splits="new")
    assert {name.split("/")[0] for name in ids(new)["test"]} == {"train", "test"}


def test_limits_and_notes(tmp_path):
    root = make_folder(tmp_path / "root", class_names(20, CLASSES))
    other = different(tmp_path / "other", numbered(5))
    config = AutoencodingDataConfig(root=str(root), anomalies=str(other), limit_train=6, limit_test=3)
    data = unlabelled.load(config, 0)
    assert [len(part) for part in data.values()] == [6, 3, 3, 5]
    notes = config.notes(data)
    assert "No labels were read." in notes
    assert "Of the class folders only the normal ones were read: normal-cecum, normal-z-line." in notes
    assert notes[-1].startswith("The 5 anomalies were never trained on")
    assert config.where == f"{tmp_path}/root, anomalies {tmp_path}/other"


def test_rocov2_keeps_its_splits_and_needs_no_captions(tmp_path):
    root = make_rocov2(tmp_path, train=[f"a.{number}" for number in range(10)], test=["t.1", "t.2"])
    (root / "train_captions.csv").unlink()
    data = load(root, group=r"\.(\d)", splits="new")
    assert sum(map(len, data.values())) == 12
    data = load(root)
    assert [len(part) for part in data.values()] == [9, 1, 2]
    assert ids(data)["test"] == ["t.1", "t.2"]


def test_other_sources_lose_their_labels(tmp_path):
    data = load("sklearn:digits", limit_test=30)
    assert [len(part) for part in data.values()] == [1294, 144, 30]
    assert data["train"].features["label"].names == ["image"]
    np.savez(tmp_path / "x.npz", images=np.zeros((9, 4, 4), np.uint8), labels=np.arange(9) % 3)
    assert [len(part) for part in load(tmp_path / "x.npz").values()] == [6, 1, 2]


@pytest.mark.parametrize("columns", ["file_name", "split;file_name", "file_name,label"])
def test_a_table_needs_no_labels(tmp_path, columns):
    make_folder(tmp_path, numbered(10))
    cells = {"file_name": "{}", "split;file_name": "train;{}", "file_name,label": "{},"}[columns]
    rows = [columns, *(cells.format(name) for name in numbered(10))]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    assert [len(part) for part in load(tmp_path / "x.csv").values()] == [7, 1, 2]


def test_other_tables_without_labels(tmp_path):
    make_folder(tmp_path, numbered(10))
    (tmp_path / "x.jsonl").write_text("\n".join(f'{{"path": "{name}"}}' for name in numbered(10)))
    assert [len(part) for part in load(tmp_path / "x.jsonl").values()] == [7, 1, 2]
    datasets.Dataset.from_dict({"scan": numbered(10)}).to_parquet(tmp_path / "x.parquet")
    assert [len(part) for part in load(tmp_path / "x.parquet", image_column="scan").values()] == [7, 1, 2]
    with pytest.raises(DataError) as caught:
        load(tmp_path / "x.parquet")
    assert "label_column" not in str(caught.value)


def test_a_label_column_is_refused():
    class Root(Section):
        data: ImagesConfig = ImagesConfig()

    with pytest.raises(ConfigError, match=r"data.label_column: no labels are read here; leave it out \(given: 'y'\)"):
        configuration.build(Root, {"data": {"label_column": "y", "root": "x"}})
    with pytest.raises(ConfigError, match="data.root: required"):
        ImagesConfig().require()


@pytest.mark.parametrize(("count", "cause"), [(1, "1 image; at least 3"), (2, "2 images; at least 3")])
def test_too_few_images(tmp_path, count, cause):
    with pytest.raises(DataError, match=cause):
        load(make_folder(tmp_path, numbered(count)))


def test_no_images_and_no_source(tmp_path):
    with pytest.raises(DataError, match="holds no images. Give a folder or a zip of images"):
        load(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"a.zip: the file is empty \(0 bytes\)"):
        load(tmp_path / "a.zip")
    with pytest.raises(DataError, match="No data given"):
        unlabelled.load(ImagesConfig(), 0)


def test_three_images_are_enough(tmp_path):
    assert [len(part) for part in load(make_folder(tmp_path, numbered(3))).values()] == [1, 1, 1]


def test_anomalies_are_a_split_of_their_own(tmp_path):
    root = make_folder(tmp_path / "root", numbered(20))
    plain = ids(load(root))
    other = different(tmp_path / "other", numbered(4, "train/") + numbered(3, "test/"))
    data = load(root, anomalies=str(other))
    assert list(data) == ["train", "validation", "test", "anomalies"]
    assert data["anomalies"].column_names == COLUMNS
    assert data["anomalies"].features == data["train"].features
    assert ids(data) == plain | {"anomalies": numbered(3, "test/") + numbered(4, "train/")}
    assert data["anomalies"]["group"][:] == data["anomalies"]["id"][:]
    same_names = different(tmp_path / "same", numbered(4))
    assert ids(load(root, anomalies=str(same_names)))["anomalies"] == numbered(4, "anomalies/")


def test_of_one_kvasir_set_the_abnormal_classes_are_the_anomalies(tmp_path):
    root = make_folder(tmp_path / "kvasir", class_names(10, CLASSES))
    data = load(root, anomalies=str(root))
    learnt = [name for split in ("train", "validation", "test") for name in data[split]["id"]]
    assert sorted(learnt) == class_names(10, CLASSES[1:3])
    assert ids(data)["anomalies"] == class_names(10, (CLASSES[0], CLASSES[3]))


@pytest.mark.parametrize("packed", ["folder", "zip"])
def test_the_same_file_on_both_sides_is_refused_however_it_is_packed(tmp_path, packed):
    root = make_folder(tmp_path / "root", numbered(10))
    other = different(tmp_path / "other", numbered(4))
    shutil.copy(root / "03.png", other / "copy.png")
    shutil.copy(root / "07.png", other / "also.png")
    place = make_zip(tmp_path / "a.zip", other) if packed == "zip" else other
    with pytest.raises(DataError, match=r"the anomalies hold 2 images of root: 'also.png', 'copy.png'"):
        load(root, anomalies=str(place))
    with pytest.raises(DataError, match="the anomalies hold 10 images of root"):
        load(root, anomalies=str(root))


def test_groups_of_anomalies(tmp_path, caplog):
    root = make_folder(tmp_path / "root", [f"p{patient}/{photo}.png" for patient in range(9) for photo in range(2)])
    nested = different(tmp_path / "nested", ["p1/a.png", "p1/b.png", "p99/c.png"])
    assert load(root, group="folder", anomalies=str(nested))["anomalies"]["group"][:] == ["p1", "p1", "p99"]
    assert not caplog.records
    flat = different(tmp_path / "flat", numbered(3))
    assert load(root, group="folder", anomalies=str(flat))["anomalies"]["group"][:] == numbered(3)
    assert "Each anomaly is a group of its own" in caplog.text


def test_a_test_set_is_everything_or_the_test_split(tmp_path):
    folder = make_folder(tmp_path / "a", numbered(4))
    found = unlabelled.load_test(ImagesConfig(root=str(folder)), ["image"])
    assert found["id"][:] == numbered(4)
    assert found.features["label"].names == ["image"]
    split = make_folder(tmp_path / "b", [*numbered(4, "train/"), *numbered(2, "test/")])
    assert unlabelled.load_test(ImagesConfig(root=str(split)), ["image"])["id"][:] == numbered(2, "test/")


def test_near_duplicates_join_groups(tmp_path):
    folder = make_folder(tmp_path, numbered(12))
    for number in range(6):
        shutil.copy(folder / f"{number:02d}.png", folder / f"copy{number:02d}.png")
    data = load(folder, near_duplicates="group")
    for part in data.values():
        names = set(part["id"])
        assert all((f"copy{number:02d}.png" in names) == (f"{number:02d}.png" in names) for number in range(6))


def test_the_radiology_set(real_data):
    data = load(real_data / "radiology")
    assert [len(part) for part in data.values()] == [205, 23, 57]
    row = data["test"].cast_column("image", datasets.Image(decode=False))[3]
    assert decode_resized(row["image"], row["id"], 64).std() > 10


def test_polyps_with_a_test_share_made_from_train(real_data):
    data = load(real_data / "kvasir_seg" / "kvasir_seg.zip")
    assert [len(part) for part in data.values()] == [560, 200, 140]
    for part in data.values():
        paths = part.data.table["image"].combine_chunks().field("path").to_pylist()
        assert not any("masks/" in path for path in paths)


def test_all_splits_of_saved_anomalies_count_whatever_they_are_called(tmp_path):
    root = make_folder(tmp_path / "root", numbered(5))
    other = different(tmp_path / "other", numbered(6))
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["polyp"]))
    parts = {"train": numbered(6)[:2], "held_back": numbered(6)[2:]}
    saved = {
        split: datasets.Dataset.from_dict(
            {"image": [str(other / name) for name in names], "label": [0] * len(names)}, features
        )
        for split, names in parts.items()
    }
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "saved"))
    data = load(root, anomalies=str(tmp_path / "saved"))
    assert len(data["anomalies"]) == 6
    assert data["anomalies"].features["label"].names == ["image"]
