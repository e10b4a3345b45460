"""The figures and alarms of an autoencoding run, made from its data, predictions and history."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from finesight.data import borders, images
from finesight.data.unlabelled import ANOMALIES
from finesight.report import numbers
from finesight.report import reconstruction_figures as draw
from finesight.report.oracle import kept_epoch
from finesight.report.reconstruction import SHOWN, beaten, picture, quality, spread_rows
from finesight.tasks.base import Figures

if TYPE_CHECKING:
    from finesight.tasks.autoencoding import Autoencoding

STEPS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
MOST_DIMENSIONS = 10  # in the figure of traversals
COLLAPSED = 0.5  # nats: below it the codes say next to nothing about the image


def figures(
    task: "Autoencoding",
    predictions: dict[str, NDArray[np.float64]],
    history: list[dict[str, Any]],
    metrics: dict[str, Any],
) -> Figures:
    """{name: (figure, title, caption)} for the report."""
    drawn = {
        "quality": quality(metrics, "psnr", task.config.evaluation.level),
        "curves": _curves(history),
        "panels": _panels(task, predictions),
        "samples_prior": _samples(task),
        "traversals": _traversals(task),
    }
    if ANOMALIES in predictions:
        drawn |= _scores(predictions, metrics)
    if task.fit == "border":
        drawn["border"] = _border(task)
    return drawn


def alarms(task: "Autoencoding", metrics: dict[str, Any]) -> list[str]:
    """Sentences on results that look too good or too bad."""
    found = beaten(metrics, "psnr", "Train longer, or raise model.latent.")
    kl = metrics["test"]["kl"]["value"]
    if kl < COLLAPSED:
        found.append(
            f"The posterior collapsed: its KL divergence from the prior is {kl:.2f} nats an image, so the codes say "
            f"next to nothing about the images. Lower beta (it is {task.config.beta:g}) or the learning rate."
        )
    for name, entry in metrics.get("anomaly", {}).items():
        value, low = entry["value"], entry["low"]
        if entry["high"] is not None and entry["high"] < 0.5:
            found.append(
                f"By {name} the anomalies look more normal than normal images: AUROC {value:.3f}. They are simpler or "
                "flatter, which this score takes for normal; it is no detector of them."
            )
        elif (value if low is None else low) <= 0.5:
            found.append(
                f"By {name} the anomalies are not clearly told from normal images: AUROC {value:.3f}. A model that "
                "rebuilds everything alike is no detector."
            )
        elif kl < COLLAPSED:
            found.append(
                f"By {name} the anomalies are told from normal images (AUROC {value:.3f}), but the model learnt "
                "nothing: the score says how bright or varied an image is, no more."
            )
        if value == 1.0:
            found.append(
                f"By {name} every anomaly is told from every normal image. Look whether the two sets differ in "
                "something else: their size, borders, brightness, or the camera."
            )
    return found


def _curves(history: list[dict[str, Any]]) -> tuple[Any, str, str]:
    panels = {
        "Negative ELBO": ["loss"],
        "Reconstruction": ["reconstruction_nats"],
        "KL divergence": ["kl"],
    }
    return (
        draw.history(history, panels, kept_epoch(history)),
        "Learning curves",
        "All in nats an image: the loss is the reconstruction term (binary cross-entropy summed over pixels and "
        "channels) plus beta times the KL divergence. Validation values are measured after each epoch.",
    )


def _panels(task: "Autoencoding", predictions: dict[str, NDArray[np.float64]]) -> tuple[Any, str, str]:
    splits = ["test", ANOMALIES] if ANOMALIES in predictions else ["test"]
    rows, notes = [], []
    for split in splits:
        measured = predictions[split]
        for row in spread_rows(measured[:, 0]):
            batch = task.held_out(split).take(np.array([row]))
            made = task.reconstructed(batch["image"])[0]
            rows.append([picture(batch["image"][0].float() / 255), picture(made)])
            kind = "" if len(splits) == 1 else f"\n{'test' if split == 'test' else 'anomaly'}"
            notes.append(f"{batch['id'][0]}{kind}\nPSNR {measured[row, 0]:.2f} dB\nSSIM {measured[row, 1]:.3f}")
    which = "Test images" + (" and anomalies" if len(splits) > 1 else "")
    caption = (
        f"{which}, at most {SHOWN} of each at evenly spaced ranks of their PSNR, worst first, and what the decoder "
        "makes of the mean of their posterior."
    )
    return draw.panels(rows, ("original", "reconstruction"), notes), "Reconstructions", caption


def _samples(task: "Autoencoding") -> tuple[Any, str, str]:
    generator = np.random.default_rng([task.config.seed, 4])
    codes = generator.standard_normal((9, task.model.latent)).astype(np.float32)
    made = task.decoded(torch.from_numpy(codes))
    caption = "Nine codes drawn from the prior, a standard normal distribution, and decoded; none was picked."
    return draw.sample_grid([picture(image) for image in made]), "Samples from the prior", caption


def _traversals(task: "Autoencoding") -> tuple[Any, str, str]:
    pixels = task.held_out("test").take(np.arange(min(256, task.held_out("test").samples)))["image"]
    means, log_variances = task.codes(pixels)
    # Nats that each dimension carries, on average: those that say most come first.
    nats = 0.5 * (means.square() + log_variances.exp() - 1 - log_variances).mean(0)
    order = torch.argsort(nats, descending=True).tolist()[:MOST_DIMENSIONS]
    codes = torch.zeros(len(order), len(STEPS), task.model.latent)
    for row, dimension in enumerate(order):
        codes[row, :, dimension] = torch.tensor(STEPS)
    made = task.decoded(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])
    names = [f"z{dimension + 1}: {nats[dimension]:.2f} nats" for dimension in order]
    caption = (
        "One dimension of the code at a time, the others at 0; sorted by the information it carries about test images "
        "(its mean KL divergence). A dimension of 0 nats is not used."
    )
    return draw.traversals([[picture(image) for image in row] for row in made], STEPS, names), "Latent space", caption


def _scores(predictions: dict[str, NDArray[np.float64]], metrics: dict[str, Any]) -> Figures:
    from finesight.tasks.autoencoding import MEASURES, SCORES

    drawn: Figures = {}
    for place, (name, measure) in enumerate(SCORES.items()):
        entry, column = metrics["anomaly"][name], MEASURES.index(measure)
        interval = "" if entry["low"] is None else f" ({entry['low']:.3f} to {entry['high']:.3f})"
        drawn["anomaly" if place == 0 else f"anomaly_{measure}"] = (
            draw.score_histogram(
                predictions["test"][:, column], predictions[ANOMALIES][:, column], measure,
                f"AUROC {entry['value']:.3f}{interval}",
            ),
            f"Anomaly score: {name}",
            f"{numbers.title(measure)} of the test images and of the anomalies; a higher score is more unusual.",
        )  # fmt: skip
    return drawn


def _border(task: "Autoencoding") -> tuple[Any, str, str]:
    rows = task.data["test"].select(range(min(2, len(task.data["test"]))))
    from datasets import Image

    entries = rows.cast_column("image", Image(decode=False))
    steps = [
        borders.steps(
            images.decode(images.read(entry["image"]), entry["id"], task.config.data.sixteen_bit), task.model.image_size
        )
        for entry in entries
    ]
    caption = "What the model sees of the first test images: Otsu's threshold, the largest region, its centre square."
    drawn = [
        {
            "original": step.original,
            "grey": step.grey,
            "threshold": step.threshold,
            "region": step.region,
            "box": (step.box.top, step.box.left, step.box.top + step.box.height, step.box.left + step.box.width),
            "square": (step.square.top, step.square.left, step.square.height),
            "result": step.resized,
        }
        for step in steps
    ]
    return draw.border_steps(drawn), "Border crop", caption
