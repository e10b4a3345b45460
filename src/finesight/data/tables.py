"""CSV, TSV, JSONL and parquet tables with a path and a label per image.

Paths are relative to the table's folder. Absolute paths and `..` are allowed: a table is the user's
own list of the user's own files, unlike an archive, whose members somebody else named.
Columns are found by their usual names; `split`, `group` and `id` are optional.
"""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from finesight.config import nearest
from finesight.data.config import DataConfig
from finesight.data.problems import refuse
from finesight.data.samples import SPLITS, Samples, encode, path_images
from finesight.errors import DataError

IMAGE_NAMES = ["image", "path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "img"]
LABEL_NAMES = ["label", "class", "category", "target", "labels", "class_name", "fine_label", "y"]
Columns = dict[str, list[Any]]


class Wanted(NamedTuple):
    """What is read of a row beside its image, from the column `DataConfig.label_column` or one of the usual `names`.

    `kind` is what messages call it. With `several` an image may stand in several rows, each of them a sample, also
    under one id.
    """

    kind: str
    names: Sequence[str]
    several: bool = False


LABELS = Wanted("label", LABEL_NAMES)


def read_table(path: Path, config: DataConfig, wanted: Wanted = LABELS) -> Samples:
    """Samples of a table; ids are the `id` column or the paths. Raises one `DataError` with every bad row."""
    reader = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl}.get(path.suffix.lower(), _read_csv)
    problems: list[str] = []
    rows, columns = reader(path, problems)
    return from_columns(path, rows, columns, config, problems, wanted=wanted)


def from_columns(
    path: Path,
    rows: Sequence[int],
    columns: Columns,
    config: DataConfig,
    problems: list[str],
    class_names: list[str] | None = None,
    *,
    wanted: Wanted = LABELS,
) -> Samples:
    """Check and convert the columns of a table.

    `rows`: the row or line numbers for messages. `class_names`: where labels are numbers of these.
    """
    image, label = pick_columns(str(path), list(columns), config, wanted)
    table = _Table(path, rows, columns, problems)
    paths = table.paths(columns[image])
    labels = table.labels(columns[label], class_names)
    by_name = {name.lower(): name for name in columns}
    splits = table.splits(columns[by_name["split"]]) if "split" in by_name else None
    groups = _named(columns, config.group)
    groups = table.texts(groups, "group") if groups is not None else None
    ids = table.texts(columns[by_name["id"]], "id") if "id" in by_name else table.relative(paths)
    table.unique(ids, paths if wanted.several else ids)
    refuse(problems)
    if not ids:
        raise DataError(f"{path}: holds no rows.")
    numbers, classes = encode(labels, class_names)
    folders = [os.path.dirname(name) for name in table.relative(paths)]
    return Samples(ids, numbers, classes, path_images(paths), splits, groups, folders, list(columns))


def pick_columns(source: str, names: list[str], config: DataConfig, wanted: Wanted = LABELS) -> tuple[str, str]:
    """The image and the label column, as configured or by their usual names. Raises `DataError`."""
    problems: list[str] = []
    found = []
    for kind, asked, usual in (
        ("image", config.image_column, IMAGE_NAMES),
        (wanted.kind, config.label_column, wanted.names),
    ):
        lower = {name.lower(): name for name in reversed(names)}
        if asked is not None:
            match = asked if asked in names else None
            hint = f"no column {asked!r}{nearest(asked, names)}"
        else:
            match = next((lower[name] for name in usual if name in lower), None)
            near = nearest(kind, names)
            hint = f"no {kind} column found by name{f'{near} Give' if near else '; give'} --data.{kind}_column"
        if match is None:
            problems.append(f"{source}: {hint}. Columns: {', '.join(names) or 'none'}.")
        found.append(match or "")
    refuse(problems)
    return found[0], found[1]


def _named(columns: Columns, group: str | None) -> list[Any] | None:
    name = group if group is not None else next((name for name in columns if name.lower() == "group"), None)
    return columns.get(name) if name is not None else None


class _Table:
    """Columns of one table, with the place of each row for messages."""

    def __init__(self, path: Path, rows: Sequence[int], columns: Columns, problems: list[str]) -> None:
        self.path, self.rows, self.columns, self.problems = path, rows, columns, problems

    def say(self, position: int, text: str) -> None:
        self.problems.append(f"{self.path}, row {self.rows[position]}: {text}.")

    def paths(self, values: list[Any]) -> list[str]:
        folder = os.path.abspath(self.path.parent)
        found = []
        for position, value in enumerate(values):
            text = cell_text(value) or ""
            place = os.path.normpath(os.path.join(folder, os.path.expanduser(text)))
            if not text:
                self.say(position, "the image path is missing")
            elif not os.path.isfile(place):
                self.say(position, f"no image at {text!r} (looked for {place})")
            found.append(place if text else "")
        return found

    def relative(self, paths: list[str]) -> list[str]:
        folder = os.path.abspath(self.path.parent) + os.sep
        return [path.removeprefix(folder).replace(os.sep, "/") for path in paths]

    def labels(self, values: list[Any], names: list[str] | None) -> list[str]:
        found = []
        for position, value in enumerate(values):
            text = cell_text(value)
            if text is None:
                self.say(position, "the label is missing")
            elif names is not None:
                if 0 <= value < len(names):
                    text = names[value]
                else:
                    self.say(position, f"label {value} is out of range 0..{len(names) - 1}")
            elif text.startswith("-") and text[1:].isdecimal():
                self.say(position, f"label {text} is out of range; class numbers start at 0")
            found.append(text or "")
        return found

    def splits(self, values: list[Any]) -> list[str]:
        found = []
        for position, value in enumerate(values):
            split = SPLITS.get((cell_text(value) or "").lower())
            if split is None:
                self.say(position, f"split {value!r} is not one of {', '.join(SPLITS)}")
            found.append(split or "")
        return found

    def texts(self, values: list[Any], name: str) -> list[str]:
        found = [cell_text(value) for value in values]
        for position, text in enumerate(found):
            if text is None:
                self.say(position, f"the {name} is missing")
        return [text or "" for text in found]

    def unique(self, ids: list[str], images: list[str]) -> None:
        """Every id once, or, where `images` are not the ids, for one image only."""
        first: dict[str, int] = {}
        for position, name in enumerate(ids):
            before = first.setdefault(name, position)
            if before != position and name and (images is ids or images[before] != images[position]):
                self.say(position, f"{name!r} already stands in row {self.rows[before]}; ids must be unique")


def cell_text(value: Any) -> str | None:
    """A cell as text: whole floats as integers, None and NaN and blanks as missing."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() or None


def text_columns(path: Path) -> list[str]:
    """The columns of a table that may hold paths; none where it is no table or cannot be read."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq") or not path.is_file():
        return []
    try:
        if kind in (".parquet", ".pq"):
            return [column.name for column in pq.read_schema(path) if pa.types.is_string(column.type)]
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            line = file.readline()
        return list(json.loads(line)) if kind in (".jsonl", ".ndjson") else _header(_cells(line))
    except (OSError, ValueError, TypeError, csv.Error, pa.ArrowException):
        return []  # what is wrong with it is explained where it is read


def _cells(text: str) -> Any:
    """The rows of a CSV, cut at the sign that its first line has most of. (Its type has no public name.)"""
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)


def _header(reader: Any) -> list[str]:
    return [name.strip() for name in next(reader, [])]


def _read_csv(path: Path, problems: list[str]) -> tuple[list[int], Columns]:
    rows: list[int] = []
    cells: list[list[str]] = []
    reader = _cells(_read_text(path))
    header: list[str] = []
    try:
        header = _header(reader)
        if len(set(header)) < len(header):
            raise DataError(f"{path}: the header names a column twice: {', '.join(header)}.")
        for cell in reader:
            if cell and _good_row(path, reader.line_num, cell, len(header), problems):
                rows.append(reader.line_num)
                cells.append(cell)
    except csv.Error as error:
        problem = (
            f"{path}, row {reader.line_num}: {error}. A quote is not closed, or stands within a cell: put the cell "
            'into double quotes, and write each quote within it twice ("").'
        )
        if not header:
            raise DataError(problem) from None
        problems.append(problem)
    columns = {name: [row[position] for row in cells] for position, name in enumerate(header)}
    return rows, columns


def _good_row(path: Path, number: int, cells: list[str], width: int, problems: list[str]) -> bool:
    if any(_not_utf8(cell) for cell in cells):
        problems.append(f"{path}, row {number}: not valid UTF-8. Save the file as UTF-8.")
        return False
    if len(cells) != width:
        problems.append(f"{path}, row {number}: {len(cells)} cells, but the header has {width}.")
        return False
    return True


def _read_jsonl(path: Path, problems: list[str]) -> tuple[list[int], Columns]:
    rows: list[int] = []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        if _not_utf8(line):
            problems.append(f"{path}, row {number}: not valid UTF-8. Save the file as UTF-8.")
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            problems.append(f"{path}, row {number}: not valid JSON ({error}).")
            continue
        if isinstance(record, dict):
            rows.append(number)
            records.append(record)
        else:
            problems.append(f"{path}, row {number}: {type(record).__name__}, where an object is expected.")
    names = dict.fromkeys(name for record in records for name in record)
    return rows, {name: [record.get(name) for record in records] for name in names}


def _read_text(path: Path) -> str:
    """The file as text; bytes that are no UTF-8 become lone surrogates, found again row by row."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: is UTF-16. Save the file as UTF-8.")
    return data.decode("utf-8-sig", errors="surrogateescape")


def _not_utf8(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)
