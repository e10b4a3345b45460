"""What a defence costs elsewhere: zero-shot accuracy on a second label set, before and after training."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from datasets import DatasetDict
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from finesight import cache
from finesight.config import Section
from finesight.data import loading
from finesight.data.config import DataConfig
from finesight.data.decoding import decode
from finesight.data.fingerprint import fingerprint
from finesight.errors import ConfigError
from finesight.metrics import bootstrap
from finesight.metrics.classification import ClassificationMetric
from finesight.models import clip, prompts

if TYPE_CHECKING:
    from finesight.tasks.robustness import Robustness

MEASURED = "retention"


class RetentionConfig(Section):
    """A second label set, on which nothing was trained."""

    root: str | None = Field(
        None, description="Other labelled images (a form of data.root); their classes are the labels"
    )
    labels: dict[str, str] | None = Field(
        None, description="Other names for the classes of the test images, such as cat: animal; several may share one"
    )


def check(config: RetentionConfig, classes: list[str]) -> None:
    """Raise `ConfigError` for a class without a second name, and for names of classes that there are not."""
    if config.root is None and config.labels is not None:
        _renamed(classes, config.labels)


class Second(NamedTuple):
    """uint8 [N, 3, S, S], labels [N], their names, the groups of the images, and what they are in words."""

    pixels: Tensor
    labels: NDArray[np.int64]
    classes: list[str]
    groups: list[str]
    images: str


def is_wanted(task: "Robustness") -> bool:
    config = task.config.retention
    return task.config.defence.method != "none" and bool(config.root or config.labels)


def opened(task: "Robustness") -> Second | None:
    """The second images, where there are some of their own, read before the first step: a wrong path must not cost a
    training. The vectors of the second names are computed, too, and stay in the cache."""
    config = task.config.retention
    if not is_wanted(task):
        return None
    second = None if config.root is None else _other_images(task)
    _vectors(task, sorted(set((config.labels or {}).values())) if second is None else second.classes)
    return second


def measured(task: "Robustness", groups: list[str]) -> dict[str, Any]:
    """{"retention": {"before", "after": {value, low, high, n}, "difference": {difference, low, high, p, …}, "images"}}.

    {} where none is asked for. Accuracy on the second label set by the model as it was before training and as it is;
    the images are the same and so are the resamples. Raises `ConfigError` for a class without a second name.
    """
    if not is_wanted(task):
        return {}
    pixels, labels, classes, groups, images = task.second or _second_set(task, groups)
    vectors, metric, settings = _vectors(task, classes), ClassificationMetric(classes), task.config.evaluation
    options: dict[str, Any] = {
        "groups": groups if len(set(groups)) < len(groups) else None,
        "resamples": settings.resamples, "seed": task.config.seed, "level": settings.level,
    }  # fmt: skip
    before, after = (
        metric.statistics(_probabilities(task, pixels, vectors, original), labels) for original in (True, False)
    )
    found = {
        name: bootstrap.intervals(metric, table, **options)["accuracy"]
        for name, table in (("before", before), ("after", after))
    }
    difference = bootstrap.paired(metric, before, after, **options)["accuracy"]
    return {MEASURED: found | {"difference": difference, "images": images}}


def _vectors(task: "Robustness", classes: list[str]) -> Tensor:
    """The unit vectors of class names, [classes, D]."""
    tower = clip.text_tower(task.config.model)
    return prompts.ensemble(
        prompts.text_vectors(tower, classes, task.config.model.templates, task.config.data.cache_dir, task.say)
    ).to(task.engine.device)


def _second_set(task: "Robustness", groups: list[str]) -> Second:
    """The second images, or the test images with their second names."""
    config = task.config.retention
    if config.root is not None:
        return _other_images(task)
    names = _renamed(task.classes, config.labels or {})
    classes = sorted(set(names))
    of = np.array([classes.index(name) for name in names])
    return Second(task.pixels["test"], of[task.labels["test"]], classes, groups, "the test images, with other names")


def _other_images(task: "Robustness") -> Second:
    source = DataConfig(root=task.config.retention.root, cache_dir=task.config.data.cache_dir, size=task.held_size)
    samples = loading.read(source)
    data = DatasetDict({"test": loading.load_test_set(source, samples.classes)})
    found = decode(data, source, task.held_size, task.fit, task.engine, task.say)
    rows, stamp = found.data["test"], fingerprint(data, cache.folder(source.cache_dir))
    said = f"{len(rows):,} images of {len(samples.classes)} classes from {source.root}, fingerprint {stamp[:12]}"
    return Second(found.pixels["test"], np.asarray(rows["label"]), list(samples.classes), list(rows["group"]), said)


def _renamed(classes: list[str], names: dict[str, str]) -> list[str]:
    missing, unknown = [name for name in classes if name not in names], [name for name in names if name not in classes]
    if missing or unknown or len(set(names.values())) < 2:
        raise ConfigError(
            "retention.labels: needs a second name for every class, two different ones at least. Classes without one: "
            f"{', '.join(missing) or 'none'}; names that are no class of the data: {', '.join(unknown) or 'none'}. "
            "Without a second label set: --retention.labels none."
        )
    return [names[name] for name in classes]


def _probabilities(task: "Robustness", pixels: Tensor, vectors: Tensor, original: bool) -> NDArray[np.float64]:
    """float64 [N, classes], by the model before training or as it is."""
    step, rows = task.config.evaluation.batch_size, []
    task.model.eval()
    for start in range(0, len(pixels), step):
        with torch.inference_mode(), task.engine.autocast():
            images = pixels[start : start + step].to(task.engine.device).float() / 255
            features = task.features_before(images) if original else task.pixels_to_features(images).float()
            cosines = functional.normalize(features, dim=-1) @ vectors.T
        rows.append((cosines.float() * task.scale).softmax(1).double().cpu().numpy())
    return np.concatenate(rows)


def alarms(metrics: dict[str, Any]) -> list[str]:
    """A sentence where the second label set lost more than a few points."""
    found = metrics.get(MEASURED)
    if not found or found["difference"]["high"] is None or found["difference"]["high"] > -0.05:
        return []
    return [
        f"Zero-shot accuracy on the second label set fell from {found['before']['value']:.1%} to "
        f"{found['after']['value']:.1%}: the model forgets what it was not trained on. Lower train.lr, train fewer "
        "epochs, or use defence.method fare or coprompt."
    ]
