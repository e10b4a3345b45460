"""Frozen weights held in bfloat16 while training computes in it: the same numbers, without casting them each step."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


def halve_frozen(model: "nn.Module") -> int:
    """Hold the frozen weights of linear layers as bfloat16, in place; returns how many parameters that are.

    Autocast rounds them to it in each forward pass anyway, so outputs under it stay bit for bit the same. What is
    trained stays float32, and so does what autocast leaves in float32: norms, embeddings, positions. An output layer
    that shares a frozen embedding gets a copy of its own. To be called once frozen weights need not be stored any more.
    """
    from transformers.pytorch_utils import Conv1D

    kept = {
        id(parameter)
        for module in model.modules()
        if not isinstance(module, (torch.nn.Linear, Conv1D))
        for parameter in module.parameters(recurse=False)
    }
    count = 0
    for module in model.modules():
        if not isinstance(module, (torch.nn.Linear, Conv1D)):
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad or parameter.dtype != torch.float32:
                continue
            if id(parameter) in kept:
                module.register_parameter(name, torch.nn.Parameter(parameter.detach().bfloat16(), requires_grad=False))
            else:
                parameter.data = parameter.data.bfloat16()
            count += parameter.numel()
    return count
