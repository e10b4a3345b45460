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
    placed = Engine("fp32").place(nn.Sequential(model))
    assert all(weight.is_contiguous(memory_format=expected) for weight in placed.parameters() if weight.dim() == 4)
