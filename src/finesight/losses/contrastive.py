"""Losses of pairs of images and texts (S4): each wants its own partner nearer than the others of the batch.

Features are unit vectors, [B, D], row i of the images paired with row i of the texts, so that a product is a
cosine; `scale` is 1 / temperature (e^t of the learned t, 100 at the end of CLIP's training). Computed in float32,
or float64 where the features are. Raises `ModelError` for features that do not pair.
"""

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from finesight.errors import ConfigError, ModelError


def clip_loss(image: Tensor, text: Tensor, scale: float | Tensor) -> Tensor:
    """Mean of the cross-entropies of image to text and of text to image, a scalar (Radford et al. 2021, figure 3)."""
    image, text = _pairs(image, text)
    logits = _cosines(image, text) * scale
    own = torch.arange(len(image), device=image.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def siglip_loss(
    image: Tensor, text: Tensor, scale: float | Tensor, bias: float | Tensor, block: int | None = None
) -> Tensor:
    """Each of the B^2 pairs is a yes or no question: a scalar, the sum over texts, the mean over images.

    -1/B sum_ij log sigmoid(z_ij (scale image_i . text_j + bias)), z_ij = 1 for i = j, else -1 (Zhai et al. 2023,
    arXiv:2303.15343, algorithm 1). The bias is added (the report prints it subtracted): it starts at -10, because
    nearly all pairs answer no. With `block`, logits are made block x block at a time, and again for the gradient,
    so that memory does not grow with B^2.
    """
    image, text = _pairs(image, text)
    if block is None or block >= len(image):
        return _siglip_tile(image, text, scale, bias, True) / len(image)
    if block < 1:
        raise ConfigError(f"block {block} holds no pair; give a number of rows from 1 on.")
    total = image.new_zeros(())
    for row, images in enumerate(image.split(block)):
        for column, texts in enumerate(text.split(block)):
            tile = (images, texts, scale, bias, row == column)
            total = total + checkpoint(_siglip_tile, *tile, use_reentrant=False, preserve_rng_state=False)
    return total / len(image)


def _siglip_tile(image: Tensor, text: Tensor, scale: float | Tensor, bias: float | Tensor, paired: bool) -> Tensor:
    """The sum of one tile, whose diagonal holds the pairs if it is `paired`. [I, D], [J, D] -> scalar"""
    logits = _cosines(image, text) * scale + bias
    total = functional.softplus(logits).sum()  # softplus(x) = -log sigmoid(-x) = x - log sigmoid(x)
    return total - logits.diagonal().sum() if paired else total


def debiased_contrastive_loss(image: Tensor, text: Tensor, scale: float | Tensor, tau_plus: float = 0.0) -> Tensor:
    """`clip_loss` without the share of the negatives that are positives in truth, a scalar.

    Of the N = B - 1 other partners a share tau_plus, the prior of the class, is of the same class. The sum of
    their exponentials is estimated as (sum_neg - tau_plus N pos) / (1 - tau_plus), and at least N e^(-scale), what N
    opposite vectors would give (Chuang et al. 2020, arXiv:2007.00224, eq. 7 and 8). tau_plus = 0 is `clip_loss`.
    """
    image, text = _pairs(image, text)
    if not 0 <= tau_plus < 1:
        raise ConfigError(f"tau_plus {tau_plus} is no prior probability of a class; give a number in [0, 1).")
    logits = _cosines(image, text) * scale
    return (_debiased(logits, scale, tau_plus) + _debiased(logits.T, scale, tau_plus)) / 2


def _debiased(logits: Tensor, scale: float | Tensor, tau_plus: float) -> Tensor:
    """-log(pos / (pos + negatives)), the mean over rows; exponentials relative to the row's largest. [B, B]"""
    count = len(logits) - 1
    largest = logits.detach().amax(1)
    exponentials = (logits - largest[:, None]).exp()
    positive = exponentials.diagonal()
    others = exponentials.masked_fill(torch.eye(len(logits), dtype=torch.bool, device=logits.device), 0).sum(1)
    negatives = (others - tau_plus * count * positive) / (1 - tau_plus)
    floor = count * (-scale - largest).exp()
    return ((positive + torch.maximum(negatives, floor)).log() + largest - logits.diagonal()).mean()


def tecoa_loss(image: Tensor, text: Tensor, labels: Tensor, scale: float | Tensor) -> Tensor:
    """Cross-entropy of (adversarial) images against the prompts of all classes, a scalar (Mao et al. 2023, TeCoA).

    image: unit vectors [B, D]; text: those of the prompts, [classes, D]; labels: int64 [B]. arXiv:2212.07016, eq. 3.
    """
    image, text = _wide(image), _wide(text)
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
        raise ModelError(
            f"Images {list(image.shape)} and prompts {list(text.shape)} are not [B, D] and [classes, D]; give the "
            "features of one model after its projections."
        )
    return functional.cross_entropy(_cosines(image, text) * scale, labels)


def _pairs(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    if image.ndim != 2 or image.shape != text.shape:
        raise ModelError(
            f"Images {list(image.shape)} and texts {list(text.shape)} do not pair; give [B, D] each, row i of one "
            "belonging to row i of the other."
        )
    return _wide(image), _wide(text)


def _cosines(image: Tensor, text: Tensor) -> Tensor:
    """[I, D], [J, D] -> [I, J], not in bf16 under autocast: a scale of 100 would show its rounding."""
    with torch.autocast(image.device.type, enabled=False):
        return image @ text.T


def _wide(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()
