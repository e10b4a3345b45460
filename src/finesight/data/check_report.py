"""What `finesight data check` finds, as an object and as JSON."""

from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np


@dataclass
class Alike:
    """Images that are the same, by bytes (two or more) or to the eye (two)."""

    rows: list[int]
    ids: list[str]
    splits: list[str]
    classes: list[str]
    how: str  # "equal bytes", "copy, flipped left-right", "photographed again, or shifted"
    similarity: float = 1.0  # in (0, 1]

    @property
    def across(self) -> bool:
        return len(set(self.splits)) > 1

    @property
    def conflicting(self) -> bool:
        return len(set(self.classes)) > 1


@dataclass
class CheckReport:
    """What `check` found; `to_json` gives it to other programs."""

    path: str
    group: str | None  # the rule of `DataConfig.group`
    given: bool  # whether the source says which image belongs to which split
    classes: list[str]
    splits: dict[str, dict[str, int]]  # {split: {class: images}}, unreadable ones included
    sizes: dict[str, Any]
    corrupt: list[dict[str, str]]
    odd: list[dict[str, str]]
    blank: list[str]
    exact: list[Alike]
    near: list[Alike]
    groups: dict[str, Any]
    few_images: list[dict[str, Any]]
    imbalance: dict[str, Any] | None
    errors: list[str]  # what `loading.load` would refuse, besides leaks and corrupt files
    warnings: list[str]
    dataset: datasets.Dataset = field(repr=False)
    readable: np.ndarray = field(repr=False)  # bool [N]

    @property
    def leaks(self) -> bool:
        return any(alike.across for alike in self.exact + self.near) or bool(self.groups["across"])

    @property
    def exit_code(self) -> int:
        """1 when a split leaks, a file is corrupt or training would refuse the data; else 0."""
        return int(self.leaks or bool(self.corrupt) or bool(self.errors))

    def to_json(self) -> dict[str, Any]:
        """The object that `finesight data check --json` prints, of strings, numbers, lists and objects.

        `path`; `images` (their number); `splits_given`; `splits` {split, or "all" where the source has none:
        {class: number}}; `classes` [name]; `sizes` {"width" and "height": {"min", "median", "max"} in pixels,
        "kinds": {"JPEG RGB": number}}; `corrupt` and `odd` [{"id", "reason"}]; `blank` [id];
        `exact_duplicates` and `near_duplicates` {"within", "across" the splits, "conflicting" in class: [{"ids",
        "splits", "classes", "how", "similarity"}]}; `groups` {"count" (null: every image is its own), "across":
        [{"group", "splits": {split: number}}]}; `few_images` [{"class", "images", "level": "error" or "warning"}];
        `imbalance` {"largest", "smallest": {"class", "images"}, "ratio"} or null; `errors`, `warnings`, `remedies`
        [sentence]; `leaks` (true or false); `verdict` (a sentence); `exit_code` (0 or 1).
        """
        from finesight.data import check_text

        return {
            "path": self.path,
            "images": sum(sum(counts.values()) for counts in self.splits.values()),
            "splits_given": self.given,
            "splits": self.splits,
            "classes": self.classes,
            "sizes": self.sizes,
            "corrupt": self.corrupt,
            "odd": self.odd,
            "blank": self.blank,
            "exact_duplicates": _sides(self.exact),
            "near_duplicates": _sides(self.near),
            "groups": self.groups,
            "few_images": self.few_images,
            "imbalance": self.imbalance,
            "errors": self.errors,
            "warnings": self.warnings,
            "leaks": self.leaks,
            "verdict": check_text.verdict(self),
            "remedies": check_text.remedies(self),
            "exit_code": self.exit_code,
        }


def _sides(found: list[Alike]) -> dict[str, Any]:
    """{"within", "across", "conflicting"}: each a list of duplicates as plain objects."""

    def plain(alike: Alike) -> dict[str, Any]:
        return {
            "ids": alike.ids,
            "splits": alike.splits,
            "classes": alike.classes,
            "how": alike.how,
            "similarity": round(alike.similarity, 4),
        }

    return {
        "within": [plain(alike) for alike in found if not alike.across],
        "across": [plain(alike) for alike in found if alike.across],
        "conflicting": [plain(alike) for alike in found if alike.conflicting],
    }
