"""Square attack: random search with squares, no gradient (Andriushchenko et al. 2020, arXiv:1912.00049)."""

import math

import torch
from torch import Tensor

from finesight.attacks import budget
from finesight.attacks.budget import Norm
from finesight.attacks.model import Model, attacking, logits_of
from finesight.errors import ConfigError

# Of 10,000 queries, those after which the share of the pixels in a square is halved again (section 3.2).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(
    model: Model,
    images: Tensor,
    labels: Tensor,
    eps: float,
    queries: int = 5000,
    *,
    norm: Norm = "linf",
    share: float = 0.8,
    restarts: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Change one square at a time, keep what shrinks the margin of the true class; uses the logits only.

    Arguments and errors as in `finesight.attacks.pgd`; `share` of the pixels are in the first squares. Images
    that the model gets wrong already, and those that withstand, come back as they were. With l2 they must be at
    least 5 pixels high and wide. A square lies in the same place in all images of a batch, as in the authors'
    code, with which this agrees query by query.
    """
    budget.check_call(images, labels, eps, norm, queries=queries, restarts=restarts)
    if norm == "l2" and min(images.shape[-2:]) < 5:
        raise ConfigError(f"Images of {list(images.shape[-2:])} pixels: the l2 search needs 5 x 5; use linf.")
    images = images.detach()
    with attacking(model, images.device), torch.no_grad():
        result = images.clone()
        withstands = logits_of(model, result, labels).argmax(1) == labels
        for _ in range(restarts):
            left = withstands.nonzero().squeeze(1)
            if not len(left):
                break
            search = _Search(model, images[left], labels[left], eps, norm, generator)
            margins, found = search.run(queries, share)
            fooled = margins <= 0
            # At a margin of exactly 0 two classes tie, and argmax may still name the right one.
            fooled &= logits_of(model, found, labels[left]).argmax(1) != labels[left]
            result[left[fooled]] = found[fooled]
            withstands[left[fooled]] = False
    return budget.check_result(result, images, eps, norm)


class _Search:
    def __init__(
        self, model: Model, images: Tensor, labels: Tensor, eps: float, norm: Norm, generator: torch.Generator | None
    ) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.eps, self.norm, self.generator = eps, norm, generator

    def run(self, queries: int, share: float) -> tuple[Tensor, Tensor]:
        """The smallest margin of each image, [B], and the image that has it."""
        found = self._stripes() if self.norm == "linf" else self._tiles()
        margins = self._margins(found, self.labels)
        area = self.images.shape[-2] * self.images.shape[-1]
        for query in range(queries):
            left = (margins > 0).nonzero().squeeze(1)
            if not len(left):
                break
            side = math.sqrt(share / 2 ** sum(int(query / queries * 10_000) > after for after in HALVINGS) * area)
            propose = self._square if self.norm == "linf" else self._windows
            tried = propose(self.images[left], found[left], round(side))
            now = self._margins(tried, self.labels[left])
            better = now < margins[left]
            found[left[better]], margins[left[better]] = tried[better], now[better]
        return margins, found

    def _margins(self, points: Tensor, labels: Tensor) -> Tensor:
        """Logit of the true class less the largest other, [B]; 0 or less is misclassified."""
        logits = logits_of(self.model, points, labels)
        others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
        return logits.gather(1, labels[:, None]).squeeze(1) - others

    def _stripes(self) -> Tensor:
        """Vertical stripes of +-eps, one pixel wide."""
        count, channels, _, width = self.images.shape
        return (self.images + self.eps * self._signs(count, channels, 1, width)).clamp_(0, 1)

    def _square(self, images: Tensor, found: Tensor, side: int) -> Tensor:
        channels, height, width = images.shape[1:]
        side = min(max(side, 1), height, width)
        top, left = self._place(height - side), self._place(width - side)
        change = torch.zeros(channels, height, width, dtype=images.dtype, device=images.device)
        change[:, top : top + side, left : left + side] = 2 * self.eps * self._signs(channels, 1, 1)
        return budget.project(found + change, images, self.eps, "linf")

    def _tiles(self) -> Tensor:
        """5 x 5 tiles, each of two opposite hills, scaled to the budget."""
        count, channels, height, width = self.images.shape
        change, side = torch.zeros_like(self.images), height // 5
        corner = (height - side * 5) // 2
        for top in range(corner, corner + height // side * side, side):
            for left in range(corner, corner + width // side * side, side):
                tile = change[:, :, top : top + side, left : left + side]
                hills = self._hills(side) * self._signs(count, channels, 1, 1)
                tile += hills[:, :, : tile.shape[2], : tile.shape[3]]
        return self._onto_ball(self.images, change)

    def _windows(self, images: Tensor, found: Tensor, side: int) -> Tensor:
        """Move the length of one window into another, whose new shape is hills plus what it held."""
        count, channels, height, width = images.shape
        side = min(max(side, 3) | 1, height, width)
        change = found - images
        top, left = self._place(height - side), self._place(width - side)
        window = (..., slice(top, top + side), slice(left, left + side))
        top, left = self._place(height - side), self._place(width - side)
        emptied = (..., slice(top, top + side), slice(left, left + side))
        mask = torch.zeros_like(change)
        mask[window], mask[emptied] = 1, 1
        unused = (self.eps**2 - budget.lengths(change) ** 2).clamp(min=0) / channels
        length = (unused + budget.lengths(change * mask) ** 2).sqrt()
        shape = self._hills(side) * self._signs(count, channels, 1, 1) + _unit(change[window])
        change[emptied] = 0
        change[window] = _unit(shape) * length
        return self._onto_ball(images, change)

    def _onto_ball(self, images: Tensor, change: Tensor) -> Tensor:
        return (images + change / (budget.lengths(change) + 1e-12) * self.eps).clamp_(0, 1)

    def _hills(self, side: int) -> Tensor:
        """Two hills of opposite sign, length 1, side by side or one above the other, [side, side]."""
        hills = torch.cat([_hill(side // 2, side), -_hill(side - side // 2, side)])
        hills = (hills / hills.norm()).to(self.images)
        return hills.T if self._uniform(1).item() > 0.5 else hills

    def _place(self, room: int) -> int:
        return int(room * self._uniform(1).item())

    def _signs(self, *shape: int) -> Tensor:
        return (2 * self._uniform(*shape) - 1).sign().to(self.images)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.generator.device if self.generator else "cpu")


def _unit(windows: Tensor) -> Tensor:
    """Each channel of each sample over its length."""
    return windows / (torch.linalg.vector_norm(windows, dim=(-2, -1), keepdim=True) + 1e-12)


def _hill(height: int, width: int) -> Tensor:
    """Nested rectangles that grow around the centre by 1, 1/4, 1/9, ..., length 1, [height, width]."""
    hill = torch.zeros(height, width)
    for ring in range(max(height, width) // 2 + 1):
        top, left = height // 2 - ring, width // 2 - ring
        hill[max(top, 0) : top + 2 * ring + 1, max(left, 0) : left + 2 * ring + 1] += 1 / (ring + 1) ** 2
    return hill / hill.norm() if height else hill
