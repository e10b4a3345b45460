"""Two domains of the same classes: a labelled source, and a target whose labels training never sees."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from pydantic import Field

from finesight import cache
from finesight.config import Section
from finesight.data import folders, loading, mnist_m, splits
from finesight.data.config import DataConfig
from finesight.data.fingerprint import content_hashes
from finesight.data.problems import examples
from finesight.data.samples import Samples, array_images, relabelled, take_rows
from finesight.errors import ConfigError, DataError

_DIGIT = 28  # side in pixels of what is blended into a photograph
_BACKGROUND = 0.25  # least share of black pixels for digits to be seen in full ink
_TEST_PART = 4  # of a single photograph, the right quarter is for the test half


class DomainDataConfig(Section):
    """Where the two domains are, and how they are split and prepared."""

    source: str | None = Field(
        None, description="Labelled images: MNIST idx folder, image folder, zip, CSV/JSONL/parquet, npz, sklearn:digits"
    )
    target: str | None = Field(
        None,
        description="Images of the other domain; labels, where there are any, only measure. A folder or zip "
        "without class folders is unlabelled. With backgrounds: the test images alone",
    )
    target_labels: Literal["auto", "none"] = Field(
        "auto", description="'none' reads the target without labels, whatever its folders are called"
    )
    backgrounds: str | None = Field(
        None,
        description="Photographs (folder, zip, or 'sklearn:photographs') to blend the source's digits into, as "
        "MNIST-M was made; the result is the target",
    )
    ink: Literal["full", "grey"] = Field(
        "full", description="Digits are blended with 255 wherever they are not 0, as published, or in their own greys"
    )
    margin: int = Field(
        0, ge=0, description="Black border in pixels around source images: 2 puts MNIST's 28 into 32, as MNIST-M has it"
    )
    splits: Literal["given", "new"] = Field("given", description="Keep the splits of each domain, or make them anew")
    validation: float = Field(0.1, gt=0, lt=1, description="Share of the source's training images held out to select")
    test: float = Field(0.2, gt=0, lt=1, description="Share held out for the test, where a domain has no test split")
    group: str | None = Field(None, description="Samples that share an origin stay in one split, as in `classify`")
    limit_train: int | None = Field(None, ge=1, description="At most this many training images of each domain")
    limit_validation: int | None = Field(None, ge=1, description="At most this many validation images")
    limit_test: int | None = Field(None, ge=1, description="At most this many test images of each domain")
    skip_bad: int = Field(0, ge=0, description="Leave out up to this many unreadable images instead of stopping")
    sixteen_bit: Literal["full", "minmax"] = Field(
        "full", description="16-bit images to 8: full range, or each its own"
    )
    fit: Literal["squash", "crop", "pad", "border"] | None = Field(None, description="How an image becomes square")
    size: int | None = Field(None, ge=8, description="Side in pixels at which images are held; the model's if none")
    cache_dir: str | None = Field(None, description="Folder for decoded images; default ~/.cache/finesight")

    def require(self) -> None:
        """Raise `ConfigError` where a domain is not named."""
        problems = []
        if self.source is None:
            problems.append("data.source: required, and not given. Name the labelled images: --data.source PATH.")
        if self.target is None and self.backgrounds is None:
            problems.append(
                "data.target: required, and not given. Name the images of the other domain: --data.target PATH, or "
                "photographs to make an MNIST-M of: --data.backgrounds PATH."
            )
        if problems:
            raise ConfigError(*problems)

    def of(self, root: str | None) -> DataConfig:
        """The options of one domain alone."""
        shared = set(DataConfig.model_fields) & set(type(self).model_fields)
        return DataConfig(root=root, **{name: getattr(self, name) for name in shared})

    @property
    def where(self) -> str:
        """Both domains, for run.json and the report."""
        target = self.target or ""
        made = f"digits over {self.backgrounds}" if self.backgrounds else ""
        return f"{self.source} → {', test '.join(part for part in (made, target) if part)}"

    def notes(self, data: Mapping[str, Any]) -> list[str]:
        """How the two domains were split, in sentences for the report."""
        notes = [
            "Source: train, validation and source_test, all labelled. Target: target_train, whose labels no training "
            "or selection sees, and test."
            if data["train"]["domain"][0] == "source"
            else "Train and validation are the target's own, with their labels: an upper bound, not an adaptation."
        ]
        if self.backgrounds:
            notes.append(
                "The target's training images were made from the source's training digits and photographs "
                "(|patch - digit|), in an order of their own."
            )
        if "source_test" not in data:
            notes.append("The target has no labels: the test split is the source's, and says nothing of the target.")
        return notes


def load(config: DomainDataConfig, seed: int, *, supervised_target: bool = False) -> datasets.DatasetDict:
    """Both domains, before anything is decoded.

    Returns `train` and `validation` of the source, `source_test`, `target_train` and `test` (of the
    target), each as `loading.load` returns them, with the source's classes and a column `domain`, "source" or
    "target". Where the target has no labels, `target_train` has -1 and `test` is the source's, without
    `source_test`. With `supervised_target` (the upper bound) `train` and `validation` are the target's.
    Raises `DataError` or `ConfigError`.
    """
    source = loading.load(config.of(config.source), seed)
    classes = source["train"].features["label"].names
    found = datasets.DatasetDict(train=source["train"], validation=source["validation"])
    target_train, target_test = _target(config, source, classes, seed)
    if supervised_target:
        if target_test is None:
            raise ConfigError(f"data.target: {config.target} has no labels, and target-only learns from them.")
        found = _parted(target_train, config, seed)
    domain = "target" if supervised_target else "source"
    found = datasets.DatasetDict({split: _of_domain(found[split], domain) for split in found})
    found["target_train"] = _of_domain(target_train, "target")
    source_test = _of_domain(source["test"], "source")
    if target_test is None:
        found["test"] = source_test
    else:
        found["source_test"], found["test"] = source_test, _of_domain(target_test, "target")
    return found


def load_test(config: DomainDataConfig, classes: list[str]) -> datasets.Dataset:
    """The labelled images of `config.target` (its test split where it has one) as a test of the target."""
    return _of_domain(loading.load_test_set(config.of(config.target), classes), "target")


def _of_domain(dataset: datasets.Dataset, name: str) -> datasets.Dataset:
    return dataset.add_column("domain", [name] * len(dataset))


def _target(
    config: DomainDataConfig, source: datasets.DatasetDict, classes: list[str], seed: int
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Training and test images of the target; no test where nothing is labelled."""
    if config.backgrounds is not None:
        return _blended(config, source, classes, seed)
    place = Path(str(config.target)).expanduser()
    unlabelled = folders.read_unlabelled(place, classes, every=config.target_labels == "none")
    if unlabelled is not None:
        # Nothing of it is split or measured, so it needs no groups.
        dataset = unlabelled.to_dataset(unlabelled.ids, classes)
        return _limited(dataset, config.limit_train, seed), None
    parts = loading.load(config.of(config.target), seed)
    unknown = sorted(set(parts["train"].features["label"].names) - set(classes))
    if unknown:
        raise DataError(
            f"{config.target}: classes that the source does not have: {', '.join(unknown[:8])}. The source has "
            f"{', '.join(classes)}; both domains need the same classes. If these folders are no classes: "
            "--data.target_labels none."
        )
    train = datasets.concatenate_datasets([parts["train"], parts["validation"]])
    if config.group is not None:
        _refuse_shared_groups(source, parts["test"], config)
    return relabelled(train, classes), relabelled(parts["test"], classes)


def _refuse_shared_groups(source: datasets.DatasetDict, test: datasets.Dataset, config: DomainDataConfig) -> None:
    """What was imaged by both cameras must not be trained on under one and tested under the other."""
    shared = sorted((set(source["train"]["group"]) | set(source["validation"]["group"])) & set(test["group"]))
    if shared:
        raise DataError(
            f"{len(shared)} groups ({examples(shared)}) are in the source's training images and in the target's test: "
            f"the same origin on both sides. Split {config.source} and {config.target} into train and test folders by "
            "that origin, the same way."
        )


def _blended(
    config: DomainDataConfig, source: datasets.DatasetDict, classes: list[str], seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """An MNIST-M of the source's digits: no photograph is in both halves."""
    over_train, over_test = _photographs(str(config.backgrounds), all_for_training=config.target is not None)
    digits = datasets.concatenate_datasets([source["train"], source["validation"]])
    train = _blend(digits, over_train, classes, seed, "train", config)
    if config.target is not None:
        return train, loading.load_test_set(config.of(config.target), classes)
    return train, _blend(source["test"], over_test, classes, seed + 1, "test", config)


def _photographs(place: str, *, all_for_training: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For the training and for the test half; the latter is empty where the test images are given."""
    if place == "sklearn:photographs":
        from sklearn.datasets import load_sample_images

        photos = list(load_sample_images().images)
    else:
        photos = mnist_m.read_backgrounds(Path(place).expanduser())
    if all_for_training:
        return photos, []
    if len(photos) >= 5:
        return mnist_m.split_backgrounds(photos)
    narrowest, enough = min(photo.shape[1] for photo in photos), _TEST_PART * 2 * _DIGIT
    if narrowest < enough:
        raise DataError(
            f"{place}: of fewer than five photographs, the right quarter of each is for the test half, and one is "
            f"only {narrowest} pixels wide. Give wider ones ({enough} pixels), or more, or --data.target."
        )
    cuts = [photo.shape[1] - photo.shape[1] // _TEST_PART for photo in photos]
    return (
        [photo[:, :cut] for photo, cut in zip(photos, cuts, strict=True)],
        [photo[:, cut:] for photo, cut in zip(photos, cuts, strict=True)],
    )


def _blend(
    digits: datasets.Dataset,
    photos: list[np.ndarray],
    classes: list[str],
    seed: int,
    half: str,
    config: DomainDataConfig,
) -> datasets.Dataset:
    """The target that `digits` over `photos` make, with names of its own."""
    directory = cache.folder(config.cache_dir)
    pixels, faults = cache.pixels(
        digits, content_hashes(digits, directory), directory, _DIGIT, "squash", config.sixteen_bit, lambda _text: None
    )
    cache.refuse(faults, 0)
    # Grey digits have three equal channels; of a colour source this is the mean.
    grey = pixels.float().mean(dim=1).round().byte().numpy()
    if config.ink == "full" and (grey == 0).mean() < _BACKGROUND:
        raise DataError(
            f"{config.source}: {(grey > 0).mean():.0%} of the pixels are not 0, so nearly everything would be ink, "
            "and no digit would be seen in the photographs. Give --data.ink grey, or digits on black."
        )
    border = (config.margin, config.margin)
    shown = np.pad(mnist_m.with_ink(grey) if config.ink == "full" else grey, ((0, 0), border, border))
    made = mnist_m.synthesise(shown, photos, seed)
    names = [f"mnist-m/{half}/{name}" for name in digits["id"]]
    samples = Samples(names, np.asarray(digits["label"]), classes, array_images(made))
    return samples.to_dataset([f"mnist-m/{name}" for name in digits["group"]])


def _parted(target: datasets.Dataset, config: DomainDataConfig, seed: int) -> datasets.DatasetDict:
    """The target's labelled training images, a share of them for validation."""
    labels = np.asarray(target["label"])
    codes = np.unique(np.asarray(target["group"]), return_inverse=True)[1]
    held = splits.hold_out(labels, codes, config.validation, np.random.default_rng([seed, 1]))
    return datasets.DatasetDict(
        train=take_rows(target, np.flatnonzero(~held)), validation=take_rows(target, np.flatnonzero(held))
    )


def _limited(dataset: datasets.Dataset, limit: int | None, seed: int) -> datasets.Dataset:
    if limit is None or limit >= len(dataset):
        return dataset
    return take_rows(dataset, np.sort(np.random.default_rng([seed, 2]).permutation(len(dataset))[:limit]))
