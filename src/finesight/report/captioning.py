"""The figures of a captioning run, made from its data, predictions and history."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from finesight.report import caption_figures as draw
from finesight.report import numbers
from finesight.report import reconstruction_figures as charts
from finesight.report.oracle import kept_epoch
from finesight.report.reconstruction import quality, spread_rows
from finesight.tasks.base import Figures
from finesight.tasks.generation import NOTHING, word_attention

if TYPE_CHECKING:
    from finesight.tasks.captioning import Captioning

SHOWN, EXTREMES = 6, 4


def figures(
    task: "Captioning",
    predictions: dict[str, NDArray[np.float64]],
    history: list[dict[str, Any]],
    metrics: dict[str, Any],
) -> Figures:
    """{name: (figure, title, caption)} for the report."""
    rows, references = predictions["test"], task.references("test")
    written = task.texts(rows)
    cider = task.metric.reduce(task.metric.statistics(rows, references))["cider"]
    found: Figures = {
        "quality": quality(metrics, "cider", task.config.evaluation.level),
        "curves": (
            charts.history(history, {"Loss per token": ["loss"], "CIDEr": ["cider"]}, kept_epoch(history)),
            "Learning curves",
            "The loss is the cross-entropy in nats of each token of the reference, given those before it; the training "
            "values are means over the batches of the epoch, with dropout, the validation values over all tokens of "
            "all references after it. CIDEr is of captions that the model wrote by itself for the validation images.",
        ),
        "captions": _cards(
            task, spread_rows(cider, SHOWN), cider, written, "Captions",
            "Test images at evenly spaced ranks of CIDEr, worst first. Black: the reference, several with a stroke "
            "between. Blue: what the model wrote, with nothing but the image given.",
        ),
        "extremes": _cards(
            task, _extremes(cider), cider, written, "Best and worst by CIDEr",
            f"The {min(EXTREMES, len(cider) // 2)} best test captions by CIDEr, then as many of the worst.",
        ),
        "lengths": (
            draw.lengths(
                [len(text.split()) for texts in references for text in texts], [len(text.split()) for text in written]
            ),
            "Lengths",
            f"Words of the test references and of the captions written for them, at most "
            f"{task.config.generation.max_tokens} tokens. A model "
            "that never learnt where captions end writes up to that limit.",
        ),
    }  # fmt: skip
    return found | _attention(task, rows, cider)


def _cards(
    task: "Captioning", rows: list[int], cider: NDArray[np.float64], written: list[str], title: str, caption: str
) -> tuple[Any, str, str]:
    pixels, references = task.pixels["test"], task.references("test")
    ids = task.held_out("test").ids
    shown = [
        draw.Card(
            pixels[row].permute(1, 2, 0).numpy(), " | ".join(references[row]), written[row],
            f"{ids[row][:60]}: CIDEr {numbers.number('cider', float(cider[row]))}",
        )
        for row in rows
    ]  # fmt: skip
    return draw.cards(shown), title, caption


def _extremes(cider: NDArray[np.float64]) -> list[int]:
    """The best rows, best first, then the worst, worst last."""
    order = np.argsort(-cider, kind="stable").tolist()
    count = min(EXTREMES, len(order) // 2)
    return order[:count] + order[len(order) - count :]


def _attention(task: "Captioning", rows: NDArray[np.float64], cider: NDArray[np.float64]) -> Figures:
    """Where the words of the best caption looked; nothing for models without cross-attention."""
    order = np.argsort(-cider, kind="stable")
    wordy = [int(row) for row in order if (rows[row, 2:] != NOTHING).sum() > 2]
    if not wordy:
        return {}
    best = wordy[0]
    task.model.eval()
    batch = task.engine.send(task.held_out("test").take(np.array([best])))
    with torch.inference_mode(), task.engine.autocast():
        words = word_attention(task.model, task.states(batch), rows[best, 2:])
    if not words:
        return {}
    image = task.pixels["test"][best].permute(1, 2, 0).numpy()
    return {
        "attention": (
            draw.attention(image, words),
            "Where each word looked",
            "Cross-attention when each word of the best test caption was chosen, mean over layers, heads and the "
            "word's tokens, on one colour scale. It shows what the word's scores were mixed from, not why the word was "
            "chosen; equal maps for all words mean that the model does not look for anything.",
        )
    }
