"""Cross-entropy of word scores that come from a frozen matrix, with its gradient made in the forward pass."""

from typing import Any

import torch
from torch import Tensor

CHUNK = 256
"""Tokens whose scores are held at once; 256 x 50,257 words are 51 MB in float32."""


def frozen_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(hidden @ weight.T)[target] in nats, float32 [n]; weight [V, H] gets no gradient.

    hidden [n, H], targets int64 [n]. The scores are computed in the type of `weight`, the rest in float32. The
    gradient of row i is (softmax - one_hot) @ weight times what comes from above, so it is made while the scores
    are there: they are neither kept nor made twice.
    """
    return _FrozenCrossEntropy.apply(hidden, weight, targets)


class _FrozenCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        rows = torch.empty(hidden.shape, dtype=torch.float32, device=hidden.device) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK):
            part, wanted = slice(start, start + CHUNK), targets[start : start + CHUNK, None]
            scores = (hidden[part].to(weight.dtype) @ weight.T).float()
            scores -= scores.amax(1, keepdim=True)
            picked = scores.gather(1, wanted)
            total = scores.exp_().sum(1, keepdim=True)
            losses[part] = (total.log() - picked)[:, 0]
            if rows is not None:
                scores /= total
                scores.scatter_add_(1, wanted, torch.full_like(picked, -1.0))
                rows[part] = (scores.to(weight.dtype) @ weight).float()
        if rows is not None:
            ctx.save_for_backward(rows)
        ctx.kind = hidden.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        return (rows * above[:, None]).to(ctx.kind), None, None
