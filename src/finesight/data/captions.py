"""Images with captions, one or more each: a folder in the layout of ROCOv2, a table, or the JSON of COCO."""

import ast
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, field_validator

from finesight.data import coco_captions, hub, loading, rocov2
from finesight.data.config import DataConfig
from finesight.data.problems import examples
from finesight.data.samples import Samples
from finesight.data.tables import Wanted
from finesight.data.unlabelled import CLASSES, check
from finesight.errors import DataError

CAPTION_NAMES = ("caption", "captions", "text", "description", "report", "findings", "sentence", "title", "sentences")
_CAPTIONS = Wanted("caption", CAPTION_NAMES, several=True)
_FORMS = (
    "a folder in the layout of ROCOv2 (train_images.zip beside train_captions.csv), a .csv, .tsv, .jsonl or "
    ".parquet table with the path of an image and a caption, or a list of them, in each row, or a .json of COCO"
)


class CaptionsConfig(DataConfig):
    """Where the images and their captions are, how they are split and prepared."""

    root: str | None = Field(None, description=f"Images with captions: {_FORMS}; or 'hub:OWNER/NAME'")
    caption_column: str | None = Field(
        None, description=f"Column with the caption; found by name if not given ({', '.join(CAPTION_NAMES)})"
    )
    image_folder: str | None = Field(
        None, description="Folder that the file names in a .json of COCO begin from; found beside it if not given"
    )

    @field_validator("image_folder")
    @classmethod
    def _whole_path(cls, value: str | None) -> str | None:
        """Made absolute, so that the run can be continued from anywhere."""
        return None if value is None else str(Path(value).expanduser().absolute())

    @field_validator("label_column")
    @classmethod
    def _no_labels(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("captions have no labels; give data.caption_column, or leave it out")
        return value

    def notes(self, data: Mapping[str, Any]) -> list[str]:
        """How the images were split, and how often captions repeat, in sentences for the report."""
        notes = super().notes(data)
        lists = {split: texts_of(data[split]) for split in data}
        texts = {split: [text for found in lists[split] for text in found] for split in data}
        counts = [len(found) for split in data for found in lists[split]]
        if max(counts, default=1) > 1:
            notes.append(
                f"{sum(counts):,} captions of {len(counts):,} images, {min(counts)} to {max(counts)} each: an epoch "
                "trains on one of each image, drawn anew; held-out captions are scored against all."
            )
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

    Returns train, validation and test, always all three, no image and no group in two of them, each in the order of
    ids, with the columns id (string, unique), image (`datasets.Image`, never decoded here), label (0, of the one class
    "image"), group and caption (string, white space made single blanks). Rows with the same path, or where the
    source holds the images themselves the same bytes, are one image with several captions, under the first of their ids
    in the order of letters; where an image has several, the last column is `captions` (list of strings, sorted, so
    that nothing depends on how a source lists them). Raises `DataError` or `ConfigError` with everything that was
    found to be wrong, each row of a table with its file and number.
    """
    samples, texts = _read(config)
    image, first = _images(samples)
    samples = _named_alike(samples, image)
    if config.splits == "given":
        _refuse_torn(samples, image, first, str(config.root))
    check(replace(samples, ids=[samples.ids[row] for row in first]), str(config.root))
    return loading.split_samples(samples, config, seed, image, _columns(texts, image))


def load_test(config: CaptionsConfig, classes: list[str]) -> datasets.Dataset:
    """All images of a source, or those of its test split where it has one, with the one class in `classes`.

    For measuring a finished model on other data. Raises `DataError`.
    """
    samples, texts = _read(config)
    image, first = _images(samples)
    samples = replace(_named_alike(samples, image), classes=list(classes))
    if samples.splits is not None and "test" in samples.splits:
        _refuse_torn(samples, image, first, str(config.root))
    return loading.only_test(samples, config, image, _columns(texts, image))


def texts_of(dataset: datasets.Dataset) -> list[list[str]]:
    """The captions of each image of `load`, one or more."""
    if "captions" in dataset.column_names:
        return [list(texts) for texts in dataset["captions"]]
    return [[text] for text in dataset["caption"]]


def _images(samples: Samples) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The number of the image in each row, int64 [rows], and the row where each stands first, int64 [images]."""
    paths = pc.struct_field(samples.images, "path").to_pylist()
    data = pc.struct_field(samples.images, "bytes")
    keys = [
        hashlib.blake2b(content.as_buffer(), digest_size=16).digest() if content.is_valid else path
        for content, path in zip(data, paths, strict=True)
    ]
    number: dict[Any, int] = {}
    image = np.array([number.setdefault(key, len(number)) for key in keys], np.int64)
    return image, np.unique(image, return_index=True)[1]


def _named_alike(samples: Samples, image: NDArray[np.int64]) -> Samples:
    """Every row under the first of the ids of its image, in the order of letters."""
    names: dict[int, str] = {}
    for number, name in zip(image.tolist(), samples.ids, strict=True):
        names[number] = min(names.get(number, name), name)
    return replace(samples, ids=[names[number] for number in image.tolist()])


def _columns(texts: list[list[str]], image: NDArray[np.int64]) -> dict[str, list[Any]]:
    """The column `caption`, or `captions` where an image has several; `texts` are those of each row."""
    found: list[list[str]] = [[] for _ in range(image.max(initial=-1) + 1)]
    for number, of_row in zip(image.tolist(), texts, strict=True):
        found[number] += of_row
    if max(map(len, found), default=1) == 1:
        return {"caption": [text for (text,) in found]}
    return {"captions": list(map(sorted, found))}


def _refuse_torn(samples: Samples, image: NDArray[np.int64], first: NDArray[np.int64], root: str) -> None:
    """Raise `DataError` where the rows of one image are in two of the source's own splits."""
    if samples.splits is None:
        return
    torn = {
        samples.ids[row]: f"{samples.splits[first[image[row]]]} and {split}"
        for row, split in enumerate(samples.splits)
        if split != samples.splits[first[image[row]]]
    }
    if torn:
        raise DataError(
            f"{root}: {len(torn)} of {len(first)} images stand in more than one of the given splits: "
            f"{examples(sorted(torn))} (the first in {torn[min(torn)]}). The test number would be wrong. Give "
            "--data.splits new to split anew, or mend the source."
        )


def _read(config: CaptionsConfig) -> tuple[Samples, list[list[str]]]:
    """Every row of the source, and its captions."""
    path = Path(os.path.abspath(os.path.expanduser(config.root or "")))
    if config.root and path.is_dir() and rocov2.is_rocov2(path):
        found = rocov2.read(path, captions=True)
        return found, [[" ".join(text.split())] for text in found.captions]
    if config.root and not path.exists() and not config.root.startswith("hub:"):
        raise DataError(f"{config.root}: no such file or folder. Give {_FORMS}.")
    if path.suffix.lower() in (".zip", ".npz") or (config.root and path.is_dir() and not hub.is_saved(path)):
        raise DataError(f"{config.root}: holds images, and nothing says what they show. Give {_FORMS}.")
    return _from_table(config, path)


def _from_table(config: CaptionsConfig, path: Path) -> tuple[Samples, list[list[str]]]:
    """A source with columns, read as if the captions were its classes: a class is a text that must not be empty."""
    coco = path.suffix.lower() == ".json" and path.is_file()
    options = config.model_dump(include=set(DataConfig.model_fields)) | {"label_column": config.caption_column}
    as_labels = DataConfig(**options)
    try:
        samples = (
            coco_captions.read(path, as_labels, config.image_folder) if coco else loading.read(as_labels, _CAPTIONS)
        )
    except DataError as error:
        raise DataError(*map(_about_captions, error.problems)) from None
    texts = [[" ".join(text.split()) for text in _listed(found)] for found in samples.classes]
    captions = [texts[label] for label in samples.labels]
    empty = sorted({name for name, found in zip(samples.ids, captions, strict=True) if not found or not all(found)})
    if empty:
        raise DataError(
            f"{config.root}: {len(empty)} lists of captions are empty or hold an empty one: {examples(empty)}. Write "
            "one, or leave it out."
        )
    return replace(samples, labels=np.zeros(len(captions), np.int64), classes=list(CLASSES)), captions


def _listed(text: str) -> list[str]:
    """The captions of a cell: its text, or the texts of a list, which a CSV may hold written out."""
    if text.startswith("[") and text.endswith("]"):
        for reader in (json.loads, ast.literal_eval):
            try:
                found = reader(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(found, list) and all(item is None or isinstance(item, str) for item in found):
                return [item or "" for item in found]
    return [text]


def _about_captions(problem: str) -> str:
    problem = problem.replace("--data.label_column", "--data.caption_column").replace("label column", "caption column")
    problem = problem.replace("the label is missing", "the caption is empty; write one, or remove the row")
    return problem.replace("ids must be unique", "two images cannot share an id")
