import os
import subprocess
import sys
import time

import datasets
import pyarrow.parquet as pq
import pytest

from finesight.data import hub, loading
from finesight.data.config import DataConfig
from finesight.data.images import decode, read
from finesight.errors import DataError
from tests.data.making import encoded, pixels

FEATURES = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])}


def made(count, seed=0, **more):
    """As from the Hub: encoded images inside, the class order its own."""
    columns = {
        "img": [{"bytes": encoded(pixels(seed + row)), "path": f"{row}.png"} for row in range(count)],
        "label": [row % 2 for row in range(count)],
    }
    features = datasets.Features({**FEATURES, **{name: datasets.Value("string") for name in more}})
    return datasets.Dataset.from_dict({**columns, **more}, features=features)


def save(folder, **parts):
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return str(folder)


def load(root, **options):
    return loading.load(DataConfig(root=root, **options), 0)


def test_a_saved_dataset_dict_keeps_splits_classes_and_pixels(tmp_path):
    data = load(save(tmp_path / "saved", train=made(40), test=made(10, 100)))
    assert {name: len(part) for name, part in data.items()} == {"train": 36, "validation": 4, "test": 10}
    assert data["test"].features["label"].names == ["dog", "cat"]
    assert data["test"]["id"][:2] == ["test/00000", "test/00001"]
    row = data["test"].cast_column("image", datasets.Image(decode=False))[3]
    assert (decode(read(row["image"]), "x") == pixels(103)).all()
    assert row["label"] == 1


def test_one_saved_dataset_is_split_anew_and_keeps_ids_and_groups(tmp_path):
    groups = [f"p{row // 4}" for row in range(40)]
    made(40, id=[f"x{row:02d}" for row in range(40)], patient=groups).save_to_disk(str(tmp_path / "one"))
    data = load(str(tmp_path / "one"), group="patient")
    homes = [set(part["group"]) for part in data.values()]
    assert sum(map(len, homes)) == len(set().union(*homes)) == 10
    assert sorted(name for part in data.values() for name in part["id"])[:2] == ["x00", "x01"]


def test_what_was_loaded_can_be_saved_and_loaded_again(tmp_path):
    first = load(save(tmp_path / "saved", train=made(40), test=made(10, 100)))
    first.save_to_disk(str(tmp_path / "again"))
    again = load(str(tmp_path / "again"))
    for name, part in first.items():
        assert part["id"][:] == again[name]["id"][:]
        assert part["label"][:] == again[name]["label"][:]


def test_unknown_splits_are_left_out_and_said(tmp_path, caplog):
    root = save(tmp_path / "saved", train=made(20), test=made(10), extra=made(30))
    assert sum(map(len, load(root).values())) == 30
    assert "the splits extra are left out" in caplog.text
    assert sum(map(len, load(root, splits="new").values())) == 60
    assert sum(map(len, load(save(tmp_path / "other", everything=made(30))).values())) == 30


def test_parquet_with_images_inside(tmp_path):
    made(20).to_parquet(str(tmp_path / "x.parquet"))
    data = load(str(tmp_path / "x.parquet"))
    assert sum(map(len, data.values())) == 20
    assert data["train"].features["label"].names == ["dog", "cat"]
    table = pq.read_table(tmp_path / "x.parquet").replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "plain.parquet")
    assert load(str(tmp_path / "plain.parquet"))["train"].features["label"].names == ["0", "1"]


def test_labels_out_of_range_or_missing_are_named(tmp_path):
    hidden = made(20).cast_column("label", datasets.Value("int64"))
    hidden = hidden.map(lambda row, number: {"label": [-1, None, 7, 0][min(number, 3)]}, with_indices=True)
    features = datasets.Features(FEATURES)
    hidden = datasets.Dataset(
        hidden.data.table.cast(features.arrow_schema), info=datasets.DatasetInfo(features=features)
    )
    with pytest.raises(DataError) as caught:
        load(save(tmp_path / "saved", train=made(20), test=hidden))
    assert [problem.split(", ")[-1] for problem in caught.value.problems] == [
        "test row 0: label -1 is out of range 0..1.",
        "test row 1: the label is missing.",
        "test row 2: label 7 is out of range 0..1.",
    ]


def test_columns_that_cannot_be_told_apart_must_be_named(tmp_path):
    data = made(20).rename_column("label", "coarse").add_column("fine", [str(row % 2) for row in range(20)])
    root = save(tmp_path / "saved", train=data.cast_column("fine", datasets.ClassLabel(names=["0", "1"])))
    with pytest.raises(
        DataError, match="no label column found by name; give --data.label_column. Columns: img, coarse, fine"
    ):
        load(root)
    assert load(root, label_column="fine")["train"].features["label"].names == ["0", "1"]


def test_splits_with_other_classes_are_refused(tmp_path):
    other = made(10).cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    # DatasetDict.save_to_disk would not notice either.
    with pytest.raises(DataError, match="split 'train' has other columns or classes than 'test'"):
        load(save(tmp_path / "saved", train=made(20), test=other))


def test_missing_images_and_damaged_folders(tmp_path):
    data = made(20).map(
        lambda row, number: {"img": None} if number == 3 else {},
        with_indices=True,
        features=datasets.Features(FEATURES),
    )
    with pytest.raises(DataError, match="column 'img': 1 of 20 images are missing"):
        load(save(tmp_path / "saved", train=data))
    root = save(tmp_path / "other", train=made(20))
    for name in os.listdir(f"{root}/train"):
        if name.endswith(".arrow"):
            with open(f"{root}/train/{name}", "wb") as file:
                file.write(b"no arrow")
    with pytest.raises(DataError, match="other: damaged"):
        load(root)


OFFLINE = """
import time
from finesight.data import loading
from finesight.data.config import DataConfig
from finesight.errors import DataError
start = time.perf_counter()
try:
    loading.load(DataConfig(root="hub:nobody/nothing-here", revision="abc"), 0)
except DataError as error:
    print(len(error.problems), time.perf_counter() - start, error)
"""


@pytest.mark.parametrize("why", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_the_hub_one_line_comes_within_seconds(tmp_path, why):
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment = {**kept, "HF_HOME": str(tmp_path), **why}
    result = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    count, seconds, message = result.stdout.split(" ", 2)
    assert int(count) == 1
    assert float(seconds) < 10
    assert message.count("\n") == 1
    assert message.startswith("hub:nobody/nothing-here: cannot be loaded (the Hub cannot be reached")
    assert "save_to_disk" in message
    assert "--data.root FOLDER" in message


def test_a_silent_hub_is_given_up_within_seconds(monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "_PROBE_SECONDS", 0.5)
        start = time.perf_counter()
        assert "cannot be reached" in (hub._probe("owner/name", None) or "")
        assert 0.4 < time.perf_counter() - start < 5


@pytest.mark.parametrize("name", ["../x", "a/b/c/d", "", "a b"])
def test_impossible_names_are_refused(name):
    with pytest.raises(DataError, match="expected hub:OWNER/NAME"):
        load(f"hub:{name}")


def test_a_local_folder_never_stands_in_for_a_repository(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="give its path without 'hub:'"):
        load("hub:owner/name")


def test_a_reachable_hub_gives_repository_configuration_and_revision(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options, datasets.config.HF_HUB_OFFLINE))
        return datasets.DatasetDict(train=made(20), test=made(10))

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_probe", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load("hub:owner/name/config", revision="abc")["test"]) == 10
    load("hub:mnist")
    assert asked == [(("owner/name", "config"), {"revision": "abc"}, False), (("mnist",), {"revision": None}, False)]


def test_without_network_the_cache_is_used_but_never_as_another_revision(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "owner___name" / "default" / "0.0.0" / commit
    made(20).save_to_disk(str(folder))
    cached = datasets.DatasetDict(train=datasets.load_from_disk(str(folder)))

    def load_dataset(*_, **__):
        assert datasets.config.HF_HUB_OFFLINE  # else the library would try the network for half a minute
        return cached

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_probe", lambda *_: "the Hub cannot be reached: no route")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for revision in (None, "main", commit, commit[:12]):
        assert sum(map(len, load("hub:owner/name", revision=revision).values())) == 20
    with pytest.raises(DataError, match="not known to be revision v2"):
        load("hub:owner/name", revision="v2")
    assert datasets.config.HF_HUB_OFFLINE is False
