"""How much a repainted image keeps of its content."""

from torch import Tensor


def content_similarity(source: Tensor, fake: Tensor, content: Tensor) -> Tensor:
    """Masked pairwise mean squared error, a scalar; 0 where they differ by a constant.

    Bousmalis et al. 2017, eq. 5, with k the number of pixels that count, so that the mask does not scale it.
    source, fake: float32 [B, 3, S, S]; content: bool of the same shape, the pixels that count.
    """
    mask = content.float()
    count = mask.sum(dim=(1, 2, 3)).clamp(min=1)
    difference = (source - fake) * mask
    squares, total = difference.square().sum(dim=(1, 2, 3)), difference.sum(dim=(1, 2, 3))
    return (squares / count - (total / count).square()).mean()
