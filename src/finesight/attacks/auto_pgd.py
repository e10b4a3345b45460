"""APGD: projected gradient ascent that sets its own step (Croce & Hein 2020, arXiv:2003.01690, algorithm 1)."""

import functools
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from finesight.attacks import budget
from finesight.attacks.budget import Norm
from finesight.attacks.model import Model, attacking, gradient_of, logits_of
from finesight.errors import ConfigError

Loss = Literal["ce", "dlr"]

# A step is halved where the loss rose in no more than this share of the steps since the last check.
RISES = 0.75
MOMENTUM = 0.25

_Objective = Callable[[Tensor, Tensor], Tensor]


def apgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    eps: float,
    iters: int = 100,
    *,
    norm: Norm = "linf",
    loss: Loss = "ce",
    restarts: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Ascent on the cross-entropy, or on the difference of logits ratio, which no scale of the logits flattens.

    Arguments and errors as in `finesight.attacks.pgd`; the starts are random. Images that the model gets wrong
    already, and those that withstand, come back as they were; later restarts attack only what is left. "dlr"
    needs 3 classes. Agrees with the authors' code step by step.
    """
    if loss not in get_args(Loss):
        raise ConfigError(f"loss {loss!r} is unknown; choose ce or dlr.")

    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, reduction="none") if loss == "ce" else dlr(logits, labels)

    budget.check_call(images, labels, eps, norm, iters=iters, restarts=restarts)
    images = images.detach()
    with attacking(model, images.device):
        search = _Search(model, images.clone(), labels)
        search.need_classes(3 if loss == "dlr" else 2, loss)
        for _ in range(restarts):
            search.attack(lambda _: objective, eps, iters, norm, generator)
    return budget.check_result(search.result, images, eps, norm)


def apgd_targeted(
    model: Model,
    images: Tensor,
    labels: Tensor,
    eps: float,
    iters: int = 100,
    *,
    norm: Norm = "linf",
    targets: int = 9,
    restarts: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Ascent on the targeted difference of logits ratio, towards each of the `targets` likeliest wrong classes in turn.

    Arguments, result and errors as in `apgd`; needs 4 classes.
    """
    budget.check_call(images, labels, eps, norm, iters=iters, restarts=restarts, targets=targets)
    images = images.detach()
    with attacking(model, images.device):
        search = _Search(model, images.clone(), labels)
        search.need_classes(4, "targeted dlr")
        ranking = search.logits.sort(dim=1)[1]
        for rank in range(2, min(targets + 1, ranking.shape[1]) + 1):
            for _ in range(restarts):
                search.attack(functools.partial(_towards, ranking[:, -rank]), eps, iters, norm, generator)
    return budget.check_result(search.result, images, eps, norm)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, -(z_y - max z_other) / (z_1st - z_3rd): [B, classes], [B] -> [B] (eq. 6)."""
    ordered = logits.sort(dim=1)[0]
    own = logits.gather(1, labels[:, None]).squeeze(1)
    other = torch.where(logits.argmax(1) == labels, ordered[:, -2], ordered[:, -1])
    return (other - own) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2): [B, classes], [B], [B] -> [B] (eq. 7)."""
    ordered = logits.sort(dim=1)[0]
    own, wanted = (logits.gather(1, classes[:, None]).squeeze(1) for classes in (labels, targets))
    return (wanted - own) / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12)


def _towards(targets: Tensor, left: Tensor) -> _Objective:
    return lambda logits, labels: dlr_targeted(logits, labels, targets[left])


class _Search:
    """The images that withstand so far, and for the others the one that does not."""

    def __init__(self, model: Model, images: Tensor, labels: Tensor) -> None:
        self.model, self.images, self.labels = model, images, labels
        with torch.no_grad():
            self.logits = logits_of(model, images, labels)
        self.withstands = self.logits.argmax(1) == labels
        self.result = images.clone()

    def need_classes(self, count: int, loss: str) -> None:
        if self.logits.shape[1] < count:
            raise ConfigError(
                f"The {loss} loss compares {count} classes and the model has {self.logits.shape[1]}; use apgd with "
                "loss='ce'."
            )

    def attack(
        self,
        objective: Callable[[Tensor], _Objective],
        eps: float,
        iters: int,
        norm: Norm,
        generator: torch.Generator | None,
    ) -> None:
        """One ascent for each image that withstands; `objective` takes their indices."""
        left = self.withstands.nonzero().squeeze(1)
        if len(left):
            ascent = _Ascent(self.model, self.images[left], self.labels[left], objective(left), eps, norm)
            fooled, found = ascent.run(iters, generator)
            self.result[left[fooled]] = found[fooled]
            self.withstands[left[fooled]] = False


class _Ascent:
    def __init__(
        self, model: Model, images: Tensor, labels: Tensor, objective: _Objective, eps: float, norm: Norm
    ) -> None:
        self.model, self.images, self.labels, self.objective = model, images, labels, objective
        self.eps, self.norm = eps, norm

    def run(self, iters: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Whether each image was ever misclassified on the way, bool [B], and the last point where it was."""
        window, shortest, shrink = (max(int(share * iters), 1) for share in (0.22, 0.06, 0.03))
        points = self._start(generator)
        loss, gradient, fooled = self._look(points)
        found, previous = points.clone(), points
        best_points, best_loss, best_gradient = points.clone(), loss.clone(), gradient.clone()
        step = torch.full_like(loss, 2 * self.eps).view(-1, 1, 1, 1)
        # The authors' code compares the first step with a loss of 0, not with the start's.
        last_loss, rises, since = torch.zeros_like(loss), torch.zeros_like(loss), 0
        best_at_check, halved = loss.clone(), torch.ones_like(fooled)
        for number in range(iters):
            points, previous = self._move(points, previous, gradient, step, 1 - MOMENTUM if number else 1.0), points
            loss, gradient, wrong = self._look(points)
            fooled = fooled | wrong
            found[wrong] = points[wrong]
            better = loss > best_loss
            best_points[better], best_loss[better] = points[better], loss[better]
            best_gradient[better] = gradient[better]
            rises, last_loss, since = rises + (loss > last_loss), loss, since + 1
            if since == window:
                halved = (rises <= RISES * window) | (~halved & (best_at_check >= best_loss))
                best_at_check = best_loss.clone()
                step[halved] /= 2
                points, gradient = points.clone(), gradient.clone()
                points[halved], gradient[halved] = best_points[halved], best_gradient[halved]
                rises, since, window = torch.zeros_like(rises), 0, max(window - shrink, shortest)
        return fooled, found

    def _start(self, generator: torch.Generator | None) -> Tensor:
        """On the surface of the ball, clipped to [0, 1]."""
        device = generator.device if generator else "cpu"
        draw = torch.rand if self.norm == "linf" else torch.randn
        noise = draw(self.images.shape, generator=generator, dtype=self.images.dtype, device=device)
        if self.norm == "linf":
            noise = 2 * noise - 1
            noise = self.eps * noise / noise.abs().amax((1, 2, 3), keepdim=True)
        else:
            noise = self.eps * noise / (budget.lengths(noise) + 1e-12)
        return (self.images + noise.to(self.images.device)).clamp_(0, 1)

    def _move(self, points: Tensor, previous: Tensor, gradient: Tensor, step: Tensor, share: float) -> Tensor:
        uphill = points + step * budget.direction(gradient, self.norm)
        moved = budget.project(uphill, self.images, self.eps, self.norm)
        points = points + (moved - points) * share + (points - previous) * (1 - share)
        return budget.project(points, self.images, self.eps, self.norm)

    def _look(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss [B], its gradient [B, C, H, W], and whether the model is wrong, bool [B]."""
        points = points.clone().requires_grad_()
        logits = logits_of(self.model, points, self.labels)
        loss = self.objective(logits, self.labels)
        return loss.detach(), gradient_of(loss, points), logits.detach().argmax(1) != self.labels
