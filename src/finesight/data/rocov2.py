"""Radiology images with captions in the layout of ROCOv2 (Rückert et al. 2024, Scientific Data 11:688).

A folder with `train_images.zip` and, where there are any, `valid_images.zip` and `test_images.zip`, read
in place; beside each a `<split>_captions.csv` (ID,Caption) and perhaps a `<split>_concepts.csv` (ID,CUIs
separated by ';'); `cui_mapping.csv` (CUI,Canonical name) names the concepts. Images are
`<anything>/<ID>.jpg`. IDs contain dots, so only the extension of an image is taken off.
"""

import csv
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finesight.data import archives
from finesight.data.images import is_image_name, zip_path
from finesight.data.problems import refuse
from finesight.data.samples import Samples, path_images
from finesight.errors import DataError

# The name of each split in the file names, and here.
_PARTS = {"train": "train", "valid": "validation", "test": "test"}
_MAPPING = "cui_mapping.csv"
_MEND = "Add the missing one, or remove both"


@dataclass
class Captioned(Samples):
    """Samples with a caption each, and the names of its concepts (none where there is no table of them).

    Both lists are empty where captions were not asked for.
    """

    captions: list[str] = field(default_factory=list)
    concepts: list[list[str]] = field(default_factory=list)


def is_rocov2(folder: Path) -> bool:
    """Whether a folder holds the zips of the layout: at least one `<split>_images.zip`."""
    return any((folder / f"{part}_images.zip").is_file() for part in _PARTS)


def read(folder: Path, *, captions: bool) -> Captioned:
    """The images of the layout in the order of train, validation, test and of their IDs, which are the ids.

    Labels are all 0, of the one class "image"; the images are references into the zips. Without `captions`
    no table is opened. Raises one `DataError` with everything that is wrong, with file and row (the line
    where it begins; the header is row 1): an ID twice in a table, in two zips or in two places of one, an
    empty caption, a caption without an image or an image without one, bytes that are no UTF-8, missing columns.
    """
    folder = Path(os.path.abspath(folder))
    problems: list[str] = []
    places = {part: _members(folder / f"{part}_images.zip", problems) for part in _PARTS}
    _refuse_shared(folder, places, problems)
    rows = [(part, name) for part, members in places.items() for name in sorted(members)]
    texts: dict[str, str] = {}
    concepts: dict[str, list[str]] = {}
    if captions:
        home: dict[str, str] = {}
        for part, members in places.items():
            texts |= _captions(folder, part, members, home, problems)
            concepts |= _concepts(folder, part, members, problems)
        concepts = _named(folder / _MAPPING, concepts, problems)
    refuse(problems)
    if not rows:
        raise DataError(f"{folder}: its zips hold no images; expected train/<ID>.jpg in train_images.zip.")
    names = [name for _, name in rows]
    return Captioned(
        ids=names,
        labels=np.zeros(len(rows), np.int64),
        classes=["image"],
        images=path_images([zip_path(str(folder / f"{part}_images.zip"), places[part][name]) for part, name in rows]),
        splits=[_PARTS[part] for part, _ in rows],
        captions=[texts[name] for name in names] if captions else [],
        concepts=[concepts.get(name, []) for name in names] if captions else [],
    )


def _members(path: Path, problems: list[str]) -> dict[str, str]:
    """ID -> name in the archive; nothing where there is no such archive, except of training."""
    if not path.is_file():
        if path.name == "train_images.zip":
            problems.append(f"{path}: is missing, so there is nothing to train on. Put it beside the others.")
        return {}
    if "::" in str(path):
        problems.append(f"{path}: an archive cannot be read below a path with '::' in it. Rename that folder.")
        return {}
    try:
        members = archives.index(str(path))
    except DataError as error:
        problems.extend(error.problems)
        return {}
    found: dict[str, str] = {}
    for member in sorted(members):
        if not is_image_name(member):
            continue
        name = os.path.splitext(member.rpartition("/")[2])[0]
        before = found.setdefault(name, member)
        if before != member:
            problems.append(f"{path}: the ID {name!r} is there twice, as {before!r} and {member!r}. Remove one.")
    return found


def _refuse_shared(folder: Path, places: dict[str, dict[str, str]], problems: list[str]) -> None:
    home: dict[str, str] = {}
    for part, members in places.items():
        for name in sorted(members):
            before = home.setdefault(name, part)
            if before != part:
                problems.append(
                    f"{folder}: the ID {name!r} is in {before}_images.zip and in {part}_images.zip: the same image on "
                    "two sides. Remove one."
                )


def _captions(
    folder: Path, part: str, members: dict[str, str], home: dict[str, str], problems: list[str]
) -> dict[str, str]:
    """ID -> caption of this part; `home` remembers in which table and row an ID stood first."""
    path, archive = folder / f"{part}_captions.csv", folder / f"{part}_images.zip"
    if not path.is_file() and not archive.is_file():
        return {}
    if not path.is_file() or not archive.is_file():
        lacking, there = (path, archive) if archive.is_file() else (archive, path)
        if lacking.name != "train_images.zip":  # which is reported already
            problems.append(f"{lacking}: is missing, while {there.name} is there. {_MEND}.")
        return {}
    table = _Table(path, "ID", "Caption", problems)
    for name, (row, text) in table.rows.items():
        if not text:
            problems.append(f"{path}, row {row}: the caption of {name!r} is empty. Write one, or remove the image too.")
        before = home.setdefault(name, f"{path.name}, row {row}")
        if not before.startswith(path.name):
            problems.append(f"{path}, row {row}: the ID {name!r} is also in {before}, another split. Remove one.")
    table.refuse_strangers(members, archive.name)
    if table.whole:
        problems += [
            f"{archive}: the image {member!r} has no row in {path.name}. {_MEND}."
            for name, member in members.items()
            if name not in table.seen
        ]
    return {name: text for name, (_, text) in table.rows.items()}


def _concepts(folder: Path, part: str, members: dict[str, str], problems: list[str]) -> dict[str, list[str]]:
    """ID -> CUIs; an image without a row has none."""
    path = folder / f"{part}_concepts.csv"
    if not path.is_file() or not (folder / f"{part}_images.zip").is_file():
        return {}
    table = _Table(path, "ID", "CUIs", problems)
    table.refuse_strangers(members, f"{part}_images.zip")
    return {name: [cui.strip() for cui in text.split(";") if cui.strip()] for name, (_, text) in table.rows.items()}


def _named(path: Path, concepts: dict[str, list[str]], problems: list[str]) -> dict[str, list[str]]:
    """The concepts by their names; a CUI that the mapping lacks stays as it is."""
    if not path.is_file() or not concepts:
        return concepts
    names = {cui: name for cui, (_, name) in _Table(path, "CUI", "Canonical name", problems).rows.items() if name}
    return {name: [names.get(cui, cui) for cui in cuis] for name, cuis in concepts.items()}


class _Table:
    """Two columns of a CSV: key -> (row, text). What is wrong with it is added to `problems`.

    `seen` holds the keys of all rows, sound or not; `whole` is False where not every row could be read.
    """

    def __init__(self, path: Path, key: str, value: str, problems: list[str]) -> None:
        self.path, self.key, self.problems = path, key, problems
        self.rows: dict[str, tuple[int, str]] = {}
        self.seen: set[str] = set()
        self.whole = True
        try:
            # Bytes that are no UTF-8 become lone surrogates, found again row by row.
            text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
        except OSError as error:
            self._stop(f"{path}: cannot be read: {error.strerror}.")
            return
        records = _records(text, lambda row, cause: self._stop(f"{path}, row {row}: {cause}. Mend this row."))
        _, header = next(records, (1, []))
        if _not_utf8(header):
            self._stop(f"{path}, row 1: not valid UTF-8. Save the file as UTF-8.")
        if not self.whole:
            return
        names = [name.strip().casefold() for name in header]
        lacking = [name for name in (key, value) if name.casefold() not in names]
        if lacking:
            self._stop(f"{path}, row 1: no column {' and '.join(lacking)}. Columns: {', '.join(header) or 'none'}.")
            return
        places = names.index(key.casefold()), names.index(value.casefold())
        for row, cells in records:
            self._add(row, cells, len(header), *places)

    def refuse_strangers(self, members: dict[str, str], archive: str) -> None:
        """Report the rows whose image is not among the members of the archive."""
        for name, (row, _) in self.rows.items():
            if name not in members:
                self.problems.append(f"{self.path}, row {row}: no image {name!r} in {archive}. {_MEND}.")

    def _add(self, row: int, cells: list[str], width: int, key: int, value: int) -> None:
        where = f"{self.path}, row {row}"
        if key < len(cells):
            self.seen.add(cells[key].strip())
        if _not_utf8(cells):
            self.problems.append(f"{where}: not valid UTF-8. Save the file as UTF-8.")
        elif len(cells) != width:
            self.problems.append(
                f"{where}: {len(cells)} cells, but the header has {width}. Put text with commas into double quotes."
            )
        elif not (name := cells[key].strip()):
            self.problems.append(f"{where}: the {self.key} is missing. Fill it in, or remove the row.")
        elif name in self.rows:
            before = self.rows[name][0]
            self.problems.append(f"{where}: the {self.key} {name!r} already stands in row {before}. Remove one.")
        else:
            self.rows[name] = row, cells[value].strip()

    def _stop(self, problem: str) -> None:
        self.problems.append(problem)
        self.whole = False


def _not_utf8(cells: list[str]) -> bool:
    return any("\udc80" <= letter <= "\udcff" for cell in cells if not cell.isascii() for letter in cell)


def _records(text: str, fail: Callable[[int, str], None]) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, cells) of each record that is not blank; `fail` where the rest cannot be read."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        row = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fail(row, str(error))
            return
        if cells:
            yield row, cells
