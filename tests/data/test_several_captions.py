"""Several captions for an image: rows of one image are one sample, in one split, and an epoch draws one of them."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from finesight.data import captions
from finesight.data.caption_batches import CaptionBatches
from finesight.data.captions import CaptionsConfig, texts_of
from finesight.data.fingerprint import fingerprint
from finesight.errors import DataError
from tests.data.making import make_folder

COUNT = 12


def said(number: int) -> list[str]:
    """One to three captions of an image."""
    return [f"image {number}", f"again, {number}", f"and {number} once more"][: 1 + number % 3]


def rows() -> list[tuple[str, str]]:
    return [(f"pictures/{number:02d}.png", text) for number in range(COUNT) for text in said(number)]


def write(root: Path, given: list[tuple[str, ...]], head: str = "image,caption", name: str = "table.csv") -> Path:
    make_folder(root, [f"pictures/{number:02d}.png" for number in range(COUNT)])
    quoted = [",".join(f'"{cell}"' for cell in row) for row in given]
    (root / name).write_text("\n".join([head, *quoted]) + "\n")
    return root / name


def load(path: Path, **options: Any) -> Any:
    return captions.load(CaptionsConfig(root=str(path), **options), 0)


def all_of(data: Any) -> dict[str, tuple[str, list[str]]]:
    """{id: (split, captions)}."""
    return {
        name: (split, texts)
        for split, part in data.items()
        for name, texts in zip(part["id"], texts_of(part), strict=True)
    }


def test_rows_of_one_image_are_one_sample(tmp_path: Path) -> None:
    data = load(write(tmp_path, rows()))
    assert data["train"].column_names == ["id", "image", "label", "group", "captions"]
    found = all_of(data)
    assert sum(map(len, data.values())) == len(found) == COUNT
    assert {name: texts for name, (_, texts) in found.items()} == {
        f"pictures/{number:02d}.png": sorted(said(number)) for number in range(COUNT)
    }
    assert all(image["path"].endswith(name) for part in data.values() for name, image in zip(
        part["id"], part.cast_column("image", datasets.Image(decode=False))["image"], strict=True
    ))  # fmt: skip


def test_all_forms_and_any_order_of_rows_give_the_same_data(tmp_path: Path) -> None:
    plain = load(write(tmp_path, rows()))
    lists = [(f"pictures/{number:02d}.png", said(number)) for number in range(COUNT)]
    write(tmp_path, rows()[::-1], name="turned.csv")
    (tmp_path / "lists.jsonl").write_text(
        "\n".join(json.dumps({"file_name": name, "captions": texts}) for name, texts in lists)
    )
    single = [(name, texts[0] if len(texts) == 1 else texts) for name, texts in lists]
    (tmp_path / "mixed.jsonl").write_text(
        "\n".join(json.dumps({"image": name, "caption": given}) for name, given in single)
    )
    names, texts = [name for name, _ in lists], [texts for _, texts in lists]
    pq.write_table(pa.table({"path": names, "sentences": texts}), tmp_path / "lists.parquet")
    written = [f'{name},"{given!s}"' for name, given in lists]  # as pandas writes a list into a CSV
    (tmp_path / "written.csv").write_text("\n".join(["image,caption", *written]))
    as_json = ['{},"{}"'.format(name, json.dumps(given).replace('"', '""')) for name, given in lists]
    (tmp_path / "json.csv").write_text("\n".join(["image,caption", *as_json]))
    for other in ("turned.csv", "lists.jsonl", "mixed.jsonl", "lists.parquet", "written.csv", "json.csv"):
        found = load(tmp_path / other)
        assert all_of(found) == all_of(plain), other
        assert fingerprint(found) == fingerprint(plain), other


def test_images_within_a_table_are_one_by_their_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, rows())
    by_path = load(path)
    table = [
        {"image": {"bytes": (tmp_path / name).read_bytes(), "path": None}, "caption": text} for name, text in rows()
    ]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "whole.parquet")
    found = load(tmp_path / "whole.parquet")
    assert sorted(texts for _, texts in all_of(found).values()) == sorted(
        texts for _, texts in all_of(by_path).values()
    )
    part = datasets.Dataset.from_list(table).cast_column("image", datasets.Image(decode=False))
    datasets.DatasetDict({"train": part.select(range(20)), "test": part.select(range(21, 24))}).save_to_disk(
        tmp_path / "saved"
    )
    saved = load(tmp_path / "saved")
    assert sorted(map(len, texts_of(saved["test"]))) == [3]


def test_one_caption_an_image_is_what_it_was(tmp_path: Path) -> None:
    """The stamp of a finished run's data must not change: it would refuse to continue."""
    data = load(write(tmp_path, [row for row in rows() if row[1].startswith("image")]))
    assert data["train"].column_names[-1] == "caption"
    assert set(data["train"]["caption"]) <= {f"image {number}" for number in range(COUNT)}
    assert texts_of(data["test"]) == [[text] for text in data["test"]["caption"]]
    assert not any("captions of" in note for note in CaptionsConfig().notes(data))


def test_no_image_is_in_two_splits_whatever_its_rows_are_called(tmp_path: Path) -> None:
    numbered = [(*row, f"{number:03d}") for number, row in enumerate(rows())]
    for seed in range(5):
        data = captions.load(CaptionsConfig(root=str(write(tmp_path, numbered, "image,caption,id")), test=0.4), seed)
        homes: dict[str, set[str]] = {}
        for split, part in data.items():
            for image in part.cast_column("image", datasets.Image(decode=False))["image"]:
                homes.setdefault(image["path"], set()).add(split)
        assert len(homes) == COUNT
        assert all(len(splits) == 1 for splits in homes.values())
    assert "001" in all_of(data)  # the first of the rows of an image names it
    assert "002" not in all_of(data)


def test_groups_that_share_an_image_stay_together(tmp_path: Path) -> None:
    given = [(*row, f"reader {number % 4}") for number, row in enumerate(rows())]
    alone = [("pictures/00.png", "a", "p"), *[(f"pictures/{n:02d}.png", "b", f"q{n}") for n in range(1, COUNT)]]
    data = load(write(tmp_path, [*alone, ("pictures/00.png", "c", "q1")], "image,caption,group"), test=0.4)
    group = {name: group for part in data.values() for name, group in zip(part["id"], part["group"], strict=True)}
    assert group["pictures/00.png"] == group["pictures/01.png"] == "p"
    assert len(set(group.values())) == COUNT - 1
    with pytest.raises(DataError, match="too few groups"):  # every reader shares images with the others
        load(write(tmp_path, given, "image,caption,group"))


def test_an_image_in_two_given_splits_is_refused_unless_split_anew(tmp_path: Path) -> None:
    given = [(*row, "test" if number == 1 or number > 18 else "train") for number, row in enumerate(rows())]
    assert given[1][0] == given[2][0]
    path = write(tmp_path, given, "image,caption,split")
    with pytest.raises(DataError, match=r"1 of 12 images stand .* 'pictures/01.png' \(the first in test and train\)"):
        load(path)
    assert len(all_of(load(path, splits="new"))) == COUNT


def test_an_id_names_one_image(tmp_path: Path) -> None:
    given = [("pictures/00.png", "a", "x"), ("pictures/00.png", "b", "x"), ("pictures/01.png", "c", "x")]
    with pytest.raises(DataError, match="row 4: 'x' already stands in row 2; two images cannot share an id"):
        load(write(tmp_path, given, "image,caption,id"))


@pytest.mark.parametrize("given", ["[]", '["a", ""]', '["a", null]', '["a", "  "]'])
def test_an_empty_caption_in_a_list_is_told(tmp_path: Path, given: str) -> None:
    make_folder(tmp_path, [f"{number}.png" for number in range(6)])
    lines = [json.dumps({"image": f"{number}.png", "caption": ["fine", "too"]}) for number in range(6)]
    lines[3] = '{"image": "3.png", "caption": ' + given + "}"
    (tmp_path / "table.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"1 lists of captions are empty or hold an empty one: '3.png'"):
        load(tmp_path / "table.jsonl")


def test_a_caption_in_brackets_is_a_caption(tmp_path: Path) -> None:
    found = all_of(load(write(tmp_path, [(name, f"[see {text}]") for name, text in rows()])))
    assert found["pictures/00.png"][1] == ["[see image 0]"]


def test_the_stamp_changes_with_the_second_caption(tmp_path: Path) -> None:
    stamps = set()
    for text in ("again, 1", "again, one", None):
        given = [row if row[1] != "again, 1" else (row[0], text) for row in rows() if text or row[1] != "again, 1"]
        stamps.add(fingerprint(load(write(tmp_path, given))))
    assert len(stamps) == 3


def test_notes_tell_how_many_references_there_are(tmp_path: Path) -> None:
    config = CaptionsConfig(root=str(write(tmp_path, rows())))
    notes = config.notes(captions.load(config, 0))
    assert any(note.startswith("24 captions of 12 images, 1 to 3 each: an epoch trains on one") for note in notes)


def test_another_test_set_has_all_its_captions(tmp_path: Path) -> None:
    given = [(*row, "test" if int(row[0][9:11]) > 8 else "train") for row in rows()]
    config = CaptionsConfig(root=str(write(tmp_path, given, "image,caption,split")))
    found = captions.load_test(config, ["image"])
    assert found["id"] == [f"pictures/{number:02d}.png" for number in (9, 10, 11)]
    assert texts_of(found) == [sorted(said(number)) for number in (9, 10, 11)]


# ---- batches --------------------------------------------------------------------------------------


def batches(counts: list[int], **options: Any) -> CaptionBatches:
    """The tokens of caption c of sample s are c + 1 times 10 s + c + 1."""
    tokens = [[10 * sample + place + 1] * (place + 1) for sample, count in enumerate(counts) for place in range(count)]
    ids = [f"{number:03d}" for number in range(len(counts))]
    columns = {"image": torch.arange(len(ids))}
    return CaptionBatches(ids, columns, tokens, counts=counts, **({"bucketed": True, "batch_size": 4} | options))


def shown(made: CaptionBatches, epoch: int, **options: Any) -> dict[str, int]:
    """{id: which of its captions}."""
    found = {}
    for batch in made.epoch(epoch, **options):
        for name, row, length in zip(batch["id"], batch["tokens"], batch["length"].tolist(), strict=True):
            assert row[:length].tolist() == [10 * int(name) + length] * length
            assert not row[length:].any()
            found[name] = length - 1
    return found


def test_an_epoch_shows_one_caption_of_each_by_seed_epoch_and_sample() -> None:
    counts = [1 + number % 3 for number in range(90)]
    made = batches(counts)
    epochs = [shown(made, epoch) for epoch in range(60)]
    assert shown(made, 7) == epochs[7]
    assert all(len(epoch) == 90 for epoch in epochs)
    assert shown(batches(counts, seed=1), 0) != epochs[0]
    for number, count in enumerate(counts):
        times = np.bincount([epoch[f"{number:03d}"] for epoch in epochs], minlength=count)
        assert len(times) == count
        assert times.min() > 60 / count - 4 * np.sqrt(60 / count)  # each is shown, about equally often
    # The draw of a sample is its own: it stays when others go.
    assert shown(batches(counts[:30]), 3) == {name: place for name, place in epochs[3].items() if int(name) < 30}


def test_continued_shared_and_worker_epochs_show_the_same_captions() -> None:
    counts = [1 + number % 3 for number in range(21)]
    whole = shown(batches(counts), 2)
    made = batches(counts)
    assert shown(made, 2, rank=0, world=2) | shown(made, 2, rank=1, world=2) == whole
    assert shown(made, 2, start=3).items() <= whole.items()
    assert shown(batches(counts, workers=1), 2) == whole


def test_the_mean_length_is_that_of_the_captions_shown() -> None:
    for batch in batches([3] * 40).epoch(5):
        mean = batch["length"].float().mean().item()
        assert batch["mean_length"].tolist() == pytest.approx([mean] * len(batch["id"]))


def test_held_out_batches_hold_every_reference() -> None:
    counts = [1, 3, 2, 1]
    batch = batches(counts, bucketed=False).take(np.arange(4))
    assert batch["references"].shape == (4, 3, 3)
    assert batch["reference_length"].tolist() == [[1, 0, 0], [1, 2, 3], [1, 2, 0], [1, 0, 0]]
    for sample in range(4):
        for place in range(counts[sample]):
            row = batch["references"][sample, place]
            assert row[row > 0].tolist() == [10 * sample + place + 1] * (place + 1)
    assert batch["tokens"].tolist() == [[1], [11], [21], [31]]
    assert "references" not in batches([1, 1], bucketed=False).take(np.arange(2))
    assert "references" not in next(iter(batches(counts).epoch(0)))
