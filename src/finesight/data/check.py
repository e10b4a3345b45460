"""Look at a data set before training on it: counts, sizes, faults, duplicates, and leaks between its splits.

Splits are judged as the source gives them; `loading.load` would refuse or repair some of what is
found here. Every image is read and decoded once.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from finesight.config import build
from finesight.data import groups, loading
from finesight.data.check_report import Alike, CheckReport
from finesight.data.config import DataConfig
from finesight.data.duplicates import exact_duplicates, near_duplicates
from finesight.data.samples import Samples
from finesight.data.scan import Scan, scan
from finesight.data.similarity import OTHER_WAY, TURNS, flat
from finesight.errors import DataError

FEW = 20
"""A class with fewer training images is warned of; with 0 or 1 it is an error."""
UNEVEN = 3.0
"""Ratio of the largest to the smallest class from which on the imbalance is warned of."""
WHOLE = "all"
"""Stands for the split where the source has none."""
_ORDER = ("train", "validation", "test", WHOLE)


def main(path: str, *, as_json: bool, output: str | None, options: dict[str, Any]) -> int:
    """`finesight data check PATH`: print what `check` finds, write the pages to `output`; the exit code.

    `options` are those of `DataConfig`. Raises `DataError` or `ConfigError` (exit code 2) for a source
    that cannot be listed at all.
    """
    from finesight.data import check_page, check_text

    config = build(DataConfig, options, {"root": path})
    folder = Path(output) if output else None
    if folder:
        _refuse_output(folder, path)
    report = check(config)
    if folder:
        check_page.write(report, folder)
    if as_json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print("\n".join(check_text.lines(report)))
        if folder:
            print(f"Pictures: {folder / 'check.html'}")
    return report.exit_code


def check(config: DataConfig, *, shown: bool = True) -> CheckReport:
    """Examine a source; `shown`: progress on standard error. Raises as `loading.read` does."""
    samples = loading.read(config)
    group = groups.resolve(samples, config.group)
    dataset = samples.to_dataset(group)
    found = scan(dataset, config.sixteen_bit, shown=shown)
    splits = samples.splits or [WHOLE] * len(samples.ids)
    readable = np.ones(len(samples.ids), bool)
    readable[list(found.faults)] = False
    few, few_problems = _few_images(samples, splits, readable)
    errors, warnings = _problems(samples, splits, few)
    return CheckReport(
        path=config.root or "",
        group=config.group,
        given=samples.splits is not None,
        classes=samples.classes,
        splits=_counts(samples, splits),
        sizes=_sizes(found, readable),
        corrupt=_named(found.faults, samples),
        odd=_named(found.odd, samples),
        blank=sorted(samples.ids[row] for row in np.flatnonzero(flat(found.thumbs) & readable)),
        exact=_exact(found, samples, splits),
        near=_near(found, samples, splits, shown),
        groups=_groups(samples, group, splits),
        few_images=few,
        imbalance=_imbalance(samples, splits, readable),
        errors=errors,
        warnings=few_problems + warnings,
        dataset=dataset,
        readable=readable,
    )


def _refuse_output(folder: Path, path: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--output {folder}: is a file. Give a folder for the pages.")
    root = Path(path).expanduser()
    if root.is_dir() and folder.resolve().is_relative_to(root.resolve()):
        raise DataError(f"--output {folder}: lies inside the data, where its pictures would count as images.")


def _counts(samples: Samples, splits: list[str]) -> dict[str, dict[str, int]]:
    names = np.array(splits)
    return {
        split: dict(
            zip(
                samples.classes,
                np.bincount(samples.labels[names == split], minlength=len(samples.classes)).tolist(),
                strict=True,
            )
        )
        for split in _ORDER
        if (names == split).any()
    }


def _sizes(found: Scan, readable: np.ndarray) -> dict[str, Any]:
    """Smallest, median and largest width and height in pixels, and how many files of each kind."""
    sizes = found.sizes[readable]
    kinds, counts = np.unique(np.array(found.kinds)[readable], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    sides: dict[str, Any] = {}
    if len(sizes):
        for name, column in zip(("width", "height"), sizes.T, strict=True):
            sides[name] = {"min": int(column.min()), "median": float(np.median(column)), "max": int(column.max())}
    return {**sides, "kinds": {str(kinds[place]): int(counts[place]) for place in order}}


def _named(remarks: dict[int, str], samples: Samples) -> list[dict[str, str]]:
    """In the order of ids, however the source is listed."""
    return sorted(
        ({"id": samples.ids[row], "reason": reason} for row, reason in remarks.items()), key=lambda entry: entry["id"]
    )


def _alike(rows: list[int], samples: Samples, splits: list[str], how: str, similarity: float = 1.0) -> Alike:
    """`rows` put in order: training images first, then by id."""
    rows = sorted(rows, key=lambda row: (_ORDER.index(splits[row]), samples.ids[row]))
    classes = [samples.classes[samples.labels[row]] for row in rows]
    return Alike(rows, [samples.ids[row] for row in rows], [splits[row] for row in rows], classes, how, similarity)


def _exact(found: Scan, samples: Samples, splits: list[str]) -> list[Alike]:
    made = [_alike(rows, samples, splits, "equal bytes") for rows in exact_duplicates(found.hashes)]
    return sorted(made, key=lambda alike: alike.ids)


def _near(found: Scan, samples: Samples, splits: list[str], shown: bool) -> list[Alike]:
    """Near pairs; a pair stands for all files with the bytes of its two, so one on the other side is preferred."""
    # Of equal files one per split is enough to tell whether a pair leaks.
    same = {
        rows[0]: list({splits[row]: row for row in reversed(rows)}.values()) for rows in exact_duplicates(found.hashes)
    }
    pairs = near_duplicates(found, shown=shown)
    made = []
    columns = (pairs.first, pairs.second, pairs.similarity, pairs.turn, pairs.retake)
    for one, two, similarity, turn, retake in zip(*(column.tolist() for column in columns), strict=True):
        ends = [(a, b) for a in same.get(one, [one]) for b in same.get(two, [two])]
        rows = next((list(end) for end in ends if splits[end[0]] != splits[end[1]]), [one, two])
        alike = _alike(rows, samples, splits, "photographed again, or shifted", min(similarity, 1.0))
        if not retake:
            alike.how = f"copy, {TURNS[turn if alike.rows == rows else OTHER_WAY[turn]]}"
        made.append(alike)
    return sorted(made, key=lambda alike: alike.ids)


def _groups(samples: Samples, group: list[str], splits: list[str]) -> dict[str, Any]:
    """How many groups there are, and those with images in two splits."""
    sides: dict[str, dict[str, int]] = {}
    for name, split in zip(group, splits, strict=True):
        counts = sides.setdefault(name, {})
        counts[split] = counts.get(split, 0) + 1
    named = group is not samples.ids
    across = [{"group": name, "splits": counts} for name, counts in sorted(sides.items()) if len(counts) > 1]
    return {"count": len(sides) if named else None, "across": across if named else []}


def _few_images(samples: Samples, splits: list[str], readable: np.ndarray) -> tuple[list[dict[str, Any]], list[str]]:
    """Classes with fewer than 20 readable images to train on, fewest first; and the warnings."""
    counts = _trained(samples, splits, readable)
    few = [
        {"class": name, "images": count, "level": "error" if count < 2 else "warning"}
        for name, count in sorted(counts.items(), key=lambda item: item[1])
        if count < FEW
    ]
    warned = [entry for entry in few if entry["level"] == "warning"]
    if not warned:
        return few, []
    fewest = warned[0]
    return few, [
        f"{len(warned)} of {len(counts)} classes have fewer than {FEW} images to train on "
        f"({fewest['class']!r}: {fewest['images']}): expect poor results for them."
    ]


def _trained(samples: Samples, splits: list[str], readable: np.ndarray) -> dict[str, int]:
    """Readable images per class in the training split, or in all where there are no splits."""
    side = "train" if samples.splits is not None and "train" in splits else None
    used = readable & np.array([side is None or split == side for split in splits], bool)
    counts = np.bincount(samples.labels[used], minlength=len(samples.classes))
    return dict(zip(samples.classes, counts.tolist(), strict=True))


def _imbalance(samples: Samples, splits: list[str], readable: np.ndarray) -> dict[str, Any] | None:
    """The largest and the smallest class to train on; None where one is empty or there is only one."""
    counts = _trained(samples, splits, readable)
    largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if len(counts) < 2 or not counts[smallest]:
        return None
    return {
        "largest": {"class": largest, "images": counts[largest]},
        "smallest": {"class": smallest, "images": counts[smallest]},
        "ratio": round(counts[largest] / counts[smallest], 3),
    }


def _problems(samples: Samples, splits: list[str], few: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    errors = [
        f"Class {entry['class']!r} has {entry['images']} readable image{'' if entry['images'] == 1 else 's'} "
        "to train on; at least 2 are needed."
        for entry in few
        if entry["level"] == "error"
    ]
    if len(samples.classes) < 2:
        errors.append(f"There is only one class, {samples.classes[0]!r}. Two or more are needed.")
    twice = len(samples.ids) - len(set(samples.ids))
    if twice:
        errors.append(f"{twice} ids stand twice. Every image needs its own.")
    if samples.splits is not None and "train" not in splits:
        errors.append("There is no training split. Give --data.splits new to make all three anew.")
    warnings = []
    for split, counts in _counts(samples, splits).items():
        empty = [name for name, count in counts.items() if not count]
        if split in ("validation", "test") and empty:
            warnings.append(f"The {split} split lacks {len(empty)} of {len(counts)} classes (first: {empty[0]!r}).")
    return errors, warnings
