"""Trivial ways to fill hidden pixels from visible ones; what a masked autoencoder has to beat."""

import torch
from torch import Tensor
from torch.nn import functional

SWEEPS = 40
"""Passes of the relaxation at every level of the pyramid."""
OMEGA = 1.9
"""Over-relaxation, near the best factor for what a coarser level leaves to do."""


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

    The harmonic function that has the visible pixels as its boundary values: pull-push over a pyramid (Gortler et
    al. 1996, section 3.4), at each level relaxed by successive over-relaxation in checkerboard order (Young 1954).
    """
    seen = (~hidden)[:, None].to(images.dtype)
    return paste(images, _pull_push(images * seen, seen).clamp(0, 1), hidden)


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
    return _relaxed(torch.where(weight > 0, known, fine), weight == 0)


def _relaxed(values: Tensor, holes: Tensor) -> Tensor:
    """`values` [B, 3, H, W] with those in `holes` bool [B, 1, H, W] moved towards the mean of their neighbours."""
    rows, columns = (torch.arange(side, device=values.device) for side in values.shape[2:])
    black = (rows[:, None] + columns[None]) % 2 == 0
    for _ in range(SWEEPS):
        for field in (black & holes, ~black & holes):
            padded = functional.pad(values, (1, 1, 1, 1), mode="replicate")
            around = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
            values = torch.where(field, values + OMEGA * (around / 4 - values), values)
    return values


def patch_means(images: Tensor, patch: int) -> Tensor:
    """The true mean colour of every patch; what a model of standardised patches is told about hidden ones."""
    return functional.interpolate(functional.avg_pool2d(images, patch), images.shape[2:], mode="nearest")
