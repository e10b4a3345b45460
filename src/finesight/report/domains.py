"""The figures and alarms of a domain adaptation run."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finesight.report import domain_charts as draw
from finesight.report.classification import best_epoch, judgement
from finesight.tasks.base import Figures

if TYPE_CHECKING:
    from finesight.tasks.domain_adaptation import DomainAdaptation

SHOWN = 10  # columns of the image grids
COMPARED = 1000  # images of each domain in the feature plane
DRAWS = 10  # noise vectors behind the diversity

LOSSES = {
    "pixelda": {
        "loss": {
            "discrimination": "discriminator, real against fake",
            "fooling": "generator, fooling it",
        },
        "share (%)": {
            "told_apart": "real and fake told apart",
            "accuracy": "source accuracy",
            "generated_accuracy": "accuracy on repainted images",
        },
    },
    "dann": {"loss": {"loss": "classifier + domain"}, "share (%)": {"domain_accuracy": "domain told apart"}},
}


def figures(
    task: "DomainAdaptation",
    predictions: dict[str, NDArray[np.float64]],
    history: list[dict[str, Any]],
    metrics: dict[str, Any],
) -> Figures:
    """{name: (figure, title, caption)} for the report."""
    drawn = judgement(task, predictions, history, metrics)
    for module in task.modules.values():
        module.eval()
    kept = best_epoch(history)
    drawn["adaptation"] = (
        draw.scores(history, kept, task.config.train.select),
        "Choosing the epoch",
        "Measured after each epoch. The marked epoch was kept; the target's labels had no part in it. The dashed line "
        "is what they would have said.",
    )
    drawn["domains"] = _domains(task)
    if task.config.method in LOSSES:
        drawn["losses"] = (
            draw.losses(history, LOSSES[task.config.method]),
            "The adversaries",
            "Means over each epoch. Told apart in 50 % of the cases, real and fake are alike to the discriminator.",
        )
    if task.config.method == "pixelda":
        drawn["translation"] = _translation(task)
        drawn["diversity"] = _diversity(task)
    drawn["features"] = _features(task)
    return drawn


def _domains(task: "DomainAdaptation") -> tuple[Any, str, str]:
    source = _one_per_class(task.labels["train"])
    target = np.arange(len(task.pixels["target_train"]))
    chosen = np.random.default_rng(task.config.seed).permutation(target)[: len(source)]
    rows = {
        "source, training": _images(task.pixels["train"][source]),
        "target, training": _images(task.pixels["target_train"][chosen]),
    }
    names = [task.classes[label] for label in task.labels["train"][source]]
    return (
        draw.image_rows(rows, names, "class of the source image"),
        "The two domains",
        "Training images as the networks receive them. The target's are drawn at random: their classes are not known.",
    )


def _translation(task: "DomainAdaptation") -> tuple[Any, str, str]:
    """Source images, what the generator makes of them, and the real target images nearest to that."""
    rows = _one_per_class(task.labels["validation"])
    source = task.pixels["validation"][rows]
    painted = _painted(task, source, np.random.default_rng(task.config.seed))
    nearest = [_nearest(image, task.pixels["target_train"]) for image in painted]
    shown = {
        "source": _images(source),
        "generated": _images(painted),
        "nearest real target": _images(task.pixels["target_train"][nearest]),
    }
    names = [task.classes[label] for label in task.labels["validation"][rows]]
    return (
        draw.image_rows(shown, names, "class of the source image"),
        "Source, repainted, target",
        "Source validation images, the generator's versions of them, and the target training images closest to "
        "those in pixels. A generated image that equals its neighbour would be a copy.",
    )


def _diversity(task: "DomainAdaptation") -> tuple[Any, str, str]:
    """One source image under several noise vectors; how far the versions lie apart."""
    rows = _one_per_class(task.labels["validation"])[:4]
    generator = np.random.default_rng([task.config.seed, 1])
    shown, spreads = {}, []
    for row in rows:
        versions = _painted(task, task.pixels["validation"][[row] * DRAWS], generator)
        spreads.append(spread(versions))
        shown[task.classes[task.labels["validation"][row]]] = _images(versions)
    figure = draw.image_rows(shown, [str(number + 1) for number in range(DRAWS)], "noise vector")
    target = task.pixels["target_train"]
    real = spread(target[generator.permutation(len(target))[:200]])
    return (
        figure,
        "Diversity of the generator",
        f"The same source image with {DRAWS} noise vectors. Mean distance of two versions (root mean square, [0, 1]): "
        f"{', '.join(f'{name} {value:.3f}' for name, value in zip(shown, spreads, strict=True))}; two random target "
        f"images: {real:.3f}. Near 0 the noise is ignored.",
    )


def _features(task: "DomainAdaptation") -> tuple[Any, str, str]:
    """Both domains in the plane of their first two principal components: pixels, and the classifier's features."""
    target = "test" if task.labelled_target else "target_train"
    source = "source_test" if task.labelled_target else "test"
    generator = np.random.default_rng([task.config.seed, 2])
    picked = {split: generator.permutation(len(task.pixels[split]))[:COMPARED] for split in (source, target)}
    images = torch.cat([task.pixels[split][rows] for split, rows in picked.items()])
    labels = np.concatenate([task.labels[split][rows] for split, rows in picked.items()])
    of_target = np.arange(len(images)) >= len(picked[source])
    learned = _penultimate(task, images)
    pixels = images.reshape(len(images), -1).numpy().astype(np.float64)
    spaces = {"Before: pixels": plane(pixels), "After: features of the classifier": plane(learned)}
    return (
        draw.scatter(spaces, labels, of_target, task.classes),
        "Before and after",
        "Test images of both domains in the plane of the first two principal components. A linear classifier tells "
        f"the domains apart by the pixels in {separability(pixels, of_target):.0%} of the cases and by the features in "
        f"{separability(learned, of_target):.0%} (balanced accuracy, 5 folds; 50 % is guessing).",
    )


def plane(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First two principal components [N, 2], and the share of the variance of each [2]."""
    from sklearn.decomposition import PCA

    found = PCA(2, svd_solver="randomized", random_state=0).fit(points)
    return found.transform(points), found.explained_variance_ratio_


def separability(points: NDArray[np.float64], of_target: NDArray[np.bool_]) -> float:
    """Balanced accuracy of a linear classifier of the domain on 50 principal components, 5 folds; 0.5 is guessing."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(5, int(of_target.sum()), int((~of_target).sum()))
    if folds < 2:
        return float("nan")
    parts = min(50, points.shape[1], len(points) // 2)
    model = make_pipeline(PCA(parts, random_state=0), StandardScaler(), LogisticRegression(max_iter=300))
    return float(cross_val_score(model, points, of_target, cv=folds, scoring="balanced_accuracy").mean())


def spread(images: Tensor) -> float:
    """Mean distance of two of the images: root mean squared difference on [0, 1]. uint8 [N, 3, S, S]"""
    flat = images.reshape(len(images), -1).double() / 255
    distances = torch.pdist(flat) / flat.shape[1] ** 0.5
    return float(distances.mean()) if len(distances) else 0.0


def _penultimate(task: "DomainAdaptation", images: Tensor) -> NDArray[np.float64]:
    """Inputs of the classifier's last linear layer, float64 [N, D]."""
    last = [module for module in task.model.head.modules() if isinstance(module, torch.nn.Linear)][-1]
    rows: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].float().cpu()))
    try:
        with torch.inference_mode(), task.engine.autocast():
            for start in range(0, len(images), task.config.evaluation.batch_size):
                batch = {"image": images[start : start + task.config.evaluation.batch_size]}
                task.predict(task.engine.send(batch))
    finally:
        hook.remove()
    return torch.cat(rows).double().numpy()


def _painted(task: "DomainAdaptation", source: Tensor, generator: np.random.Generator) -> Tensor:
    """The generator's versions of held images, each with a noise vector of its own. uint8 [N, 3, S, S]"""
    noise = generator.uniform(-1, 1, (len(source), task.generator.noise)).astype(np.float32)
    batch = task.engine.send({"image": source, "noise": torch.from_numpy(noise)})
    with torch.inference_mode(), task.engine.autocast():
        painted = task.generator(task.prepared(batch["image"]), batch["noise"]).float().cpu()
    return ((painted + 1) * 127.5).round().to(torch.uint8)


def _nearest(image: Tensor, among: Tensor) -> int:
    """Row of the image of `among` with the smallest squared distance in pixels."""
    best = [(part.float() - image.float()).square().sum(dim=(1, 2, 3)) for part in among.split(4096)]
    return int(torch.cat(best).argmin())


def _one_per_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first row of each of up to ten classes."""
    return np.unique(labels, return_index=True)[1][:SHOWN]


def _images(held: Tensor) -> list[NDArray[np.uint8]]:
    return list(held.permute(0, 2, 3, 1).numpy())


# ---- alarms -----------------------------------------------------------------------------------


def alarms(task: "DomainAdaptation", metrics: dict[str, Any], history: list[dict[str, Any]]) -> list[str]:
    """Sentences on results that look too good or too bad."""
    found, test = [], metrics["test"]["accuracy"]
    if not task.labelled_target:
        found.append(
            "The target has no labels, so the accuracy on it is unknown: the test split is the source's. Label "
            "a few hundred target images, for the test alone."
        )
    for name, splits in metrics["baselines"].items():
        trivial = splits["test"]["accuracy"]["value"]
        if (test["low"] if test["low"] is not None else test["value"]) <= trivial:
            found.append(
                f"Not clearly better than the trivial baseline '{name}': {test['value']:.1%} against {trivial:.1%}. "
                "Train longer, or look whether both domains have the same classes."
            )
    if test["value"] == 1.0:
        found.append(f"Every one of the {test['n']} test samples is right. Before believing it, check for copies.")
    kept = next((row for row in reversed(history) if row["best"]), None)
    oracle = draw.oracle_epoch(history)
    if kept is not None and oracle is not None:
        gap = oracle[1] - kept["validation"].get("oracle_accuracy", oracle[1])
        if gap > 0.05:
            found.append(
                f"Epoch {oracle[0]} would have been {100 * gap:.1f} points better on the target ({oracle[1]:.1%}) than "
                f"the kept epoch {kept['epoch']}: the choice without labels went wrong here. It stays as it is; do not "
                "report the other."
            )
    last = history[-1]["train"] if history else {}
    if last.get("told_apart", 0) > 0.99:
        found.append(
            "The discriminator tells real and fake apart nearly always: the generator lost. Lower "
            "pixelda.discriminator_weight or train.lr, or raise pixelda.adversarial_weight."
        )
    return found
