"""The figures and alarms of a masked reconstruction run, made from its data, predictions and history."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finesight.metrics.kinds import higher_is_better
from finesight.report import numbers
from finesight.report import reconstruction_figures as draw
from finesight.report.oracle import kept_epoch
from finesight.tasks.base import Figures

if TYPE_CHECKING:
    from torch import Tensor

    from finesight.tasks.reconstruction import Reconstruction

SHOWN = 5  # images, as in report 000


def figures(
    task: "Reconstruction",
    predictions: dict[str, NDArray[np.float64]],
    history: list[dict[str, Any]],
    metrics: dict[str, Any],
) -> Figures:
    """{name: (figure, title, caption)} for the report."""
    return {
        "quality": quality(metrics, "masked_psnr", task.config.evaluation.level),
        "curves": (
            draw.history(history, {"Loss": ["loss"], "PSNR on hidden patches": ["masked_psnr"]}, kept_epoch(history)),
            "Learning curves",
            "The loss is the mean squared error on hidden patches in the model's own scale; training values are means "
            "over the epoch under masks that change, validation values are measured after it under fixed masks.",
        ),
        "panels": _panels(task, predictions["test"]),
    }


def quality(metrics: Mapping[str, Any], name: str, level: float) -> tuple[Any, str, str]:
    """The model beside the baselines by one metric."""
    rows = [("this model", metrics["test"][name])]
    rows += [(baseline, splits["test"][name]) for baseline, splits in metrics["baselines"].items()]
    known = [
        (called, entry["value"], entry["low"], entry["high"]) for called, entry in rows if entry["value"] is not None
    ]
    return (
        draw.metric_bars(known, name, level),
        f"{numbers.title(name)} beside trivial methods",
        f"Test split, same images{' and masks' if name.startswith('masked') else ''}; "
        f"{numbers.level_text(level)} bootstrap intervals.",
    )


def spread_rows(values: NDArray[np.float64], count: int = SHOWN) -> list[int]:
    """Rows at evenly spaced ranks of a measure, from the worst to the best, so that nothing is picked by hand."""
    order = np.argsort(values, kind="stable")
    return [int(order[rank]) for rank in np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]


def picture(image: "Tensor") -> NDArray[np.uint8]:
    """Float [3, H, W] in [0, 1] -> uint8 [H, W, 3]."""
    return (image.float() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()


def beaten(metrics: Mapping[str, Any], name: str, remedy: str) -> list[str]:
    """Alarms for the baselines that the model does not clearly beat on the test split, paired where they are."""
    test, found, more = metrics["test"][name], [], higher_is_better(name)
    paired = metrics.get("improvement", {})
    for baseline, splits in metrics["baselines"].items():
        trivial = splits["test"][name]["value"]
        if trivial is None:
            continue
        entry, zero = (paired[baseline][name], 0.0) if baseline in paired else (test, trivial)
        bound = entry["low" if more else "high"]
        if bound is None:
            bound = entry.get("value", entry.get("difference"))
        if (bound <= zero) if more else (bound >= zero):
            found.append(
                f"Not clearly better than '{baseline}': {numbers.label(name)} "
                f"{numbers.number(name, test['value'])} against {numbers.number(name, trivial)}. {remedy}"
            )
    return found


def _panels(task: "Reconstruction", measured: NDArray[np.float64]) -> tuple[Any, str, str]:
    rows = spread_rows(measured[:, 0])
    batch = task.held_out("test").take(np.array(rows))
    shown = task.reconstruct(batch)
    grey = shown.original.new_full(shown.original.shape, 0.5)
    hidden = shown.hidden[:, None]
    masked = grey.where(hidden, shown.original)
    images = [
        [picture(part[place]) for part in (shown.original, masked, shown.predicted, shown.pasted)]
        for place in range(len(rows))
    ]
    notes = [
        f"{batch['id'][place]}\nPSNR {measured[row, 0]:.2f} dB\nSSIM {measured[row, 1]:.3f}"
        for place, row in enumerate(rows)
    ]
    heads = ("original", "masked", "reconstruction", "visible patches pasted in")
    caption = (
        f"Test images at evenly spaced ranks of the PSNR on their hidden patches, worst first; "
        f"{100 * task.config.mask_ratio:g} % of the patches are hidden. PSNR and SSIM on hidden patches. The loss "
        "covers hidden patches only, so the third column means nothing where the second shows the image."
    )
    return draw.panels(images, heads, notes), "Reconstructions", caption
