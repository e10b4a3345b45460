"""Data sets of the Hugging Face Hub, folders written by `save_to_disk`, and parquet files.

What they hold stays where it is (memory-mapped); only ids, labels and groups are added.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from finesight.data.config import DataConfig
from finesight.data.problems import refuse
from finesight.data.samples import SPLITS, Samples, encode, numbered_ids, path_images
from finesight.data.tables import LABEL_NAMES, LABELS, Wanted, cell_text, from_columns, pick_columns
from finesight.errors import DataError

_PROBE_SECONDS = 5.0
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*){0,2}$")
_WAY = (
    "Offline way: where there is network, save it with datasets.load_dataset(...).save_to_disk(FOLDER), "
    "then give --data.root FOLDER (or any local image folder)"
)


class _Part(NamedTuple):
    """One split as an Arrow table; `split` is its name in the source, "" for none."""

    split: str
    table: pa.Table
    features: datasets.Features


def read_hub(name: str, config: DataConfig, wanted: Wanted = LABELS) -> Samples:
    """Samples of `OWNER/NAME` or `OWNER/NAME/CONFIGURATION` at `config.revision`.

    Without network a cached copy is used; if there is none, a `DataError` says within seconds what to do.
    """
    if not _NAME.match(name) or Path(name).is_dir():
        raise DataError(
            f"hub:{name}: expected hub:OWNER/NAME or hub:OWNER/NAME/CONFIGURATION, and no folder of that "
            "name here. For a folder on this machine give its path without 'hub:'."
        )
    owner, *rest = name.split("/")
    repository = "/".join([owner, *rest[:1]])
    unreachable = _probe(repository, config.revision)
    try:
        with _offline(unreachable is not None):
            loaded = datasets.load_dataset(repository, *rest[1:], revision=config.revision)
    except Exception as error:  # ValueError, RuntimeError, OSError and the library's own
        cause = unreachable or " ".join(str(error).split())[:300]
        raise DataError(f"hub:{name}: cannot be loaded ({cause}). {_WAY}.") from None
    if unreachable and config.revision not in (None, "main"):
        _check_cached(loaded, name, str(config.revision))
    return _from_datasets(loaded, f"hub:{name}", config, wanted)


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def read_saved(folder: Path, config: DataConfig, wanted: Wanted = LABELS) -> Samples:
    """Samples of a folder written by `save_to_disk`. Raises `DataError`."""
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # damaged JSON or Arrow files raise nearly anything
        raise DataError(f"{folder}: damaged ({' '.join(str(error).split())[:300]}). Save it anew.") from None
    return _from_datasets(loaded, str(folder), config, wanted)


def read_parquet(path: Path, config: DataConfig, wanted: Wanted = LABELS) -> Samples:
    """Samples of a parquet table with image paths, or with the images themselves as the Hub stores them."""
    try:
        table = _plain(pq.read_table(path, memory_map=True))
        features = datasets.Features.from_arrow_schema(table.schema)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable parquet file ({error}). Copy or write it anew.") from None
    image, label = _pick(str(path), features, config, wanted)
    if not _is_text(table.schema.field(image).type):
        return _from_parts([_Part("", table, features)], str(path), config, wanted)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    names = features[label].names if isinstance(features[label], datasets.ClassLabel) else None
    return from_columns(path, range(1, len(table) + 1), columns, config, [], names, wanted=wanted)


def _plain(table: pa.Table) -> pa.Table:
    """Columns of categories (pandas, polars) as what the categories are."""
    kinds = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(kinds, table.schema.metadata))


def _probe(repository: str, revision: str | None) -> str | None:
    """None if the Hub answers, else why not: the library itself would retry for half a minute."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        huggingface_hub.HfApi().dataset_info(repository, revision=revision, timeout=_PROBE_SECONDS)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        missing = "revision " + str(revision) if isinstance(error, errors.RevisionNotFoundError) else "data set"
        raise DataError(
            f"hub:{repository}: no such {missing} on the Hub, or it is private. Check the name, or log in "
            "with `hf auth login`."
        ) from None
    except Exception as error:  # each version of the library has its own network errors
        return f"the Hub cannot be reached: {' '.join(str(error).split())[:160]}"
    return None


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """Let `datasets` go straight to its cache."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _check_cached(loaded: datasets.DatasetDict, name: str, revision: str) -> None:
    # Without network the library takes the newest cached copy and ignores the revision; the cache
    # names its folders by commit.
    files = [file["filename"] for part in loaded.values() for file in part.cache_files]
    if not files or not all(any(part.startswith(revision) for part in Path(file).parts) for file in files):
        raise DataError(
            f"hub:{name}: the Hub cannot be reached and the cached copy is not known to be revision "
            f"{revision}. Give the full commit of the cached copy, or leave --data.revision out. {_WAY}."
        )


def _from_datasets(
    loaded: datasets.Dataset | datasets.DatasetDict, source: str, config: DataConfig, wanted: Wanted
) -> Samples:
    named = loaded if isinstance(loaded, dict) else {"": loaded}
    if len(named) > 1 and config.splits == "given":
        left_out = [split for split in named if split.lower() not in SPLITS]
        if left_out:
            logging.getLogger("finesight").warning(
                "%s: the splits %s are left out; --data.splits new would pool them.",
                source,
                ", ".join(left_out),
            )
        named = {split: part for split, part in named.items() if split not in left_out}
    if not named:
        raise DataError(f"{source}: has no split named {', '.join(SPLITS)}. Give --data.splits new.")
    parts = [_Part(split, part.with_format("arrow")[:], part.features) for split, part in sorted(named.items())]
    return _from_parts(parts, source, config, wanted)


def _from_parts(parts: list[_Part], source: str, config: DataConfig, wanted: Wanted) -> Samples:
    image, label = _pick(source, parts[0].features, config, wanted)
    problems = [
        f"{source}: split {part.split!r} has other columns or classes than {parts[0].split!r}."
        for part in parts[1:]
        if any(part.features.get(name) != parts[0].features[name] for name in (image, label))
    ]
    refuse(problems)
    named_splits = all(part.split.lower() in SPLITS for part in parts)
    splits = [SPLITS[part.split.lower()] for part in parts for _ in range(len(part.table))] if named_splits else None
    labels, classes = _labels(parts, label, source)
    ids = _texts(parts, "id", source, problems)
    if ids is None or len(set(ids)) < len(ids):
        ids = [name for part in parts for name in numbered_ids(part.split or "image", len(part.table))]
    groups = _texts(parts, config.group or "group", source, problems)
    refuse(problems)
    images = pa.chunked_array(
        [chunk for part in parts for chunk in _images(part.table[image], f"{source}: column {image!r}").chunks]
    )
    return Samples(ids, labels, classes, images, splits, groups, columns=list(parts[0].features))


def _pick(source: str, features: datasets.Features, config: DataConfig, wanted: Wanted) -> tuple[str, str]:
    """By the configured name, by the usual names, or the only column of the fitting type."""
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    update = {}
    if config.image_column is None and len(images) == 1:
        update["image_column"] = images[0]
    if wanted is LABELS and config.label_column is None and len(labels) == 1 and not set(LABEL_NAMES) & set(features):
        update["label_column"] = labels[0]
    return pick_columns(source, list(features), config.model_copy(update=update), wanted)


def _labels(parts: list[_Part], column: str, source: str) -> tuple[np.ndarray, list[str]]:
    kind = parts[0].features[column]
    names = kind.names if isinstance(kind, datasets.ClassLabel) else None
    values = [(part.split, row, value) for part in parts for row, value in enumerate(part.table[column].to_pylist())]
    problems = []
    for split, row, value in values:
        where = f"{source}, {split or 'table'} row {row}"
        if cell_text(value) is None:
            problems.append(f"{where}: the label is missing.")
        elif names and not 0 <= value < len(names):
            problems.append(f"{where}: label {value} is out of range 0..{len(names) - 1}.")
        elif isinstance(value, int) and value < 0:
            problems.append(f"{where}: label {value} is out of range; class numbers start at 0.")
    refuse(problems)
    if names:
        return np.array([value for _, _, value in values], np.int64), list(names)
    return encode([cell_text(value) or "" for _, _, value in values])


def _texts(parts: list[_Part], column: str, source: str, problems: list[str]) -> list[str] | None:
    if column not in parts[0].features:
        return None
    texts = [cell_text(value) for part in parts for value in part.table[column].to_pylist()]
    missing = sum(text is None for text in texts)
    if missing:
        problems.append(f"{source}: column {column!r} is empty in {missing} of {len(texts)} rows.")
    return [text or "" for text in texts]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _images(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """As struct<bytes, path>, without copying where it is one already."""
    kind = column.type
    wanted = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    if kind == wanted:
        found = column
    elif pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        found = column.cast(wanted)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        chunks = [
            pa.StructArray.from_arrays(
                [chunk.cast(pa.binary()), pa.nulls(len(chunk), pa.string())], names=["bytes", "path"]
            )
            for chunk in column.chunks
        ]
        found = pa.chunked_array(chunks, wanted)
    elif _is_text(kind):
        found = pa.chunked_array([path_images(column.to_pylist())])
    else:
        raise DataError(f"{where} holds {kind}; expected images, encoded bytes, or paths.")
    nothing = pc.and_(pc.is_null(pc.struct_field(found, "bytes")), pc.is_null(pc.struct_field(found, "path")))
    empty = pc.sum(nothing).as_py()
    if empty:
        raise DataError(f"{where}: {empty} of {len(found)} images are missing.")
    return found
