"""Every source of labelled images becomes one `datasets.DatasetDict`."""

import difflib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from finesight.data import arrays, cifar10, digits, folders, groups, hub, mnist, mnist_m, splits, tables
from finesight.data.config import DataConfig
from finesight.data.problems import examples, refuse
from finesight.data.samples import Samples, take_rows
from finesight.data.tables import LABELS, Wanted
from finesight.errors import DataError

_FORMS = (
    "an image folder, a zip of one, a .csv, .tsv, .jsonl or .parquet table with paths, an .npz, the CIFAR-10 "
    "python batches, the MNIST idx files, MNIST-M (folder or .pkl), a folder of datasets.save_to_disk, "
    "'sklearn:digits', or 'hub:OWNER/NAME'"
)


def load(source: DataConfig, seed: int) -> datasets.DatasetDict:
    """Load labelled images and decide their splits, before anything is decoded or augmented.

    Returns train, validation and test, always all three, no group in two of them, each in the order
    of ids, with the columns `id` (string, unique), `image` (`datasets.Image`, a reference or encoded
    bytes, never decoded here), `label` (`ClassLabel`, the same names in each split) and `group` (string).
    The same source, options and seed give the same splits, however the source is listed or packed.
    Raises `DataError` or `ConfigError` with everything that was found to be wrong.
    """
    samples = read(source)
    _check(samples)
    found = split_samples(samples, source, seed)
    _check_trained(found)
    return found


def load_test_set(source: DataConfig, classes: list[str]) -> datasets.Dataset:
    """All rows of a source, or those of its test split where it has one, labelled as in `classes`.

    For measuring a finished model on other data. Raises `DataError` for a class the model does not know.
    """
    samples = read(source)
    unknown = sorted(set(samples.classes) - set(classes))
    if unknown:
        raise DataError(
            f"{source.root}: classes the model was not trained on: {', '.join(unknown[:8])}. It knows "
            f"{', '.join(classes)}; rename or remove the others."
        )
    position = np.array([classes.index(name) for name in samples.classes])
    return only_test(replace(samples, labels=position[samples.labels], classes=list(classes)), source)


def split_samples(
    samples: Samples,
    config: DataConfig,
    seed: int,
    image: NDArray[np.int64] | None = None,
    columns: Mapping[str, list[Any]] | None = None,
) -> datasets.DatasetDict:
    """train, validation and test of samples, each in the order of ids; no group in two of them.

    Where an image stands in several rows, `image` int64 [rows] says which it is, counted from 0 as they come: its first
    row stands for it, and their groups are one. `columns` are added to id, image, label and group, an entry an image.
    """
    image = np.arange(len(samples.ids)) if image is None else image
    first = np.unique(image, return_index=True)[1]
    group = _groups(samples, config, image)
    dataset = _rows_of(samples, group, first, columns)
    if config.near_duplicates == "group":
        from finesight.data.duplicates import near_duplicate_groups

        alike = near_duplicate_groups(dataset, config.sixteen_bit)
        group = groups.merge(group, [alike[number] for number in image])
        dataset = _rows_of(samples, group, first, columns)
    # In the order of ids, so that nothing depends on how a source was listed.
    order = np.array(sorted(range(len(first)), key=lambda number: samples.ids[first[number]]))
    rows = first[order]
    given = samples.splits and [samples.splits[row] for row in rows]
    found = splits.decide(samples.labels[rows], [group[row] for row in rows], given, config, seed)
    return datasets.DatasetDict({name: take_rows(dataset, order[found[name]]) for name in splits.NAMES})


def only_test(
    samples: Samples,
    config: DataConfig,
    image: NDArray[np.int64] | None = None,
    columns: Mapping[str, list[Any]] | None = None,
) -> datasets.Dataset:
    """All samples, or those of the test split where there is one, in the order of ids; otherwise as `split_samples`."""
    image = np.arange(len(samples.ids)) if image is None else image
    first = np.unique(image, return_index=True)[1]
    numbers = np.arange(len(first))
    if samples.splits is not None and "test" in samples.splits:
        numbers = numbers[np.array(samples.splits)[first] == "test"]
    order = np.array(sorted(numbers, key=lambda number: samples.ids[first[number]]))
    return take_rows(_rows_of(samples, _groups(samples, config, image), first, columns), order)


def _groups(samples: Samples, config: DataConfig, image: NDArray[np.int64]) -> list[str]:
    """The group of each row; groups that share an image are one."""
    found = groups.resolve(samples, config.group)
    return found if image.max(initial=-1) == len(image) - 1 else groups.merge(found, image.tolist())


def _rows_of(
    samples: Samples, group: list[str], first: NDArray[np.int64], columns: Mapping[str, list[Any]] | None
) -> datasets.Dataset:
    """The rows `first` of the samples with further columns."""
    dataset = samples.to_dataset(group)
    dataset = dataset if len(first) == len(samples.ids) else take_rows(dataset, first)
    for name, values in (columns or {}).items():
        dataset = dataset.add_column(name, values)
    return dataset


def read(source: DataConfig, wanted: Wanted = LABELS) -> Samples:
    """Every sample of a source. Raises `DataError`."""
    root = source.root
    if not root:
        raise DataError(f"No data given. Set --data.root to {_FORMS}.")
    if root == "sklearn:digits":
        return digits.read()
    if root.startswith("hub:"):
        return hub.read_hub(root.removeprefix("hub:"), source, wanted)
    path = Path(os.path.abspath(os.path.expanduser(root)))
    if not path.exists():
        raise DataError(f"{root}: no such file or folder{_nearest(path)} Give {_FORMS}.")
    if path.is_dir():
        return _read_directory(path, source, wanted)
    if not path.stat().st_size:
        raise DataError(f"{root}: the file is empty (0 bytes).")
    if path.name.lower().endswith((".pkl", ".pkl.gz")):
        return mnist_m.read_pickle(path)
    match path.suffix.lower():
        case ".zip":
            return folders.read_zip(path)
        case ".npz":
            return arrays.read_npz(path, source.group)
        case ".parquet" | ".pq":
            return hub.read_parquet(path, source, wanted)
        case ".csv" | ".tsv" | ".jsonl" | ".ndjson":
            return tables.read_table(path, source, wanted)
        case ".tar" | ".tgz" | ".gz" | ".bz2" | ".xz" | ".7z" | ".rar":
            raise DataError(f"{root}: such archives are not read in place. Unpack it and give the folder.")
    raise DataError(f"{root}: {path.suffix or 'a file without extension'} is no source that is read. Give {_FORMS}.")


def _read_directory(path: Path, source: DataConfig, wanted: Wanted) -> Samples:
    batches = cifar10.batches_folder(path)
    if batches is not None:
        return cifar10.read_batches(batches)
    official = mnist_m.official_folder(path)
    if official is not None:
        return mnist_m.read_folder(official)
    idx = mnist.idx_folder(path)
    if idx is not None:
        return mnist.read_idx(idx)
    return hub.read_saved(path, source, wanted) if hub.is_saved(path) else folders.read_folder(path)


def _nearest(path: Path) -> str:
    """`; did you mean '/data/tomato.zip'?`, or ` ('/data' exists).` for the part that does."""
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    try:
        names = os.listdir(parent)
    except OSError:
        names = []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {str(parent / near[0])!r}?" if near else f" ({str(parent)!r} exists)."


def _check(samples: Samples) -> None:
    problems = []
    if len(set(samples.ids)) < len(samples.ids):
        twice = sorted(name for name, times in Counter(samples.ids).items() if times > 1)
        problems.append(f"{len(twice)} ids stand twice: {examples(twice)}. Every image needs its own.")
    counts = np.bincount(samples.labels, minlength=len(samples.classes))
    if len(samples.classes) < 2:
        problems.append(
            f"There is only one class, {samples.classes[0]!r} ({counts[0]} images). Two or more are "
            "needed; was a folder above or below the right one given?"
        )
    problems += [
        f"Class {name!r} has {count} image{'' if count == 1 else 's'}; at least 2 are needed. "
        "Add images, or remove the class."
        for name, count in zip(samples.classes, counts, strict=True)
        if count < 2
    ]
    refuse(problems)


def _check_trained(found: datasets.DatasetDict) -> None:
    classes, known = found["train"].features["label"].names, set(np.unique(found["train"]["label"]))
    problems = []
    for name in ("validation", "test"):
        unknown = sorted(classes[label] for label in set(np.unique(found[name]["label"])) - known)
        if unknown:
            problems.append(
                f"The {name} split has classes without any training image: {examples(unknown)}. Add training "
                "images, remove these, or give --data.splits new."
            )
    refuse(problems)
