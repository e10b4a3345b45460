"""Images without labels, for tasks that reconstruct them: whatever a source says about classes is dropped."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from pydantic import Field, field_validator

from finesight.data import (
    archives,
    cifar10,
    groups,
    hub,
    images,
    kvasir,
    loading,
    mnist,
    mnist_m,
    rocov2,
    tables,
)
from finesight.data.config import DataConfig
from finesight.data.problems import examples, refuse
from finesight.data.samples import Samples, take_rows
from finesight.errors import DataError

CLASSES = ("image",)
LEAST = 3
ANOMALIES = "anomalies"


class ImagesConfig(DataConfig):
    """Where the images are, how they are split and prepared; labels are not read."""

    root: str | None = Field(
        None,
        description="Folder or zip of images, in whatever folders; a folder in the layout of ROCOv2, Kvasir or "
        "Kvasir-SEG; a CSV/JSONL/parquet with paths, npz, CIFAR-10 python batches, 'sklearn:digits', or "
        "'hub:OWNER/NAME'",
    )

    @field_validator("label_column")
    @classmethod
    def _no_labels(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError("no labels are read here; leave it out")
        return value

    def notes(self, data: Mapping[str, Any]) -> list[str]:
        """How the images were split, in sentences for the report."""
        own = {split: data[split] for split in data if split != ANOMALIES}
        notes = [*super().notes(own), "No labels were read."]
        normal = sorted({name for part in own.values() for name in map(kvasir.normal_folder, part["id"]) if name})
        if normal:
            notes.append(f"Of the class folders only the normal ones were read: {', '.join(normal)}.")
        return notes


class AutoencodingDataConfig(ImagesConfig):
    """Images to model, and others that the model should find unusual."""

    anomalies: str | None = Field(
        None, description="A second set of images (folder, zip) that the model should find unusual; never trained on"
    )

    @property
    def where(self) -> str | None:
        """Both sets, for run.json and the report."""
        return self.root if self.anomalies is None else f"{self.root}, anomalies {self.anomalies}"

    def notes(self, data: Mapping[str, Any]) -> list[str]:
        """How the images were split and what the anomalies are, in sentences for the report."""
        notes = super().notes(data)
        if ANOMALIES in data:
            notes.append(
                f"The {len(data[ANOMALIES]):,} anomalies were never trained on, and no identical file is in the root."
            )
        return notes


def load(config: ImagesConfig, seed: int) -> datasets.DatasetDict:
    """Load images and decide their splits, before anything is decoded or augmented.

    Returns train, validation and test as `loading.load` does, with the same columns and guarantees; every
    label is 0, of the one class "image". With `anomalies` there is a fourth split of that name: all of them, in
    the order of their ids, with "anomalies/" before each id if one is also an id of the root. Of a set with
    class folders normal-... an autoencoder's root takes these, and the anomalies take the others. Raises `DataError` or
    `ConfigError` with everything that was found to be wrong, and where the same file is in both sets.
    """
    samples = _read(config, _root_takes(config))
    check(samples, str(config.root))
    found = loading.split_samples(samples, config, seed)
    if isinstance(config, AutoencodingDataConfig) and config.anomalies is not None:
        found[ANOMALIES] = _anomalies(config, samples)
    return found


def load_test(config: ImagesConfig, classes: list[str]) -> datasets.Dataset:
    """All images of a source, or those of its test split where it has one, with the one class in `classes`.

    For measuring a finished model on other data. Raises `DataError`.
    """
    return loading.only_test(replace(_read(config, _root_takes(config)), classes=list(classes)), config)


def _root_takes(config: ImagesConfig) -> kvasir.Which:
    """Only a model of what is normal leaves out the classes that are not."""
    return "normal" if isinstance(config, AutoencodingDataConfig) else "all"


def _read(config: DataConfig, which: kvasir.Which) -> Samples:
    """Every image of `config.root`; of a set with normal-... classes those that `which` names."""
    path = Path(os.path.abspath(os.path.expanduser(config.root or "")))
    if config.root and path.is_dir() and rocov2.is_rocov2(path):
        return rocov2.read(path, captions=False)
    if config.root and _holds_files(path):
        samples = kvasir.read(path)
        return samples if which == "all" or not kvasir.normal_classes(samples) else kvasir.choose(samples, which, path)
    try:
        samples = loading.read(_tolerant(config, path))
    except DataError as error:
        # The usual advice is refused here.
        advice, instead = "give --data.label_column", "a source of this kind needs one, though it is not used"
        raise DataError(*(problem.replace(advice, instead) for problem in error.problems)) from None
    return replace(samples, labels=np.zeros(len(samples.ids), np.int64), classes=list(CLASSES))


def _holds_files(path: Path) -> bool:
    """Whether the images are files in a folder or zip, and not rows of some other format."""
    if not path.is_dir():
        return path.suffix.lower() == ".zip" and path.is_file() and path.stat().st_size > 0
    formats = (cifar10.batches_folder, mnist_m.official_folder, mnist.idx_folder, hub.is_saved)
    return not any(form(path) for form in formats)


def _tolerant(config: DataConfig, path: Path) -> DataConfig:
    """The options under which a table of paths is read whether it has labels or not."""
    # The column of the paths stands in for the labels: it is there, and full, in every readable table.
    columns = tables.text_columns(path)
    lower = {name.lower(): name for name in reversed(columns)}
    usual = next((lower[name] for name in tables.IMAGE_NAMES if name in lower), None)
    column = config.image_column or usual
    if column is None or column not in columns:
        return config
    return config.model_copy(update={"image_column": column, "label_column": column})


def check(samples: Samples, root: str) -> None:
    """Raise `DataError` for too few images to split, and for ids that stand twice."""
    problems = []
    count = len(samples.ids)
    if count < LEAST:
        problems.append(
            f"{root}: {count} image{'' if count == 1 else 's'}; at least {LEAST} are needed, one each to train, to "
            "choose the epoch and to test. Add images."
        )
    twice = sorted(name for name, times in Counter(samples.ids).items() if times > 1)
    if twice:
        problems.append(f"{len(twice)} ids stand twice: {examples(twice)}. Every image needs its own.")
    refuse(problems)


def _anomalies(config: AutoencodingDataConfig, root: Samples) -> datasets.Dataset:
    # Nothing of them is split, so all splits of their source are pooled.
    update = {"root": config.anomalies, "splits": "new"}
    found = _read(DataConfig(**config.model_dump(include=set(DataConfig.model_fields)) | update), "abnormal")
    _refuse_shared(config, root, found)
    try:
        group = groups.resolve(found, config.group)
    except DataError as error:
        logging.getLogger("finesight").warning("%s Each anomaly is a group of its own.", error)
        group = found.ids
    if set(found.ids) & set(root.ids):
        named = [f"{ANOMALIES}/{name}" for name in found.ids]
        group = named if group is found.ids else group
        found = replace(found, ids=named)
    order = np.array(sorted(range(len(found.ids)), key=found.ids.__getitem__))
    return take_rows(found.to_dataset(group), order)


def _refuse_shared(config: AutoencodingDataConfig, root: Samples, found: Samples) -> None:
    """By the bytes of the files themselves, which a member of a zip shares with a file beside it."""
    sizes, others = _sizes(root), _sizes(found)
    both = set(sizes) & set(others) - {None}
    known = {_content(root, row) for row, size in enumerate(sizes) if size in both} - {None}
    shared = [found.ids[row] for row, size in enumerate(others) if size in both and _content(found, row) in known]
    if shared:
        raise DataError(
            f"data.anomalies: the anomalies hold {len(shared)} images of root: {examples(sorted(shared))}, the same "
            f"files in {config.anomalies} and in {config.root}. What is trained on cannot count as unusual; remove "
            "them from one of the two."
        )


def _sizes(samples: Samples) -> list[int | None]:
    """The bytes of each encoded image, without reading it; None where its file is gone."""
    lengths = pc.binary_length(pc.struct_field(samples.images, "bytes")).to_pylist()
    paths = pc.struct_field(samples.images, "path").to_pylist()
    return [length if length is not None else _size(path) for length, path in zip(lengths, paths, strict=True)]


def _size(path: str) -> int | None:
    place = images.split_zip_path(path)
    if place:
        return archives.index(place[0])[place[1]].size
    return os.stat(path).st_size if os.path.isfile(path) else None


def _content(samples: Samples, row: int) -> str | None:
    """A hash of the encoded image; None where it cannot be read, which is reported when it is decoded."""
    try:
        return hashlib.blake2b(images.read(samples.images[row].as_py()), digest_size=16).hexdigest()
    except images.BadImage:
        return None
