"""The order in memory, of images and of the weights of convolutions, that a model is fastest with."""

import torch
from torch import nn

_BLOCK = 16
"""Channels that oneDNN's convolutions treat at once with AVX-512 (8 with AVX2)."""


def memory_format(model: nn.Module) -> torch.memory_format:
    """channels_last for a model that convolves, unless the processor's library would spoil its gradients.

    For both: torch convolves with channels last where either its images or its weights are.

    oneDNN writes past its buffer in the backward pass of a strided 1 x 1 convolution that has fewer channels than a
    block, with channels last only: gradients are wrong, and the process may end
    (https://github.com/uxlfoundation/oneDNN/issues/6035, seen with oneDNN 3.13.3).
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    spoils = any(
        set(each.kernel_size) == {1} and max(each.stride) > 1 and each.in_channels // each.groups < _BLOCK
        for each in convolutions
    )
    convolves = any(parameter.dim() == 4 for parameter in model.parameters())
    return torch.channels_last if convolves and not spoils else torch.contiguous_format
