"""EndoVAE: the counts of report 003, its ranges, and what must not happen to it."""

import pytest
import torch

from finesight.errors import ConfigError
from finesight.models import EndoVAE
from finesight.models.endovae import LOG_VARIANCE


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_counts_are_those_of_the_report() -> None:
    model = EndoVAE()
    assert count(model.encoder) == 9_842_380
    assert count(model.decoder) == 1_282_467
    assert count(model) == 11_124_847


def test_the_light_variant_has_no_dense_layer_of_millions() -> None:
    light = EndoVAE(bottleneck="convolutional")
    assert count(light.decoder) == 1_282_467
    assert count(light.encoder) < 500_000
    assert max(parameter.numel() for parameter in light.encoder.parameters()) < 300_000


@pytest.mark.parametrize("size", [32, 96, 128])
def test_the_output_has_the_shape_of_the_input(size: int) -> None:
    logits, mean, log_variance = EndoVAE(4, size)(torch.rand(2, 3, size, size), torch.randn(2, 4))
    assert logits.shape == (2, 3, size, size)
    assert mean.shape == log_variance.shape == (2, 4)


def test_the_log_variance_is_clamped_and_stays_finite() -> None:
    """Report 003 left it free: exp() of it overflows."""
    model = EndoVAE(2, 32)
    with torch.no_grad():
        model.encoder.log_variance.bias.fill_(1e4)
    _, _, log_variance = model(torch.rand(1, 3, 32, 32), torch.randn(1, 2))
    assert log_variance.max() == LOG_VARIANCE
    assert torch.isfinite(log_variance.exp()).all()


@pytest.mark.parametrize("size", [90, 8])
def test_sizes_that_cannot_be_halved_three_times_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"image_size {size}"):
        EndoVAE(6, size)
