"""Which samples share an origin and must stay in one split."""

import re

from finesight.data.images import is_image_name
from finesight.data.plantvillage import leaf_id
from finesight.data.problems import examples
from finesight.data.samples import Samples
from finesight.errors import ConfigError, DataError


def resolve(samples: Samples, rule: str | None) -> list[str]:
    """The group of each sample by `DataConfig.group`; its own id where samples are independent.

    A column wins, then "folder" (the folders below the class; the same name below two classes is
    one group), "leaf" (`plantvillage.leaf_id`), else a regular expression searched in the id, whose
    one group is the name. Raises `ConfigError` for an impossible rule, `DataError` for one that does
    not fit the data.
    """
    if samples.groups is not None:
        return samples.groups
    if rule is None:
        return samples.ids
    if rule == "folder":
        return _by_folder(samples)
    if rule == "leaf":
        _require([name for name in samples.ids if not is_image_name(name)], samples, "are no image file names")
        return [leaf_id(name) for name in samples.ids]
    return _by_pattern(samples, rule)


def merge(groups: list[str], clusters: list[int]) -> list[str]:
    """Join groups that share a cluster, and clusters that share a group; named after the first of each.

    `clusters`: one number per sample; equal numbers belong together.
    """
    parent: dict[str | int, str | int] = {}

    def root(item: str | int) -> str | int:
        while (above := parent.setdefault(item, item)) != item:
            parent[item] = parent[above]
            item = above
        return item

    for group, cluster in zip(groups, clusters, strict=True):
        parent[root(int(cluster))] = root(group)
    first: dict[str | int, str] = {}
    for group in sorted(set(groups)):
        first.setdefault(root(group), group)
    return [first[root(group)] for group in groups]


def _by_folder(samples: Samples) -> list[str]:
    if samples.folders is None or not any(samples.folders):
        raise DataError(
            "data.group: 'folder' needs images in folders below their class (CLASS/PATIENT/image.jpg), and "
            "there are none. Leave it out, or give a column or a regular expression."
        )
    return [folder or name for folder, name in zip(samples.folders, samples.ids, strict=True)]


def _by_pattern(samples: Samples, rule: str) -> list[str]:
    columns = f" Columns: {', '.join(samples.columns)}." if samples.columns else ""
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise ConfigError(
            f"data.group: {rule!r} is neither a column, 'folder' nor 'leaf', and not a valid regular "
            f"expression ({error}).{columns}"
        ) from None
    if pattern.groups != 1:
        raise ConfigError(
            f"data.group: {rule!r} is neither a column, 'folder' nor 'leaf'; as a regular expression it "
            f"needs exactly one group in round brackets, as in '(patient\\d+)', and has {pattern.groups}."
            f"{columns}"
        )
    found = [pattern.search(name) for name in samples.ids]
    lacking = [name for name, match in zip(samples.ids, found, strict=True) if match is None or match[1] is None]
    _require(lacking, samples, f"do not match {rule!r}")
    return [match[1] for match in found if match is not None]


def _require(lacking: list[str], samples: Samples, what: str) -> None:
    if lacking:
        raise DataError(
            f"data.group: {len(lacking)} of {len(samples.ids)} ids {what}: {examples(lacking)}. "
            "Every image needs a group."
        )
