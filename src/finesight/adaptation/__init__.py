"""Which parameters of a model are trained, and an audit of it; torch and peft are imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from finesight.adaptation.config import AdaptConfig

if TYPE_CHECKING:
    from finesight.adaptation.auditing import Audit, audit
    from finesight.adaptation.lora import merge
    from finesight.adaptation.methods import apply, frozen_state, trainable_parameters, trainable_state
    from finesight.adaptation.prompts import VisualPrompts

__all__ = [
    "AdaptConfig",
    "Audit",
    "VisualPrompts",
    "apply",
    "audit",
    "frozen_state",
    "merge",
    "trainable_parameters",
    "trainable_state",
]

_METHODS = ("apply", "frozen_state", "trainable_parameters", "trainable_state")
_HOME = {"Audit": "auditing", "audit": "auditing", "merge": "lora", "VisualPrompts": "prompts"}
_HOME |= dict.fromkeys(_METHODS, "methods")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
