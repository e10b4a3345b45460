"""Losses that no library has, as functions of tensors; torch is imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finesight.losses.contrastive import clip_loss, debiased_contrastive_loss, siglip_loss, tecoa_loss

__all__ = ["clip_loss", "debiased_contrastive_loss", "siglip_loss", "tecoa_loss"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.contrastive"), name)
