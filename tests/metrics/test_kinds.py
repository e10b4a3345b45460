"""Every metric has a unit and a direction, and a wrong name is told the nearest right one."""

import pytest

from finesight.errors import ConfigError
from finesight.metrics.classification import ClassificationMetric
from finesight.metrics.kinds import higher_is_better, kind


def test_every_score_of_a_classifier_has_unit_and_direction() -> None:
    for name in ClassificationMetric([f"class {label}" for label in range(7)]).names:
        lower = name in ("nll", "expected_calibration_error")
        assert higher_is_better(name) is not lower, name
        assert kind(name).unit == ("nats" if name == "nll" else "fraction")
    assert not higher_is_better("loss")


@pytest.mark.parametrize("prefix", ["", "masked_"])
@pytest.mark.parametrize(
    ("name", "unit", "higher"), [("mse", "squared intensity", False), ("psnr", "dB", True), ("ssim", "index", True)]
)
def test_image_metrics_are_known_on_all_pixels_and_on_masked_patches(
    prefix: str, name: str, unit: str, higher: bool
) -> None:
    assert kind(prefix + name) == (unit, higher)


def test_metrics_of_autoencoders_and_detectors_are_known() -> None:
    assert {kind(name) for name in ("negative_elbo", "reconstruction_nats", "kl")} == {("nats", False)}
    assert kind("auroc") == ("fraction", True)


@pytest.mark.parametrize(("name", "nearest"), [("acuracy", "accuracy"), ("masked_pnsr", "masked_psnr")])
def test_an_unknown_name_is_told_the_nearest_one(name: str, nearest: str) -> None:
    with pytest.raises(
        ConfigError, match=f"{name}: no metric of this name; did you mean '{nearest}'\\? Known: accuracy"
    ):
        higher_is_better(name)
