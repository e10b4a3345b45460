"""What a perturbation may be: checked before an attack, kept by projection, and checked again after it."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from finesight.errors import ConfigError, DataError, ModelError

Norm = Literal["linf", "l2"]

# In units of a pixel's range: what float32 loses when a perturbation is added to a pixel and subtracted again.
ROUNDING = 1e-6


def check_images(images: Tensor) -> None:
    """Raise `DataError` unless images are float32 (or float64) [B, C, H, W] in [0, 1]."""
    if images.ndim != 4 or images.dtype not in (torch.float32, torch.float64) or not len(images):
        raise DataError(
            f"Images of type {images.dtype} and shape {list(images.shape)}: attacks take float32 [B, C, H, W] in "
            "[0, 1]; divide 8-bit images by 255."
        )
    low, high = (value.item() for value in images.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"Images run from {low:.4g} to {high:.4g}, not within [0, 1]. Normalised images would be clipped, and "
            "eps would not be in pixels: give the pixels, and wrap the model in finesight.attacks.Normalized(model, "
            "mean, std). Divide 8-bit values by 255."
        )


def check_labels(images: Tensor, labels: Tensor) -> None:
    """Raise `DataError` unless labels are int64 [B], none of them negative."""
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64 or labels.min() < 0:
        raise DataError(
            f"Labels of type {labels.dtype} and shape {list(labels.shape)} for {len(images)} images: give class "
            "numbers from 0 on, int64 [B]."
        )


def check_eps(eps: float, norm: str) -> None:
    """Raise `ConfigError` for a budget that is no budget, and for one in units of 8-bit images."""
    if norm not in get_args(Norm):
        raise ConfigError(f"norm {norm!r} is unknown; choose linf or l2.")
    if not (math.isfinite(eps) and eps >= 0):
        raise ConfigError(f"eps {eps} is no budget; give a number from 0 on, such as 8/255.")
    if norm == "linf" and eps > 1:
        raise ConfigError(f"eps {eps:g} is wider than the range of a pixel, [0, 1]; for 8-bit steps write {eps:g}/255.")


def check_call(images: Tensor, labels: Tensor, eps: float, norm: str, **counts: int) -> None:
    """All checks before an attack; `counts` are whole numbers from 1 on."""
    check_images(images)
    check_labels(images, labels)
    check_eps(eps, norm)
    check_whole(1, **counts)


def check_whole(smallest: int, **counts: int) -> None:
    """Raise `ConfigError` for a count that is no whole number from `smallest` on."""
    for name, count in counts.items():
        if not isinstance(count, int) or count < smallest:
            raise ConfigError(f"{name} {count} is no count; give a whole number from {smallest} on.")


def check_result(adversarial: Tensor, images: Tensor, eps: float, norm: Norm) -> Tensor:
    """`adversarial` itself, or `ModelError` where it leaves [0, 1] or its budget (also by NaN)."""
    low, high = (value.item() for value in adversarial.aminmax())
    distance = distances(adversarial, images, norm).max().item()
    if not (low >= 0 and high <= 1 and distance <= eps * (1 + 1e-5) + ROUNDING):
        raise ModelError(
            f"The attack ended at a distance of {distance:.6g} ({norm}; budget {eps:.6g}) with pixels from {low:.4g} "
            f"to {high:.4g}. Its result is discarded: look for NaN or infinity in the model's logits and gradient."
        )
    return adversarial


def distances(adversarial: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """How far each image was moved, float64 [B], in units of a pixel's range."""
    moved = (adversarial.double() - images.double()).flatten(1)
    return moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)


def project(points: Tensor, images: Tensor, eps: float, norm: Norm) -> Tensor:
    """The nearest points of the ball around the images (first) that are images (then). [B, C, H, W]"""
    moved = points - images
    if norm == "linf":
        moved = moved.clamp(-eps, eps)
    else:
        moved = moved * (eps / lengths(moved).clamp(min=1e-30)).clamp(max=1)
    return (images + moved).clamp_(0, 1)


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The steepest ascent of length 1 in the norm: the gradient's sign, or the gradient over its length."""
    return gradient.sign() if norm == "linf" else gradient / (lengths(gradient) + 1e-12)


def lengths(vectors: Tensor) -> Tensor:
    """Euclidean length of each sample, [B, 1, 1, 1]."""
    return torch.linalg.vector_norm(vectors, dim=(1, 2, 3), keepdim=True)
