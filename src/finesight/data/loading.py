"""Every source of labelled images becomes one `datasets.DatasetDict`."""

import difflib
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np

from finesight.data import arrays, cifar10, digits, folders, groups, hub, mnist, mnist_m, splits, tables
from finesight.data.config import DataConfig
from finesight.data.problems import examples, refuse
from finesight.data.samples import Samples, take_rows
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
    group = groups.resolve(samples, source.group)
    dataset = samples.to_dataset(group)
    if source.near_duplicates == "group":
        from finesight.data.duplicates import near_duplicate_groups

        group = groups.merge(group, near_duplicate_groups(dataset, source.sixteen_bit))
        dataset = samples.to_dataset(group)
    # In the order of ids, so that nothing depends on how a source was listed.
    order = sorted(range(len(samples.ids)), key=samples.ids.__getitem__)
    given = samples.splits and [samples.splits[row] for row in order]
    found = splits.decide(samples.labels[order], [group[row] for row in order], given, source, seed)
    rows = {name: np.array(order)[found[name]] for name in splits.NAMES}
    _check_trained(samples, rows)
    return datasets.DatasetDict({name: take_rows(dataset, rows[name]) for name in splits.NAMES})


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
    group = groups.resolve(samples, source.group)
    rows = np.arange(len(samples.ids))
    if samples.splits is not None and "test" in samples.splits:
        rows = rows[np.array(samples.splits) == "test"]
    rows = np.array(sorted(rows, key=lambda row: samples.ids[row]))
    samples = replace(samples, labels=position[samples.labels], classes=list(classes))
    return take_rows(samples.to_dataset(group), rows)


def read(source: DataConfig, *, several: bool = False) -> Samples:
    """Every sample of a source; `several`: as in `tables.read_table`. Raises `DataError`."""
    root = source.root
    if not root:
        raise DataError(f"No data given. Set --data.root to {_FORMS}.")
    if root == "sklearn:digits":
        return digits.read()
    if root.startswith("hub:"):
        return hub.read_hub(root.removeprefix("hub:"), source)
    path = Path(os.path.abspath(os.path.expanduser(root)))
    if not path.exists():
        raise DataError(f"{root}: no such file or folder{_nearest(path)} Give {_FORMS}.")
    if path.is_dir():
        return _read_directory(path, source)
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
            return hub.read_parquet(path, source, several=several)
        case ".csv" | ".tsv" | ".jsonl" | ".ndjson":
            return tables.read_table(path, source, several=several)
        case ".tar" | ".tgz" | ".gz" | ".bz2" | ".xz" | ".7z" | ".rar":
            raise DataError(f"{root}: such archives are not read in place. Unpack it and give the folder.")
    raise DataError(f"{root}: {path.suffix or 'a file without extension'} is no source that is read. Give {_FORMS}.")


def _read_directory(path: Path, source: DataConfig) -> Samples:
    batches = cifar10.batches_folder(path)
    if batches is not None:
        return cifar10.read_batches(batches)
    official = mnist_m.official_folder(path)
    if official is not None:
        return mnist_m.read_folder(official)
    idx = mnist.idx_folder(path)
    if idx is not None:
        return mnist.read_idx(idx)
    return hub.read_saved(path, source) if hub.is_saved(path) else folders.read_folder(path)


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


def _check_trained(samples: Samples, rows: dict[str, np.ndarray]) -> None:
    known = set(samples.labels[rows["train"]])
    problems = []
    for name in ("validation", "test"):
        unknown = sorted({samples.classes[label] for label in set(samples.labels[rows[name]]) - known})
        if unknown:
            problems.append(
                f"The {name} split has classes without any training image: {examples(unknown)}. Add training "
                "images, remove these, or give --data.splits new."
            )
    refuse(problems)
