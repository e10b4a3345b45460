"""Images with captions: one schema from a ROCOv2 folder and from tables, every bad row told at once, no split torn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesight import config
from finesight.data import captions
from finesight.data.caption_batches import CHUNK, CaptionBatches, bucketed_rows
from finesight.data.captions import CaptionsConfig
from finesight.errors import ConfigError, DataError
from tests.data.making import make_folder
from tests.data.test_rocov2 import make


def table(root: Path, count: int = 12, name: str = "table.csv", head: str = "image,caption") -> Path:
    make_folder(root, [f"pictures/{number:02d}.png" for number in range(count)])
    rows = "".join(f'pictures/{number:02d}.png,"Image, number {number}"\n' for number in range(count))
    (root / name).write_text(f"{head}\n{rows}")
    return root / name


def load(root: Path, **options: Any) -> Any:
    return captions.load(CaptionsConfig(root=str(root), **options), 0)


def problems(root: Path, **options: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        load(root, **options)
    return [problem.replace(f"{root}", "TABLE") for problem in caught.value.problems]


def test_a_table_gives_the_schema(tmp_path: Path) -> None:
    data = load(table(tmp_path), test=0.25)
    assert set(data) == {"train", "validation", "test"}
    assert sum(map(len, data.values())) == 12
    for part in data.values():
        assert part.column_names == ["id", "image", "label", "group", "caption"]
        assert set(part["label"]) == {0}
        assert part.features["label"].names == ["image"]
        assert part["id"] == sorted(part["id"])
        for name, text in zip(part["id"], part["caption"], strict=True):
            assert text == f"Image, number {int(Path(name).stem)}"


def test_all_forms_of_a_table_give_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = load(table(tmp_path))
    names = [f"pictures/{number:02d}.png" for number in range(12)]
    texts = [f"Image,  number\n{number} " for number in range(12)]  # white space becomes single blanks
    rows = [{"file_name": name, "text": text} for name, text in zip(names, texts, strict=True)]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.table({"path": names, "Caption": texts}), tmp_path / "table.parquet")
    for other in ("table.jsonl", "table.parquet"):
        found = load(tmp_path / other)
        for split in plain:
            assert found[split]["id"] == plain[split]["id"]
            assert found[split]["caption"] == plain[split]["caption"]


def test_the_folder_of_rocov2_keeps_its_splits(tmp_path: Path) -> None:
    root = make(tmp_path / "rocov2", train=[f"t{number}" for number in range(6)], test=["a", "b"])
    data = load(root)
    assert data["test"]["id"] == ["a", "b"]
    assert data["test"]["caption"] == ["Caption, of a", "Caption, of b"]
    assert len(data["train"]) + len(data["validation"]) == 6


def test_every_bad_row_is_told_at_once_with_its_number(tmp_path: Path) -> None:
    path = table(tmp_path, 4)
    lines = path.read_bytes().splitlines()
    lines[2] = b"pictures/01.png,   "
    lines[3] = b"pictures/nowhere.png,Something"
    lines += [b"pictures/00.png,Again", b"pictures/02.png,caf\xe9", b"pictures/02.png"]  # the first is no fault
    path.write_bytes(b"\n".join(lines))
    found = problems(path)
    assert [problem.split(":")[0] for problem in found] == [f"TABLE, row {row}" for row in (7, 8, 4, 3)]
    assert "UTF-8" in found[0]
    assert "1 cells" in found[1]
    assert "no image" in found[2]
    assert "the caption is empty" in found[3]
    assert not any("label" in problem for problem in found)


def test_a_column_of_another_name_is_named_and_found(tmp_path: Path) -> None:
    path = table(tmp_path, head="image,captoin")
    assert problems(path) == [
        "TABLE: no caption column found by name; did you mean 'captoin'? Give --data.caption_column. "
        "Columns: image, captoin."
    ]
    assert load(path, caption_column="captoin")["train"]["caption"]
    assert "no column 'nope'" in problems(path, caption_column="nope")[0]
    with pytest.raises(ConfigError, match="caption_column"):
        config.build(CaptionsConfig, {"label_column": "label"})


def test_the_caption_column_is_found_by_name_in_saved_sets_and_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a column of classes, which are no captions though they are the only ones with names."""
    import datasets

    from finesight.data import hub

    table(tmp_path)
    rows = {
        "image": [str(tmp_path / "pictures" / f"{number:02d}.png") for number in range(12)],
        "kind": [number % 2 for number in range(12)],
        "Report": [f"Image, number {number}" for number in range(12)],
    }
    made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    made = made.cast_column("kind", datasets.ClassLabel(names=["chest", "hand"]))
    made.save_to_disk(tmp_path / "saved")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_probe", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(train=made))
    for root in (str(tmp_path / "saved"), "hub:owner/name"):
        data = captions.load(CaptionsConfig(root=root), 0)
        assert sorted(text for part in data.values() for text in part["caption"]) == sorted(rows["Report"])
    made.rename_column("Report", "captoin").save_to_disk(tmp_path / "misspelt")
    (problem,) = problems(tmp_path / "misspelt")
    assert "no caption column found by name; did you mean 'captoin'? Give --data.caption_column" in problem
    assert load(tmp_path / "misspelt", caption_column="captoin")["train"]["caption"]


@pytest.mark.parametrize("name", ["images", "images.zip"])
def test_images_without_captions_are_refused(tmp_path: Path, name: str) -> None:
    make_folder(tmp_path / "images", ["a.png"])
    (tmp_path / "images.zip").write_bytes(b"PK")
    assert "nothing says what they show" in problems(tmp_path / name)[0]
    assert "no such file" in problems(tmp_path / "nowhere.csv")[0]


def test_patients_stay_together(tmp_path: Path) -> None:
    data = load(table(tmp_path, 40), group=r"pictures/(\d)", test=0.3)
    homes = [set(part["group"]) for part in data.values()]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 4


def test_captions_that_also_stand_in_training_are_told(tmp_path: Path) -> None:
    path = table(tmp_path)
    path.write_text("image,caption\n" + "".join(f"pictures/{number:02d}.png,The same\n" for number in range(12)))
    options = CaptionsConfig(root=str(path))
    notes = options.notes(captions.load(options, 0))
    assert any("2 of 2 test captions stand word for word in training" in note for note in notes)


def test_the_radiology_set(real_data: Path) -> None:
    data = load(real_data / "radiology")
    assert {split: len(part) for split, part in data.items()} == {"train": 205, "validation": 23, "test": 57}
    assert all(text and text == " ".join(text.split()) for part in data.values() for text in part["caption"])


# ---- batches ------------------------------------------------------------------------------------


def batches(lengths: list[int], **options: Any) -> CaptionBatches:
    import torch

    rows = [list(range(1, length + 1)) for length in lengths]
    ids = [f"{number:03d}" for number in range(len(lengths))]
    return CaptionBatches(
        ids, {"image": torch.arange(len(ids))}, rows, **({"bucketed": True, "batch_size": 4} | options)
    )


def test_an_epoch_holds_every_sample_once_and_is_a_function_of_seed_and_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 90, 203).tolist()
    made = batches(lengths)
    epochs = [[batch["id"] for batch in made.epoch(epoch)] for epoch in (0, 0, 1)]
    assert sorted(name for batch in epochs[0] for name in batch) == list(made.ids)
    assert epochs[0] == epochs[1] != epochs[2]
    assert [batch["id"] for batch in made.epoch(0, start=7)] == epochs[0][7:]
    assert [len(batch) for batch in epochs[0]] == [4] * 50 + [3]
    other = [batch["id"] for batch in batches(lengths, seed=1).epoch(0)]
    assert other != epochs[0]


def test_buckets_save_most_of_the_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 90, 256).tolist()

    def padded(bucketed: bool) -> int:
        return sum(batch["tokens"].numel() for batch in batches(lengths, bucketed=bucketed).epoch(0))

    assert padded(True) < 1.1 * sum(lengths)
    assert padded(False) > 1.4 * sum(lengths)


def test_a_batch_is_as_wide_as_its_longest_caption_and_knows_the_mean_of_the_whole() -> None:
    made = batches([3, 5, 9, 2, 7, 7], batch_size=3)
    for batch in made.epoch(0):
        assert batch["tokens"].shape[1] == batch["length"].max()
        for row, length in zip(batch["tokens"], batch["length"], strict=True):
            assert row[:length].tolist() == list(range(1, int(length) + 1))
            assert not row[length:].any()
    whole = list(made.epoch(0))
    shares = [list(made.epoch(0, rank=rank, world=2)) for rank in (0, 1)]
    for number, batch in enumerate(whole):
        mean = batch["length"].float().mean().item()
        for share in shares:
            assert share[number]["mean_length"].tolist() == pytest.approx([mean] * len(share[number]["id"]))


def test_the_incomplete_batch_is_not_always_that_of_the_longest() -> None:
    lengths = np.arange(CHUNK * 4 + 1)
    last = {int(bucketed_rows(lengths, 4, np.random.default_rng(seed))[-1]) for seed in range(12)}
    assert len(last) > 6
