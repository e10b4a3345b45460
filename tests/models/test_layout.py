"""Channels last is chosen where it is safe."""

import pytest
import torch
from torch import nn

from finesight.engine import Engine
from finesight.models.layout import memory_format


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Linear(4, 4), torch.contiguous_format),
        (nn.Conv2d(3, 8, 3, stride=2), torch.channels_last),
        (nn.Conv2d(8, 16, 1), torch.channels_last),
        (nn.Conv2d(16, 32, 1, stride=2), torch.channels_last),
        (nn.Conv2d(8, 16, 1, stride=2), torch.contiguous_format),  # oneDNN issue 6035
        (nn.Conv2d(32, 64, 1, stride=2, groups=4), torch.contiguous_format),
    ],
)
def test_channels_last_unless_gradients_would_be_spoilt(model: nn.Module, expected: torch.memory_format) -> None:
    assert memory_format(nn.Sequential(model)) is expected


@pytest.mark.parametrize(("channels", "expected"), [(8, torch.contiguous_format), (16, torch.channels_last)])
def test_the_weights_of_a_placed_model_have_that_layout(channels: int, expected: torch.memory_format) -> None:
    """torch convolves with channels last where the weights are, whatever the images."""
    first = nn.Conv2d(3, channels, 3)  # a weight of 1 x 1 has both layouts at once
    placed = Engine("fp32").place(nn.Sequential(first, nn.Conv2d(channels, 32, 1, stride=2)))
    assert first.weight.is_contiguous(memory_format=expected)
    made = placed(torch.rand(2, 3, 12, 12))
    assert made.is_contiguous(memory_format=expected)
