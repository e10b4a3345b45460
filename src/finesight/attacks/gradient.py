"""One step and many steps along the gradient of the loss: FGSM and PGD."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from finesight.attacks import budget
from finesight.attacks.budget import Norm
from finesight.attacks.model import Model, attacking, gradient_of, logits_of
from finesight.errors import ConfigError

# A few roundings of bfloat16 (2^-9 each), as a share of the largest logit.
BF16_SLACK = 2**-5


def fgsm(
    model: Model, images: Tensor, labels: Tensor, eps: float, *, targeted: bool = False, bf16: bool = False
) -> Tensor:
    """One step of length eps along the gradient's sign (Goodfellow et al. 2015, arXiv:1412.6572).

    Arguments, result and errors are those of `pgd`.
    """
    return pgd(model, images, labels, eps, eps, 1, random_start=False, targeted=targeted, bf16=bf16)


def pgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    eps: float,
    step: float,
    iters: int,
    *,
    norm: Norm = "linf",
    random_start: bool = True,
    restarts: int = 1,
    targeted: bool = False,
    generator: torch.Generator | None = None,
    bf16: bool = False,
    early_stop: bool = False,
) -> Tensor:
    """Projected gradient ascent on the cross-entropy (Madry et al. 2018, arXiv:1706.06083).

    images: float32 [B, C, H, W] in [0, 1]; labels: int64 [B], the true classes, or with `targeted` the wanted
    ones; eps and step in units of a pixel's range (8/255). `model` maps images to logits [B, classes]; it is in
    evaluation mode meanwhile, and its parameters get no gradient. The start is uniform in the ball. Of several
    restarts an image keeps one that fools the model, else the one with the greatest loss. `generator` makes the
    starts reproducible; `bf16` runs the model under autocast; `early_stop` leaves an image alone once it fools
    the model, which saves time and the margin by which it would go on to fool it.

    Returns float32 [B, C, H, W] in [0, 1], within eps of the images; both are checked. Raises `DataError`,
    `ConfigError` and `ModelError` for images outside [0, 1], impossible numbers and a model that is none.
    """
    budget.check_call(images, labels, eps, norm, restarts=restarts)
    budget.check_whole(0, iters=iters)
    if not (math.isfinite(step) and step >= 0):
        raise ConfigError(f"step {step} is no length; give a number from 0 on, such as 2/255.")
    if eps == 0:
        return images.detach().clone()
    attack = _Ascent(model, eps, step, iters, norm, targeted, early_stop, bf16)
    with attacking(model, images.device, bf16):
        images = images.detach().clone()  # what inference mode made takes no part in gradients
        starts = (starting_points(images, eps, norm, random_start, generator) for _ in range(restarts))
        result = attack.best(images, starts, labels)
    return budget.check_result(result, images, eps, norm)


class _Ascent:
    """The steps of one start, and what they came to."""

    def __init__(
        self,
        model: Model,
        eps: float,
        step: float,
        iters: int,
        norm: Norm,
        targeted: bool,
        early_stop: bool,
        bf16: bool,
    ) -> None:
        self.model, self.eps, self.step, self.iters = model, eps, step, iters
        self.norm, self.targeted, self.early_stop, self.bf16 = norm, targeted, early_stop, bf16

    def best(self, images: Tensor, starts: Iterator[Tensor], labels: Tensor) -> Tensor:
        """Of several starts each image's first that fools the model, else the one with the greatest loss.

        starts: [B, C, H, W] each, drawn for all images, so that no image's draws move with the verdict on another.
        """
        result = self.run(images, next(starts), labels)
        known: tuple[Tensor, Tensor] | None = None
        for start in starts:
            known = known or self.verdict(result, labels)
            fooled, loss = known
            left = (~fooled).nonzero().squeeze(1)
            if not len(left):
                break
            tried = self.run(images[left], start[left], labels[left])
            now_fooled, now_loss = self.verdict(tried, labels[left])
            better = now_fooled | (now_loss > loss[left])
            result[left[better]], fooled[left[better]] = tried[better], now_fooled[better]
            loss[left[better]] = now_loss[better]
        return result

    def run(self, images: Tensor, points: Tensor, labels: Tensor) -> Tensor:
        """[B, C, H, W] of images and starts, labels [B] -> the points after the last step."""
        result, moving = points.clone(), torch.arange(len(points), device=points.device)
        for _ in range(self.iters):
            points.requires_grad_()
            logits = logits_of(self.model, points, labels)
            gradient = gradient_of(self._losses(logits, labels), points)
            points = points.detach()
            if self.early_stop and (fooled := self._safely_fooled(logits, labels)).any():
                result[moving[fooled]] = points[fooled]
                images, points, labels = images[~fooled], points[~fooled], labels[~fooled]
                gradient, moving = gradient[~fooled], moving[~fooled]
                if not len(moving):
                    break
            uphill = budget.direction(gradient, self.norm)
            points = budget.project(points + self.step * uphill, images, self.eps, self.norm)
        result[moving] = points
        return result

    @torch.no_grad()
    def verdict(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each point fools the model without bf16, bool [B], and its loss, [B]."""
        with torch.autocast(points.device.type, enabled=False):
            logits = logits_of(self.model, points, labels)
        return self._fooled(logits, labels), self._losses(logits, labels)

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits, labels, reduction="none")
        return -losses if self.targeted else losses

    def _fooled(self, logits: Tensor, labels: Tensor) -> Tensor:
        hit = logits.argmax(1) == labels
        return hit if self.targeted else ~hit

    def _safely_fooled(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Fooled by a margin that float32 would confirm where the logits come from bf16."""
        logits = logits.detach()
        own = logits.gather(1, labels[:, None])
        others = logits.scatter(1, labels[:, None], -math.inf).amax(1, keepdim=True)
        margin = own - others if self.targeted else others - own
        slack = BF16_SLACK * logits.abs().amax(1, keepdim=True) if self.bf16 else 0.0
        return (margin > slack).squeeze(1)


def starting_points(images: Tensor, eps: float, norm: Norm, random: bool, generator: torch.Generator | None) -> Tensor:
    """The images, or with `random` a point drawn uniformly from the ball around each, clipped to [0, 1]."""
    if not random:
        return images.clone()
    draws = torch.empty(images.shape, dtype=images.dtype, device=generator.device if generator else "cpu")
    if norm == "linf":
        draws.uniform_(-eps, eps, generator=generator)
    else:
        draws.normal_(generator=generator)
        radius = torch.empty(len(draws), 1, 1, 1, dtype=draws.dtype, device=draws.device)
        radius.uniform_(generator=generator).pow_(1 / draws[0].numel())
        draws *= eps * radius / budget.lengths(draws)
    return (images + draws.to(images.device)).clamp_(0, 1)
