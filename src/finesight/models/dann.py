"""Domain-adversarial training of features (Ganin et al. 2016, JMLR 17(59))."""

from typing import Any

import torch
from torch import Tensor, nn


class DomainHead(nn.Module):
    """Tells source from target by features seen through a gradient reversal: [B, D] -> logits [B], positive for target.

    Two linear layers with 100 hidden units, as for MNIST-M in the paper.
    """

    def __init__(self, width: int, hidden: int = 100) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor, strength: float) -> Tensor:
        """[B, D] -> [B]; the gradient that reaches `features` is multiplied by -strength."""
        return self.layers(_Reverse.apply(features, strength)).squeeze(1)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None
