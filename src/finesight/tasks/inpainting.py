"""Trivial ways to fill hidden pixels from visible ones; what a masked autoencoder has to beat."""

import torch
from torch import Tensor
from torch.nn import functional

RELAXATIONS = 40
"""Smoothing steps after the pyramid; more change the result by less than a grey level of 255."""


def paste(visible: Tensor, filled: Tensor, hidden: Tensor) -> Tensor:
    """`filled` where a pixel was hidden, else the true one. [B, 3, S, S] twice, bool [B, S, S]"""
    return torch.where(hidden[:, None], filled, visible)


def mean_of_visible(images: Tensor, hidden: Tensor) -> Tensor:
    """Each image's mean visible colour everywhere. float [B, 3, S, S] in [0, 1], bool [B, S, S]"""
    seen = (~hidden)[:, None].to(images.dtype)
    mean = (images * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True).clamp(min=1)
    return mean.expand_as(images)


def interpolated(images: Tensor, hidden: Tensor) -> Tensor:
    """Hidden pixels as a smooth continuation of the visible ones around them. Shapes as above.

    Pull-push over a pyramid (Gortler et al. 1996, section 3.4), then relaxation towards the harmonic function that
    has the visible pixels as its boundary values.
    """
    seen = (~hidden)[:, None].to(images.dtype)
    filled = _pull_push(images * seen, seen)
    for _ in range(RELAXATIONS):
        padded = functional.pad(filled, (1, 1, 1, 1), mode="replicate")
        around = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
        filled = torch.where(hidden[:, None], around / 4, images)
    return filled


def _pull_push(weighted: Tensor, weight: Tensor) -> Tensor:
    """Colours [B, 3, H, W] of sums `weighted` over `weight` [B, 1, H, W], holes filled from coarser levels."""
    known = weighted / weight.clamp(min=1e-6)
    height, width = weight.shape[2:]
    if min(height, width) == 1 or bool((weight > 0).all()):
        return known
    coarse = _pull_push(
        functional.avg_pool2d(weighted, 2, ceil_mode=True), functional.avg_pool2d(weight, 2, ceil_mode=True)
    )
    fine = functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    share = weight.clamp(max=1)
    return share * known + (1 - share) * fine
