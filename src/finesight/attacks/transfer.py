"""Adversarial images made with one model and shown to another."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from finesight.attacks import budget
from finesight.attacks.model import Model, attacking, logits_of

Attack = Callable[[Model, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Transfer:
    """images: float32 [B, C, H, W], adversarial; surrogate, victim: int64 [B], what each model takes them for."""

    images: Tensor
    surrogate: Tensor
    victim: Tensor


def transfer_attack(
    attack: Attack, surrogate: Model, victim: Model, images: Tensor, labels: Tensor, batch_size: int = 250
) -> Transfer:
    """Attack the surrogate, judge the victim.

    attack: `pgd` or another of this package with its numbers bound, called with (surrogate, images, labels). Both
    models take the same pixels, float32 [B, C, H, W] in [0, 1], and resize and normalise them inside
    (`finesight.attacks.Normalized`). Accuracy under a transferred attack is no measure of robustness by itself:
    compare it with a white-box attack on the victim, which can only be lower.
    """
    budget.check_images(images)
    budget.check_labels(images, labels)
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    adversarial = torch.cat([attack(surrogate, batch, truth) for batch, truth in batches])
    return Transfer(
        adversarial, predictions(surrogate, adversarial, batch_size), predictions(victim, adversarial, batch_size)
    )


def predictions(model: Model, images: Tensor, batch_size: int = 250) -> Tensor:
    """The likeliest class of each image, int64 [B], by a model of pixels in evaluation mode.

    images: float32 [B, C, H, W] in [0, 1]; raises `DataError` for others.
    """
    return logits(model, images, batch_size).argmax(1)


def logits(model: Model, images: Tensor, batch_size: int = 250) -> Tensor:
    """The model's logits, [B, classes], without gradients; images and errors as in `predictions`."""
    budget.check_images(images)
    budget.check_whole(1, batch_size=batch_size)
    with attacking(model, images.device), torch.no_grad():
        return torch.cat([logits_of(model, batch) for batch in images.split(batch_size)])
