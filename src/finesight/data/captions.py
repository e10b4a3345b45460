"""Images with a caption each: a folder in the layout of ROCOv2, or a table of paths and captions."""

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from pydantic import Field, field_validator

from finesight.config import nearest
from finesight.data import groups, loading, rocov2, splits
from finesight.data.config import DataConfig
from finesight.data.samples import Samples, take_rows
from finesight.data.unlabelled import CLASSES, check
from finesight.errors import DataError

CAPTION_NAMES = ("caption", "captions", "text", "description", "report", "findings", "sentence", "title")
_FORMS = (
    "a folder in the layout of ROCOv2 (train_images.zip beside train_captions.csv), or a .csv, .tsv, .jsonl or "
    ".parquet table with the path of an image and its caption in each row"
)


class CaptionsConfig(DataConfig):
    """Where the images and their captions are, how they are split and prepared."""

    root: str | None = Field(None, description=f"Images with captions: {_FORMS}; or 'hub:OWNER/NAME'")
    caption_column: str | None = Field(
        None, description=f"Column with the caption; found by name if not given ({', '.join(CAPTION_NAMES)})"
    )

    @field_validator("label_column")
    @classmethod
    def _no_labels(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("captions have no labels; give data.caption_column, or leave it out")
        return value

    def notes(self, data: Mapping[str, Any]) -> list[str]:
        """How the images were split, and how often captions repeat, in sentences for the report."""
        notes = super().notes(data)
        texts = {split: list(data[split]["caption"]) for split in data}
        repeated = {split: len(found) - len(set(found)) for split, found in texts.items()}
        told = [f"{count:,} of {len(texts[split]):,} in {split}" for split, count in repeated.items() if count]
        if told:
            notes.append(f"Captions that repeat another one of their split word for word: {', '.join(told)}.")
        known = set(texts.get("train", []))
        copied = sum(text in known for text in texts.get("test", []))
        if copied:
            notes.append(
                f"{copied:,} of {len(texts['test']):,} test captions stand word for word in training too: a model that "
                "recites them scores too well. Keep what belongs together in one split with data.group."
            )
        return notes


def load(config: CaptionsConfig, seed: int) -> datasets.DatasetDict:
    """Load images and captions and decide their splits, before anything is decoded.

    Returns train, validation and test, always all three, no group in two of them, each in the order of ids, with the
    columns id (string, unique), image (`datasets.Image`, never decoded here), label (0, of the one class
    "image"), group and caption (string, white space made single blanks). Raises `DataError` or
    `ConfigError` with everything that was found to be wrong, each row of a table with its file and number.
    """
    samples, captions = _read(config)
    check(samples, str(config.root))
    group = groups.resolve(samples, config.group)
    dataset = samples.to_dataset(group)
    if config.near_duplicates == "group":
        from finesight.data.duplicates import near_duplicate_groups

        group = groups.merge(group, near_duplicate_groups(dataset, config.sixteen_bit))
        dataset = samples.to_dataset(group)
    dataset = dataset.add_column("caption", captions)
    # In the order of ids, so that nothing depends on how a source was listed.
    order = np.array(sorted(range(len(samples.ids)), key=samples.ids.__getitem__))
    given = samples.splits and [samples.splits[row] for row in order]
    rows = splits.decide(samples.labels, [group[row] for row in order], given, config, seed)
    return datasets.DatasetDict({name: take_rows(dataset, order[rows[name]]) for name in splits.NAMES})


def load_test(config: CaptionsConfig, classes: list[str]) -> datasets.Dataset:
    """All images of a source, or those of its test split where it has one, with the one class in `classes`.

    For measuring a finished model on other data. Raises `DataError`.
    """
    samples, captions = _read(config)
    samples = replace(samples, classes=list(classes))
    rows = list(range(len(samples.ids)))
    if samples.splits is not None and "test" in samples.splits:
        rows = [row for row in rows if samples.splits[row] == "test"]
    dataset = samples.to_dataset(groups.resolve(samples, config.group)).add_column("caption", captions)
    return take_rows(dataset, np.array(sorted(rows, key=samples.ids.__getitem__)))


def _read(config: CaptionsConfig) -> tuple[Samples, list[str]]:
    """Every image of the source, and its caption."""
    path = Path(os.path.abspath(os.path.expanduser(config.root or "")))
    if config.root and path.is_dir() and rocov2.is_rocov2(path):
        found = rocov2.read(path, captions=True)
        return found, [" ".join(text.split()) for text in found.captions]
    if config.root and not path.exists() and not config.root.startswith("hub:"):
        raise DataError(f"{config.root}: no such file or folder. Give {_FORMS}.")
    if path.suffix.lower() == ".zip" or (config.root and path.is_dir() and not (path / "state.json").is_file()):
        raise DataError(f"{config.root}: holds images, and nothing says what they show. Give {_FORMS}.")
    return _from_table(config, path)


def _from_table(config: CaptionsConfig, path: Path) -> tuple[Samples, list[str]]:
    """A source with columns, read as if the captions were its classes: a class is a text that must not be empty."""
    column = config.caption_column or _usual_column(path)
    as_labels = DataConfig(**config.model_dump(include=set(DataConfig.model_fields)) | {"label_column": column})
    try:
        samples = loading.read(as_labels)
    except DataError as error:
        raise DataError(*map(_about_captions, error.problems)) from None
    texts = [" ".join(text.split()) for text in samples.classes]
    captions = [texts[label] for label in samples.labels]
    return replace(samples, labels=np.zeros(len(captions), np.int64), classes=list(CLASSES)), captions


def _about_captions(problem: str) -> str:
    problem = problem.replace("--data.label_column", "--data.caption_column").replace("label column", "caption column")
    problem = problem.replace("the label is missing", "the caption is empty; write one, or remove the row")
    return problem.replace("ids must be unique", "each image has one caption; give further rows another id")


def _usual_column(path: Path) -> str:
    """The column of the captions by its usual names; raises `DataError` where there is none, or only an unlike one."""
    columns = _columns(path)
    lower = {name.lower(): name for name in reversed(columns)}
    found = next((lower[name] for name in CAPTION_NAMES if name in lower), None)
    if found is None and columns:
        hint = nearest("caption", columns) or "."
        raise DataError(
            f"{path}: no caption column found by name{hint} Give --data.caption_column. Columns: {', '.join(columns)}."
        )
    return found or CAPTION_NAMES[0]  # what is wrong with an unreadable table is explained where it is read


def _columns(path: Path) -> list[str]:
    """The names of a table's columns; none where it cannot be read."""
    kind = path.suffix.lower()
    try:
        if kind in (".parquet", ".pq"):
            import pyarrow.parquet as pq

            return list(pq.read_schema(path).names)
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            line = file.readline()
        if kind in (".jsonl", ".ndjson"):
            return list(json.loads(line))
        return [name.strip() for name in next(csv.reader([line], delimiter=max(",;\t", key=line.count)), [])]
    except (OSError, ValueError, TypeError, csv.Error):
        return []
