"""Numbers drawn in charts equal those of the tables, and the labels of image grids lie in the picture."""

import numpy as np
import pytest

from finesight.metrics import bootstrap
from finesight.metrics.classification import ClassificationMetric
from finesight.report import figures
from tests.report.test_figures import image, inside


def test_calibration_error_is_that_of_the_metrics_on_the_edges_of_bins_too() -> None:
    # 1/15 as 3 * (1/45) and the like fall on either side of an edge by one bit.
    confidence = np.concatenate([np.arange(8, 16) / 15, np.linspace(0.5, 1, 41)])
    correct = np.random.default_rng(0).random(len(confidence)) < 0.8
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    metric = ClassificationMetric(["cat", "dog"])
    table = metric.statistics(probabilities, np.where(correct, 0, 1))
    expected = float(metric.reduce(bootstrap.total(table))["expected_calibration_error"])
    title = figures.reliability_diagram(confidence, correct).axes[0].get_title(loc="left")
    assert title == f"Reliability: expected calibration error {100 * expected:.1f} %"


def test_reliability_bars_and_whiskers_are_accuracy_and_wilson_interval() -> None:
    drawn = figures.reliability_diagram(np.full(10, 0.95), np.arange(10) < 9, bins=10)
    (bar,) = drawn.axes[0].patches
    assert bar.get_height() == pytest.approx(90)
    (segment,) = drawn.axes[0].collections[0].get_segments()
    # Wilson's interval of 9 of 10, as published in tables: 0.596 to 0.982.
    assert segment[:, 1] == pytest.approx([59.6, 98.2], abs=0.06)


def test_curves_selected_by_loss_show_the_accuracy_beside_it() -> None:
    rows = [{"epoch": 1, "train": {"loss": 1.0}, "validation": {"loss": 2.0, "accuracy": 0.25}}]
    drawn = figures.curves(rows, "loss", 1)
    assert [part.get_title(loc="left") for part in drawn.axes] == ["Loss", "Accuracy"]


def test_a_metric_beyond_one_is_not_called_percent() -> None:
    rows = [{"epoch": 1, "train": {}, "validation": {"loss": 2.0, "nll": 2.0}}]
    assert figures.curves(rows, "nll").axes[1].get_ylabel() == "nll"


@pytest.mark.parametrize(("classes", "each"), [(2, 6), (10, 6), (41, 3)])
def test_the_labels_of_samples_lie_inside_the_picture(classes: int, each: int) -> None:
    assert inside(figures.samples_per_class({f"Tomato___leaf_disease_{k}": [image()] * each for k in range(classes)}))


@pytest.mark.parametrize(("rows", "variants"), [(1, 1), (4, 6), (5, 9)])
def test_the_labels_of_augmentation_lie_inside_the_picture(rows: int, variants: int) -> None:
    names = ["Tomato___Tomato_Yellow_Leaf_Curl_Virus"] * rows
    assert inside(figures.augmentation_grid([image()] * rows, [[image()] * variants] * rows, names))
