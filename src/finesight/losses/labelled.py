"""CLIP's loss where labels tell which other pairs of a batch are true as well (S4)."""

import torch
from torch import Tensor
from torch.nn import functional

from finesight.errors import ModelError


def labelled_clip_loss(image: Tensor, text: Tensor, scale: float | Tensor, true: Tensor) -> Tensor:
    """`contrastive.clip_loss` without the negatives that are none, a scalar.

    image, text: unit vectors [B, D], row i of one belonging to row i of the other; true: bool [B, B], whether text j
    may describe image i. A true pair off the diagonal is neither positive nor negative: it is left out of both sums.
    With no such pair this is `clip_loss`; what the debiased loss estimates from the prior of a class is known here.
    Raises `ModelError` for shapes that do not pair.
    """
    if image.ndim != 2 or image.shape != text.shape or true.shape != (len(image), len(image)):
        raise ModelError(
            f"Images {list(image.shape)}, texts {list(text.shape)} and true pairs {list(true.shape)} do not fit; give "
            "[B, D], [B, D] and [B, B]."
        )
    if image.dtype != torch.float64:
        image, text = image.float(), text.float()
    with torch.autocast(image.device.type, enabled=False):  # a scale of 100 would show the rounding of bf16
        logits = image @ text.T * scale
    own = torch.arange(len(image), device=image.device)
    logits = logits.masked_fill(true & (own[:, None] != own), -torch.inf)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
