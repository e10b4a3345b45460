"""Figures of models that rebuild images: numbers as given, ids cut and numbers not, nothing outside the picture."""

from typing import Any

import numpy as np
import pytest

from finesight.report import figures
from finesight.report import reconstruction_figures as draw
from tests.report.test_figures import image, inside

HEADS = ("original", "masked", "reconstruction", "visible patches pasted in")


def shown(axes: Any) -> list[np.ndarray]:
    return [np.asarray(part.get_array()) for part in axes.get_images()]


def texts(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def test_long_ids_are_cut_and_their_numbers_are_not() -> None:
    numbers = "PSNR 17.16 dB, masked SSIM 0.424"
    notes = [f"Hospital_2023_test_of_the_second_scanner_{row:06d}\n{numbers}" for row in range(3)]
    drawn = draw.panels([[image()] * 4] * 3, HEADS, notes)
    labels = texts(drawn.axes[0].get_yticklabels())
    assert labels == [f"…{row:06d}\n{numbers}" for row in range(3)]
    assert inside(drawn)


def test_notes_may_have_different_numbers_of_lines() -> None:
    drawn = draw.panels([[image()] * 4] * 3, HEADS, ["a\nanomaly\n1", "b", "c\n2"])
    assert texts(drawn.axes[0].get_yticklabels()) == ["a\nanomaly\n1", "b", "c\n2"]


def test_floats_and_bytes_of_one_image_look_alike_and_values_beyond_the_range_are_clipped() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    beyond = np.full((5, 7, 3), 1.7)
    one, two, three = shown(draw.panels([[pixels, pixels / 255, beyond]], HEADS[:3]).axes[0])
    assert (one == pixels).all()
    assert (two == pixels).all()
    assert (three == 255).all()


@pytest.mark.parametrize(("rows", "blocks"), [(3, [3]), (5, [3, 2]), (10, [5, 5])])
def test_pairs_of_many_images_stand_in_two_blocks(rows: int, blocks: list[int]) -> None:
    drawn = draw.panels([[image(), image()]] * rows, ("original", "reconstruction"), ["id\nPSNR 17.16 dB"] * rows)
    assert [len(part.get_yticks()) for part in drawn.axes] == blocks
    assert [texts(part.get_xticklabels()) for part in drawn.axes] == [["original", "reconstruction"]] * len(blocks)
    assert inside(drawn)


def test_a_title_is_wrapped_into_lines_of_about_one_length() -> None:
    drawn = draw.panels([[image()] * 4] * 2, HEADS, ["an id of about twenty-four", "another"])
    assert texts(drawn.axes[0].get_xticklabels())[3] == "visible patches\npasted in"


def border(height: int, width: int) -> dict[str, Any]:
    region = np.zeros((height, width), dtype=bool)
    region[4 : height - 2, 10:width] = True
    side = height - 6
    return {
        "original": np.full((height, width, 3), 200, np.uint8),
        "grey": np.full((height, width), 90, np.uint8),
        "threshold": 37.0,
        "region": region,
        "box": (4, 10, height - 2, width),
        "square": (4, 12, side),
        "result": image(96),
    }


def test_the_border_is_framed_at_its_pixels_and_darkened_outside_the_square() -> None:
    drawn = draw.border_steps([border(40, 60), border(64, 50)])
    titles = [axes.get_title(loc="center") for axes in drawn.axes[:5]]
    assert titles == [
        "original\n60 × 40 px",
        "grey\nOtsu threshold 37",
        "largest region\nbox 50 × 34 px",
        "centre square\n34 × 34 px",
        "resized\n96 × 96 px",
    ]
    (box,), (square,) = drawn.axes[2].patches, drawn.axes[3].patches
    assert (*box.get_xy(), box.get_width(), box.get_height()) == (9.5, 3.5, 50, 34)
    assert (*square.get_xy(), square.get_width(), square.get_height()) == (11.5, 3.5, 34, 34)
    (pixels,) = shown(drawn.axes[3])
    bright = pixels[..., 0] == 200
    assert bright[4:38, 12:46].all()
    assert bright.sum() == 34 * 34
    assert inside(drawn)
    drawn.canvas.draw()
    tops = [axes.get_position().y1 for axes in drawn.axes]
    assert tops[:5] == pytest.approx([tops[0]] * 5)


@pytest.mark.parametrize(("count", "columns"), [(9, 3), (7, 4), (1, 3), (0, 3)])
def test_every_sample_is_shown_once(count: int, columns: int) -> None:
    drawn = draw.sample_grid([image(shade=10 + k) for k in range(count)], columns)
    assert [pixels[0, 0, 0] for pixels in shown(drawn.axes[0])] == [10 + k for k in range(count)]
    assert inside(drawn)


@pytest.mark.parametrize("dimensions", [1, 6, 16])
def test_traversals_are_labelled_by_dimension_and_value(dimensions: int) -> None:
    values = (-3.0, -1.5, 0.0, 1.5, 3.0)
    names = [f"z{k + 1}: {k}.25 nats" for k in range(dimensions)]
    drawn = draw.traversals([[image()] * 5] * dimensions, values, names)
    assert texts(drawn.axes[0].get_yticklabels()) == names
    assert texts(drawn.axes[0].get_xticklabels()) == ["−3", "−1.5", "0", "1.5", "3"]
    assert inside(drawn)


def test_the_histograms_share_their_bins_and_the_area_under_the_curve_is_the_auroc_with_ties() -> None:
    generator = np.random.default_rng(0)
    normal = generator.normal(0, 1, 80).round(1)
    anomalous = generator.normal(1, 1, 300).round(1)
    drawn = draw.score_histogram(normal, anomalous, "negative_elbo", "AUROC 0.760 (0.700 to 0.820)")
    bars, curve = drawn.axes
    first, _, second, _ = [part.get_data() for part in bars.patches]
    assert (first.edges == second.edges).all()
    assert (first.values.sum(), second.values.sum()) == pytest.approx((100, 100))
    assert texts(bars.get_legend().get_texts()) == ["normal (n = 80)", "anomalous (n = 300)"]
    assert bars.get_xlabel() == "negative ELBO (nats)"
    ours = next(line for line in curve.lines if line.get_label() == "this score")
    x, y = (np.asarray(part, dtype=float) / 100 for part in ours.get_data())
    wins = (anomalous[:, None] > normal).mean() + 0.5 * (anomalous[:, None] == normal).mean()
    assert np.trapezoid(y, x) == pytest.approx(wins)
    assert inside(drawn)


@pytest.mark.parametrize(("normal", "anomalous"), [([], [1.0]), ([1.0], [])])
def test_one_empty_set_gives_a_sentence(normal: list[float], anomalous: list[float]) -> None:
    drawn = draw.score_histogram(normal, anomalous, "mse", "AUROC —")
    assert texts(drawn.axes[0].texts) == ["both normal and anomalous images are needed"]


def test_equal_scores_everywhere_are_no_error() -> None:
    assert inside(draw.score_histogram([1.0, 1.0], [1.0], "mse", "AUROC 0.500"))


def test_the_axis_of_a_metric_holds_the_values_and_not_zero() -> None:
    rows = [("this model", 20.37, 19.9, 20.9), ("mean image", 12.02, 11.7, 12.4), ("interpolation", 18.8, None, None)]
    drawn = draw.metric_bars(rows, "masked_psnr", 0.9)
    (axes,) = drawn.axes
    low, high = axes.get_xlim()
    assert 10 < low < 11.7
    assert 20.9 < high < 22
    assert axes.get_xlabel() == "PSNR on masked patches (dB), line: 90 % interval"
    assert texts(axes.texts) == ["20.37 dB", "12.02 dB", "18.80 dB"]
    assert inside(drawn)


@pytest.mark.parametrize(
    ("metric", "value", "text"), [("ssim", 0.4243, "0.4243"), ("kl", 0.0, "0.0000"), ("accuracy", 0.934, "93.4 %")]
)
def test_a_single_point_has_an_axis_too(metric: str, value: float, text: str) -> None:
    drawn = draw.metric_bars([("this model", value, None, None)], metric)
    low, high = drawn.axes[0].get_xlim()
    assert low < (100 * value if metric == "accuracy" else value) < high
    assert texts(drawn.axes[0].texts) == [text]
    assert inside(drawn)


def test_accuracy_runs_from_nothing_to_everything_in_percent() -> None:
    drawn = figures.accuracy_intervals([("this model", 0.9, 0.85, 0.95), ("majority", 0.5, None, None)])
    assert drawn.axes[0].get_xlim() == (-2, 102)
    assert texts(drawn.axes[0].texts) == ["90.0 %", "50.0 %"]
    assert list(drawn.axes[0].lines[0].get_xdata()) == [85, 95]


def test_history_draws_every_key_of_a_panel_and_names_its_unit() -> None:
    rows = [
        {
            "epoch": epoch,
            "train": {"loss": 1 / epoch},
            "validation": {"psnr": 17.0 + epoch, "masked_psnr": 15.0 + epoch},
        }
        for epoch in (1, 2, 3)
    ]
    panels = {"Loss": ["loss"], "PSNR": ["psnr", "masked_psnr"], "KL": ["kl"], "SSIM": ["ssim"]}
    drawn = draw.history(rows, panels, 3)
    loss, psnr, kl, ssim = drawn.axes
    assert [axes.get_ylabel() for axes in drawn.axes] == ["loss", "PSNR (dB)", "KL divergence (nats)", "SSIM"]
    assert texts(loss.get_legend().get_texts()) == ["training", "kept: epoch 3"]
    assert texts(psnr.get_legend().get_texts()) == [
        "validation: PSNR", "validation: PSNR on masked patches", "kept: epoch 3",
    ]  # fmt: skip
    assert texts(psnr.texts) == ["20", "18"]
    assert texts(kl.texts) == ["no KL was recorded"]
    assert texts(ssim.texts) == ["no SSIM was recorded"]
    assert inside(drawn)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_history_has_a_panel_for_each_entry(count: int) -> None:
    rows = [{"epoch": 1, "train": {"kl": 2.0}, "validation": {"kl": 2.5}}]
    drawn = draw.history(rows, {f"panel {k}": ["kl"] for k in range(count)}, 1)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == [f"panel {k}" for k in range(count)]
    assert inside(drawn)
