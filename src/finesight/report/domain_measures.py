"""Numbers on the two domains beside accuracy: diversity over the noise, nearness to real images, separability."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from finesight.report import inference

if TYPE_CHECKING:
    from finesight.tasks.domain_adaptation import DomainAdaptation

NOISES = 12
MOST_CLASSES = 10
REAL = 64
CHUNK = 64_000_000
"""Pixel values of real images that are compared at a time."""


def distance(images: ArrayLike) -> float | None:
    """Mean over all pairs of the root mean squared difference, [N, ...] -> scalar; None for fewer than two."""
    from scipy.spatial.distance import pdist

    values = np.asarray(images, dtype=np.float64)
    if len(values) < 2:
        return None
    flat = values.reshape(len(values), -1)
    return float(pdist(flat).mean() / np.sqrt(flat.shape[1]))


class Diversity(NamedTuple):
    """One source image per class painted with the same noise vectors; distances on the scale [0, 1]."""

    classes: list[int]
    originals: list[NDArray[np.uint8]]
    painted: list[list[NDArray[np.uint8]]]
    generated: list[float]
    real: list[float | None]

    @property
    def mean(self) -> float:
        return float(np.mean(self.generated))


def diversity(task: "DomainAdaptation", judged: NDArray[np.float64]) -> Diversity:
    """How much the noise changes what is painted, beside real target images of the same predicted class.

    `judged` are class probabilities of the target images of `task.held_out("judged")`.
    """
    labels, images = task.labels["validation"], task.pixels["validation"]
    generator = np.random.default_rng([task.config.seed, 11])
    classes = evenly(np.unique(labels).tolist(), MOST_CLASSES)
    rows = [int(generator.choice(np.flatnonzero(labels == label))) for label in classes]
    noise = generator.uniform(-1, 1, (NOISES, task.config.pixelda.noise)).astype(np.float32)
    made = inference.painted(task, images[rows].repeat_interleave(NOISES, 0), np.tile(noise, (len(rows), 1))).unflatten(
        0, (len(rows), NOISES)
    )
    target, said = task.held_out("judged").columns["image"], judged.argmax(1)
    real = []
    for label in classes:
        found = generator.permutation(np.flatnonzero(said == label))[:REAL]
        real.append(distance(target[found].numpy() / 255))
    return Diversity(
        classes=classes,
        originals=[image.permute(1, 2, 0).numpy() for image in images[rows]],
        painted=[inference.seen(part) for part in made],
        generated=[distance(part.numpy()) or 0.0 for part in made],
        real=real,
    )


def nearest(images: Tensor, pool: Tensor, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `count` images of a pool that are nearest by pixels, nearest first.

    images: float32 [N, 3, S, S] in [0, 1]; pool: uint8 [M, 3, S, S]. Returns rows of the pool and root mean
    squared differences, both [N, min(count, M)].
    """
    flat = images.flatten(1)
    size = flat.shape[1]
    best = torch.empty(len(flat), 0)
    rows = torch.empty(len(flat), 0, dtype=torch.int64)
    start = 0
    for part in pool.split(max(1, CHUNK // size)):
        other = part.flatten(1).float() / 255
        found = flat.square().sum(1)[:, None] + other.square().sum(1) - 2 * flat @ other.T
        places = torch.arange(start, start + len(part)).expand(len(flat), -1)
        joined, names = torch.cat([best, found], 1), torch.cat([rows, places], 1)
        best, order = joined.topk(min(count, joined.shape[1]), largest=False)
        rows = names.gather(1, order)
        start += len(part)
    return rows.numpy(), (best.clamp(min=0) / size).sqrt().numpy()


def components(points: NDArray[np.float32], seed: int, count: int = 100) -> tuple[NDArray[np.float64], NDArray]:
    """Principal components [N, k] of points [N, D], k <= count, and each one's share of the variance [k]."""
    from sklearn.decomposition import PCA

    count = min(count, len(points) - 1, points.shape[1])
    solver = "randomized" if points.shape[1] > 4 * count else "full"
    found = PCA(count, svd_solver=solver, random_state=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = found.fit_transform(points.astype(np.float64))
    return scores, np.nan_to_num(found.explained_variance_ratio_)


def separability(points: NDArray[np.float64], of_target: NDArray[np.bool_], seed: int) -> float | None:
    """Balanced accuracy of a linear classifier of the domain in 5-fold cross-validation: 0.5 is not told apart.

    points [N, D]; None where a domain has fewer than ten points.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if min(of_target.sum(), (~of_target).sum()) < 10:
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(model, points, of_target, cv=folds, scoring="balanced_accuracy").mean())


def evenly(items: Sequence[int], most: int) -> list[int]:
    """At most `most` of the items, evenly spaced in their order."""
    if len(items) <= most:
        return list(items)
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, most)]
