"""The figures of a domain adaptation run, made from its data, networks, predictions and history."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from finesight.report import classifier, domain_charts, domain_grids, inference
from finesight.report.domain_alarms import from_history, from_task
from finesight.report.domain_measures import (
    NOISES,
    REAL,
    components,
    diversity,
    evenly,
    nearest,
    separability,
)
from finesight.report.domain_section import split_names
from finesight.report.oracle import kept_epoch, oracle
from finesight.tasks.base import Figures

if TYPE_CHECKING:
    from finesight.tasks.domain_adaptation import DomainAdaptation

Drawn = tuple[Any, str, str]
POINTS = 1000  # images of each domain in the feature maps
EXAMPLES = 12  # repainted images shown
REPAINTED = 100  # repainted images, and real ones, behind the distances to the nearest
LARGEST = 32  # side in pixels at which pixels themselves are compared by components


def figures(
    task: "DomainAdaptation",
    predictions: dict[str, NDArray[np.float64]],
    history: list[dict[str, Any]],
    metrics: dict[str, Any],
) -> Figures:
    """{name: (figure, title, caption)} for the report."""
    supervised = task.config.method == "target-only"
    names = split_names(labelled=task.labelled_target, supervised=supervised)
    where = f"{names['test']} images" + ("" if task.labelled_target else ", because the target has no labels")
    drawn = classifier.judged(task, predictions["test"], metrics, where)
    drawn["classes"] = classifier.images_per_class(task, names)
    whose = "target" if supervised else "source"
    drawn["samples"] = classifier.samples(
        task, f"Labelled training images of every class, from the {whose}, as the networks receive them."
    )
    drawn["adaptation"] = _adaptation(task, history)
    if task.config.method in ("source-only", "target-only"):
        drawn["curves"] = classifier.learning_curves(task, history)
    else:
        drawn["losses"] = _losses(task, history)
    drawn["domains"] = _samples(task)
    if task.config.method == "pixelda":
        drawn["translation"] = _translation(task)
        drawn["diversity"] = _diversity(task)
    drawn["features"] = _features(task)
    return drawn


def alarms(task: "DomainAdaptation", metrics: dict[str, Any], history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on results that look too good or too bad, each with what to do."""
    return [*from_task(task, metrics), *from_history(history, kept_epoch(history))]


# ---- by epoch ---------------------------------------------------------------------------------


def _losses(task: "DomainAdaptation", history: list[dict[str, Any]]) -> Drawn:
    kept = kept_epoch(history)
    means = "Means over the training batches of each epoch. "
    if task.config.method == "dann":
        return (
            domain_charts.reversal_losses(history, kept),
            "Losses",
            f"{means}The domain classifier tries to tell source from target features; dashed, 50 %: it cannot.",
        )
    options = task.config.pixelda
    return (
        domain_charts.adversarial_losses(history, kept, options.adversarial == "minimax"),
        "Losses",
        f"{means}Dashed: the levels at which the discriminator tells nothing apart. In the steps the "
        f"discriminator's loss weighs {options.discriminator_weight:g}, the generator's adversarial loss "
        f"{options.adversarial_weight:g} and its classification loss {options.task_weight:g}.",
    )


def _adaptation(task: "DomainAdaptation", history: list[dict[str, Any]]) -> Drawn:
    kept = kept_epoch(history)
    found = oracle(history, kept)
    domain = "target" if task.config.method == "target-only" else "source"
    caption = f"Measured after each epoch. The kept epoch is the best by {task.config.train.select.replace('_', ' ')}"
    if found is None:
        caption += "; what the target's labels would have said is not known."
    else:
        caption += (
            f" (target test {100 * found.kept_accuracy:.1f} %); the target's test labels, which are never used, would "
            f"have picked epoch {found.best} ({100 * found.best_accuracy:.1f} %)."
        )
    chart = domain_charts.adaptation(history, task.config.train.select, found, kept, domain)
    return chart, "Adaptation by epoch", caption


# ---- images -----------------------------------------------------------------------------------


def _samples(task: "DomainAdaptation", each: int = 3) -> Drawn:
    generator = np.random.default_rng([task.config.seed, 12])
    from_source = "source_test" if "source_test" in task.pixels else "test"
    of_class = each * domain_grids.columns_of(len(task.classes))
    source = _by_class(task, from_source, of_class, generator)
    target: Any
    if task.labelled_target:
        target, said = _by_class(task, "test", of_class, generator), "target test images"
    else:
        rows = generator.permutation(len(task.pixels["target_train"]))[: each * domain_grids.MOST_COLUMNS]
        target, said = [classifier.image(task, "target_train", int(row)) for row in rows], "target training images"
    return (
        domain_grids.domain_samples(source, target, each),
        "The two domains",
        f"Source test images above, {said} below, chosen at random.",
    )


def _by_class(
    task: "DomainAdaptation", split: str, each: int, generator: np.random.Generator
) -> dict[str, list[NDArray[np.uint8]]]:
    chosen = {}
    for label, name in enumerate(task.classes):
        rows = generator.permutation(np.flatnonzero(task.labels[split] == label))[:each]
        chosen[name] = [classifier.image(task, split, int(row)) for row in rows]
    return chosen


def _translation(task: "DomainAdaptation", count: int = 3) -> Drawn:
    generator = np.random.default_rng([task.config.seed, 13])
    source, pool = task.pixels["validation"], task.pixels["target_train"]
    order = generator.permutation(len(source))[:REPAINTED]
    rows = _one_of_each(order, task.labels["validation"])
    noise = generator.uniform(-1, 1, (len(rows), task.config.pixelda.noise)).astype(np.float32)
    made = inference.painted(task, source[rows], noise)
    places, distances = nearest(made, pool, count)
    real = generator.permutation(len(pool))[:REPAINTED]
    # The nearest to a training image is itself.
    _, among = nearest(pool[real].float() / 255, pool, 2)
    examples = range(min(EXAMPLES, len(rows)))
    figure = domain_grids.translation_grid(
        [classifier.image(task, "validation", int(rows[k])) for k in examples],
        inference.seen(made[: len(examples)]),
        [[classifier.image(task, "target_train", int(row)) for row in places[k]] for k in examples],
        [task.classes[task.labels["validation"][rows[k]]] for k in examples],
    )
    caption = (
        "Source validation images, what the generator makes of them, and the real target training images nearest to "
        "that by pixels: they would be the same picture if the generator had learnt them by heart. Median distance of "
        f"{len(rows)} generated images to the nearest real one: {100 * np.median(distances[:, 0]):.1f} % of the range"
    )
    if among.shape[1] > 1:
        caption += f"; of a real one to the nearest other: {100 * np.median(among[:, 1]):.1f} %"
    return figure, "Source images repainted", f"{caption} (root mean squared difference)."


def _one_of_each(rows: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same rows, with one of each class first, in the order of the classes."""
    first = [int(rows[labels[rows] == label][0]) for label in np.unique(labels[rows])]
    first = evenly(first, EXAMPLES)
    return np.array([*first, *(row for row in rows if row not in set(first))], dtype=np.int64)


def _diversity(task: "DomainAdaptation") -> Drawn:
    found = diversity(task, inference.probabilities(task, task.held_out("judged").columns["image"]))
    names = [task.classes[label] for label in found.classes]
    real = [value for value in found.real if value is not None]
    beside = f" Real target images: {100 * float(np.mean(real)):.1f} %, which also differ in content." if real else ""
    return (
        domain_grids.diversity_grid(found.originals, found.painted, names, found.generated, found.real),
        "One source image with many noise vectors",
        f"The same {NOISES} noise vectors for every class. At the right the mean root mean squared difference between "
        f"two of the {NOISES}, in percent of the range, and in brackets that between real target images which are "
        f"given this class (up to {REAL}). Mean over the classes: {100 * found.mean:.1f} %.{beside} Near 0 the "
        "generator ignores its noise.",
    )


# ---- features ---------------------------------------------------------------------------------


def _features(task: "DomainAdaptation") -> Drawn:
    generator = np.random.default_rng([task.config.seed, 14])
    splits = ("source_test", "test") if task.labelled_target else ("test", "target_train")
    rows = {split: np.sort(generator.permutation(len(task.pixels[split]))[:POINTS]) for split in splits}
    images = [task.pixels[split][rows[split]] for split in splits]
    labels = [task.labels[split][rows[split]] for split in splits]
    of_target = np.repeat([False, True], [len(part) for part in images])
    small, size = _pixels(images)
    kinds = {
        f"Pixels{f', at {size} x {size}' if size else ''}": small,
        "Features of the classifier": np.concatenate([inference.penultimate(task, part) for part in images]),
    }
    maps, told = [], []
    for title, points in kinds.items():
        scores, shares = components(points, task.config.seed)
        told.append(separability(scores, of_target, task.config.seed))
        maps.append((title, _two(scores), _two(shares)))
    figure = domain_charts.feature_maps(maps, task.classes, labels[0], labels[1])
    return figure, "The domains before and after", _features_caption(told)


def _features_caption(told: Sequence[float | None]) -> str:
    caption = (
        "Test images of both domains on their first two principal components: left the pixels, right what enters the "
        "classifier's last layer."
    )
    before, after = told
    if before is None or after is None:
        return f"{caption} Too few images to say how well the domains can be told apart."
    return (
        f"{caption} A linear classifier of the domain is right (balanced accuracy, 5-fold cross-validation, at most "
        f"100 components) for {100 * before:.1f} % by pixels and {100 * after:.1f} % by features; at 50 % they are not "
        "told apart."
    )


def _pixels(images: list[Tensor]) -> tuple[NDArray[np.float32], int | None]:
    """Pixels in [0, 1] as points [N, D]; and the side to which large images were reduced first."""
    size = images[0].shape[-1]
    if size <= LARGEST:
        return np.concatenate([part.flatten(1).float().numpy() / 255 for part in images]), None
    reduced = [
        functional.interpolate(piece.float(), size=(LARGEST, LARGEST), mode="area").flatten(1) / 255
        for part in images
        for piece in part.split(64)
    ]
    return np.concatenate([part.numpy() for part in reduced]), LARGEST


def _two(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first two along the last axis; zeros where there are fewer."""
    missing = max(0, 2 - values.shape[-1])
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])[..., :2]
