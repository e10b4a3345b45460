"""Attacks and corruptions of images in [0, 1]: the model holds its own resize and normalisation. Lazily imported.

In every function, `model` maps pixels, float32 [B, C, H, W] in [0, 1], to logits [B, classes]: `Normalized` makes
such a model of one that takes normalised images. `eps` is in the units of the pixels: 8/255, not 8.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finesight.attacks.auto import AutoAttack, auto_attack
    from finesight.attacks.auto_pgd import apgd, apgd_targeted
    from finesight.attacks.corruptions import CORRUPTIONS, corrupt
    from finesight.attacks.gradient import fgsm, pgd
    from finesight.attacks.model import Normalized, prepared
    from finesight.attacks.random_search import square
    from finesight.attacks.transfer import Transfer, predictions, transfer_attack

__all__ = [
    "CORRUPTIONS",
    "AutoAttack",
    "Normalized",
    "Transfer",
    "apgd",
    "apgd_targeted",
    "auto_attack",
    "corrupt",
    "fgsm",
    "pgd",
    "predictions",
    "prepared",
    "square",
    "transfer_attack",
]

_HOME = {
    "CORRUPTIONS": "corruptions",
    "AutoAttack": "auto",
    "Normalized": "model",
    "Transfer": "transfer",
    "apgd": "auto_pgd",
    "apgd_targeted": "auto_pgd",
    "auto_attack": "auto",
    "corrupt": "corruptions",
    "fgsm": "gradient",
    "pgd": "gradient",
    "predictions": "transfer",
    "prepared": "model",
    "square": "random_search",
    "transfer_attack": "transfer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
