"""PGD on what an encoder makes of an image instead of on its class: the inner problem of FARE."""

from collections.abc import Callable

import torch
from torch import Tensor

from finesight.attacks import budget
from finesight.attacks.budget import Norm
from finesight.attacks.gradient import starting_points
from finesight.attacks.model import attacking, gradient_of
from finesight.errors import ModelError


def feature_pgd(
    encoder: Callable[[Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    eps: float,
    step: float,
    iters: int,
    *,
    norm: Norm = "linf",
    generator: torch.Generator | None = None,
    bf16: bool = False,
) -> Tensor:
    """Images within eps whose features are far from `targets` in squared Euclidean distance, from a random start.

    Schlarmann et al. 2024, arXiv:2402.12336, eq. 3. images: float32 [B, C, H, W] in [0, 1]; encoder: images to features
    [B, D]; targets: [B, D], such as the features of the clean images by the original encoder. Returns float32
    [B, C, H, W] in [0, 1] within eps of the images. Errors as in `finesight.attacks.pgd`.
    """
    budget.check_images(images)
    budget.check_eps(eps, norm)
    budget.check_whole(1, iters=iters)
    if len(targets) != len(images) or targets.ndim != 2:
        raise ModelError(f"Targets {list(targets.shape)} for {len(images)} images; give features [{len(images)}, D].")
    with attacking(encoder, images.device, bf16):
        images, targets = images.detach().clone(), targets.detach().clone()
        points = starting_points(images, eps, norm, True, generator)
        for _ in range(iters):
            points.requires_grad_()
            losses = (encoder(points).float() - targets).square().sum(1)
            uphill = budget.direction(gradient_of(losses, points), norm)
            points = budget.project(points.detach() + step * uphill, images, eps, norm)
    return budget.check_result(points, images, eps, norm)
