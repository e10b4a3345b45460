"""Figures on edge cases: labelled axes, text inside the picture, the same bytes twice, safe names."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from finesight.files import read_json
from finesight.report import figures, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = ["cat", "dog"]
MANY = [f"Plant number {number} with_a_long_name" for number in range(150)]
CLASSES = pytest.mark.parametrize("classes", [FEW, MANY], ids=["2", "150"])


def image(size: int = 8, shade: int = 120) -> np.ndarray:
    return np.full((size, size, 3), shade, dtype=np.uint8)


def labelled(figure: "Figure") -> bool:
    """Whether every pair of axes with ticks has a label in x, and the first of each row in y."""
    axes = [part for part in figure.axes if part.get_label() != "<colorbar>"]
    return all(part.get_xlabel() for part in axes if len(part.get_xticks())) and bool(axes[0].get_ylabel())


def inside(figure: "Figure") -> bool:
    """Whether all that the axes draw, their titles and labels too, lies within the picture (to a pixel)."""
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    boxes = [box for part in figure.axes if (box := part.get_tightbbox()) is not None]
    return all(box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1 for box in boxes)


@CLASSES
def test_confusion_matrix_is_labelled(classes: list[str]) -> None:
    drawn = figures.confusion_matrix(np.eye(len(classes), dtype=int) * 3, classes)
    assert all(part.get_xlabel() for part in drawn.axes[:2])
    assert drawn.axes[0].get_ylabel() == "reference"
    assert inside(drawn)


def test_confusion_matrix_without_a_sample_of_a_class_has_no_nan() -> None:
    drawn = figures.confusion_matrix([[2, 0], [0, 0]], FEW)
    rates = drawn.axes[1].get_images()[0].get_array()
    assert rates is not None
    assert np.isfinite(np.asarray(rates)).all()


@CLASSES
def test_class_chart_is_labelled_and_counts_an_absent_class_as_zero(classes: list[str]) -> None:
    drawn = figures.class_chart({"train": dict.fromkeys(classes, 4), "test": {classes[0]: 1}})
    assert labelled(drawn)
    assert drawn.axes[1].get_title(loc="left") == "test: 1"
    assert len(drawn.axes[1].patches) == len(classes)


@CLASSES
def test_samples_per_class_shows_at_most_sixty_and_says_so(classes: list[str]) -> None:
    drawn = figures.samples_per_class({name: [image()] * 2 for name in classes})
    shown = sum(len(part.get_yticks()) for part in drawn.axes)
    assert shown == min(len(classes), 60)
    assert (drawn.get_suptitle() == "60 of 150 classes") == (len(classes) > 60)
    assert all(part.get_xlabel() for part in drawn.axes)


def test_curves_of_one_epoch_show_a_point() -> None:
    row = {"epoch": 1, "train": {"loss": 1.0, "accuracy": 0.5}, "validation": {"loss": 1.2, "accuracy": 0.4}}
    drawn = figures.curves([row], "accuracy", 1)
    assert labelled(drawn)
    assert [part.get_ylabel() for part in drawn.axes] == ["loss", "accuracy (%)"]
    lines = [line for line in drawn.axes[1].lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert sorted(float(np.asarray(line.get_ydata())[0]) for line in lines)[:2] == pytest.approx([40.0, 40.0])


def test_curves_without_history_say_so() -> None:
    drawn = figures.curves([], "accuracy", None)
    assert [text.get_text() for text in drawn.axes[0].texts] == ["no loss was recorded"]
    assert labelled(drawn)


def test_curves_leave_out_values_that_are_not_finite() -> None:
    rows = [
        {"epoch": 1, "train": {"loss": float("nan")}, "validation": {}},
        {"epoch": 2, "train": {"loss": 2.0}, "validation": {}},
    ]
    assert list(figures.curves(rows).axes[0].lines[0].get_xdata()) == [2]


def test_no_mistakes_give_a_sentence() -> None:
    drawn = figures.worst_mistakes([image()], ["cat"], ["cat"], [0.9], total=359)
    assert [text.get_text() for text in drawn.axes[0].texts] == ["All 359 images were given the right class."]


@pytest.mark.parametrize("count", [1, 4, 5, 12])
def test_the_words_on_mistakes_lie_inside_the_picture(count: int) -> None:
    drawn = figures.worst_mistakes([image(32)] * count, ["cat"] * count, ["dog"] * count, [0.9] * count)
    assert len(drawn.axes) == count
    assert inside(drawn)


def test_worst_mistakes_are_the_most_confident_wrong_ones() -> None:
    assert figures.worst_indices([0, 0, 1, 1], [1, 0, 0, 0], [0.6, 0.99, 0.9, 0.9]) == [2, 3, 0]


@pytest.mark.parametrize("count", [0, 1, 200])
def test_reliability_diagram_is_labelled(count: int) -> None:
    drawn = figures.reliability_diagram(np.full(count, 0.75), np.ones(count, dtype=bool))
    assert drawn.axes[0].get_ylabel() == "accuracy (%)"
    assert drawn.axes[1].get_xlabel() == "confidence of the prediction (%)"
    assert ("25.0 %" in drawn.axes[0].get_title(loc="left")) == (count > 0)


def test_accuracy_intervals_take_a_row_without_an_interval() -> None:
    drawn = figures.accuracy_intervals([("this model", 0.9, None, None), ("majority", 0.5, 0.4, 0.6)])
    assert labelled(drawn)
    assert inside(drawn)


def test_augmentation_grid_and_patch_heatmap_are_labelled() -> None:
    grid = figures.augmentation_grid([image()], [[image(), image()]])
    assert [text.get_text() for text in grid.axes[0].get_xticklabels()] == ["original", "variant 1", "variant 2"]
    assert labelled(figures.patch_position_heatmap(np.zeros((100, 64))))


def test_saved_twice_gives_the_same_bytes_and_says_what_is_a_chart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        made = {
            "classes": (figures.class_chart({"train": {"$x$": 3}}), "t", "c"),
            "samples": (figures.samples_per_class({"cat": [image()]}), "t", "c"),
        }
        figures.save(made, tmp_path / folder)
    for name in ("classes.png", "classes.svg", "samples.png", "samples.svg", "figures.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert [entry["kind"] for entry in read_json(tmp_path / "one" / "figures.json")] == ["chart", "images"]


def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="figure name"):
        figures.save({"../x": (figures.class_chart({"train": {"a": 1}}), "", "")}, tmp_path)


def test_shortened_names_stay_different() -> None:
    names = [f"{'a' * 10}{letter}{'b' * 40}" for letter in "xyz"]
    short = style.shorten(names, 16)
    assert len(set(short)) == 3
    assert all(len(name) <= 28 for name in short)
