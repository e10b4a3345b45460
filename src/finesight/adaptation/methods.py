"""Choosing what is trained: everything, the head, adapters, or prompts; and cutting a state dict along that line."""

from typing import TYPE_CHECKING

from finesight.adaptation.auditing import Audit, audit
from finesight.adaptation.config import AdaptConfig
from finesight.errors import ModelError
from finesight.models.weights import listed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from finesight.models.classifier import Classifier


def apply(model: "Classifier", config: AdaptConfig) -> Audit:
    """Make exactly the parameters trainable that `config.method` names, in place; returns the audit.

    Raises `ModelError` for LoRA targets that match nothing, for prompts in a backbone that has no place for them, and
    for parameters that are neither pretrained nor trained unless `allow_random_frozen`.
    """
    if config.method == "lora":
        from finesight.adaptation.lora import inject

        inject(model.backbone, config)
    elif config.method == "prompts":
        from finesight.adaptation.prompts import insert

        insert(model.backbone, config.prompts)
    else:
        model.backbone.requires_grad_(config.method == "full")
    model.head.requires_grad_(True)
    found = audit(model)
    if found.frozen_random and not config.allow_random_frozen:
        raise ModelError(
            f"adapt.method {config.method}: {len(found.frozen_random)} randomly initialised parameters would "
            f"stay frozen: {listed(found.frozen_random, 4)}. Give pretrained weights (model.weights, or a "
            "pretrained model.name), train them with adapt.method full, or accept it with "
            "adapt.allow_random_frozen true."
        )
    model.train(model.training)
    return found


def trainable_parameters(model: "nn.Module") -> "list[nn.Parameter]":
    """The parameters an optimiser gets: those that require a gradient, each once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def trainable_state(model: "nn.Module") -> "dict[str, Tensor]":
    """The part of `state_dict()` that training can change: what a checkpoint must hold.

    Trained parameters, and every buffer except those of modules that `Classifier.train` keeps in evaluation
    mode (a frozen backbone, frozen batch norms), whose buffers nothing changes.
    """
    return _part(model, trained=True)


def frozen_state(model: "nn.Module") -> "dict[str, Tensor]":
    """The rest of `state_dict()`: stored once a run. Both parts together are exactly `state_dict()`."""
    return _part(model, trained=False)


def _part(model: "nn.Module", trained: bool) -> "dict[str, Tensor]":
    from finesight.models.classifier import frozen_modules

    changing = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    held = {id(buffer) for module in frozen_modules(model) for buffer in module.buffers()}
    changing |= {name for name, buffer in model.named_buffers(remove_duplicate=False) if id(buffer) not in held}
    return {name: tensor for name, tensor in model.state_dict().items() if (name in changing) == trained}
