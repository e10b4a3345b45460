"""What is found out of a captioner by trying it once: that an image has one row of states, and what is used."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from finesight.errors import ModelError
from finesight.models.weights import first_line

if TYPE_CHECKING:
    from finesight.models.captioner import Captioner

TRANSFORMERS = "Use a vision transformer, such as ViT, DeiT, BEiT, DINOv2, Swin, CLIP or SigLIP."
"""The way out for an encoder that does not fit."""


def probe(model: "Captioner") -> list[str]:
    """Names within `model.net` of the parameters that no word score depends on: no gradient would ever reach them.

    One image is encoded and two words are scored. Raises `ModelError` for an image encoder that gives no row of states
    [1, T, D], or other ones each time: what it says of an image could neither be kept nor repeated. A model without
    storage (on "meta") is judged by the names of its parameters.
    """
    like = next(model.parameters())
    if like.is_meta:
        return [name for name, _ in model.net.named_parameters() if any(word in name for word in model.parts.optional)]
    image = torch.linspace(-1, 1, 3 * model.image_size**2, device=like.device, dtype=like.dtype)
    image = image.view(1, 3, model.image_size, model.image_size)
    seen = _encoded(model, image)
    if seen.ndim != 3 or len(seen) != 1:
        raise ModelError(
            f"{model.spec.name}: its image encoder makes {list(seen.shape)} of one image, and not a row of states "
            f"[1, T, D] that words could look at. {TRANSFORMERS}"
        )
    if not torch.equal(seen, _encoded(model, image)):
        raise ModelError(
            f"{model.spec.name}: its image encoder gives other states each time it sees the same image, so no result "
            f"could be repeated. {TRANSFORMERS}"
        )
    trained = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(True)
    words = torch.zeros(1, 2, dtype=torch.long, device=like.device)
    with torch.enable_grad():
        scores = model.logits(model.hidden(model.encode(image), words))
    used = _leaves(scores)
    for parameter, before in zip(model.parameters(), trained, strict=True):
        parameter.requires_grad_(before)
    return [name for name, parameter in model.net.named_parameters() if id(parameter) not in used]


def _encoded(model: "Captioner", image: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            return model.image_states(image)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{model.spec.name}: its image encoder cannot encode an image of {model.image_size} pixels "
            f"({first_line(error)}). {TRANSFORMERS}"
        ) from None


def _leaves(result: Tensor) -> set[int]:
    """The `id` of every parameter that a result was computed from, by the graph that autograd made of it."""
    found, known, left = set(), set(), [result.grad_fn]
    while left:
        node: Any = left.pop()
        if node is None or node in known:
            continue
        known.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        left += [before for before, _ in node.next_functions]
    return found
