"""The attacks of AutoAttack one after the other, each on what the ones before left (Croce & Hein 2020)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from finesight.attacks import budget
from finesight.attacks.auto_pgd import apgd, apgd_targeted
from finesight.attacks.budget import Norm
from finesight.attacks.model import Model
from finesight.attacks.random_search import square
from finesight.attacks.transfer import logits, predictions

STAGES = ("clean", "apgd-ce", "apgd-t", "square")


@dataclass(frozen=True)
class AutoAttack:
    """What is left of a model after each stage.

    images: float32 [B, C, H, W], the adversarial image where one was found, else the image itself. broken_by:
    int64 [B], the index in `STAGES` of what the model first got wrong ("clean": without any attack), -1 for none.
    stages: the names of the stages that ran.
    """

    images: Tensor
    broken_by: Tensor
    stages: tuple[str, ...]

    def accuracy(self) -> dict[str, float]:
        """Share of images in [0, 1] that the model still gets right after each stage."""
        broken = torch.zeros_like(self.broken_by, dtype=torch.bool)
        shares = {}
        for stage in self.stages:
            broken = broken | (self.broken_by == STAGES.index(stage))
            shares[stage] = (~broken).double().mean().item()
        return shares


def auto_attack(
    model: Model,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    norm: Norm = "linf",
    iters: int = 100,
    queries: int = 5000,
    batch_size: int = 250,
    generator: torch.Generator | None = None,
) -> AutoAttack:
    """APGD on the cross-entropy, APGD towards nine wrong classes, Square: AutoAttack's standard order and defaults.

    Arguments and errors as in `finesight.attacks.pgd`. FAB, the third of AutoAttack's four, is not among them, so
    the accuracy is an upper bound of AutoAttack's. The targeted stage needs 4 classes and does not run with fewer.
    """
    budget.check_call(images, labels, eps, norm, iters=iters, queries=queries, batch_size=batch_size)
    images = images.detach()
    result, broken_by = images.clone(), torch.full_like(labels, -1)
    clean = logits(model, images, batch_size)
    broken_by[clean.argmax(1) != labels] = 0
    stages = [stage for stage in STAGES if stage != "apgd-t" or clean.shape[1] >= 4]
    for stage in stages[1:]:
        for left in (broken_by < 0).nonzero().squeeze(1).split(batch_size):
            if not len(left):
                continue
            batch, truth = images[left], labels[left]
            if stage == "apgd-ce":
                tried = apgd(model, batch, truth, eps, iters, norm=norm, generator=generator)
            elif stage == "apgd-t":
                tried = apgd_targeted(model, batch, truth, eps, iters, norm=norm, generator=generator)
            else:
                tried = square(model, batch, truth, eps, queries, norm=norm, generator=generator)
            fooled = predictions(model, tried, batch_size) != truth
            result[left[fooled]] = tried[fooled]
            broken_by[left[fooled]] = STAGES.index(stage)
    return AutoAttack(budget.check_result(result, images, eps, norm), broken_by, tuple(stages))
