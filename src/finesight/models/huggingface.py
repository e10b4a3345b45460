"""Image classifiers of transformers: strict loading from a folder, head taken out, preprocessing read."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finesight.errors import ModelError
from finesight.models import pretrained as folders
from finesight.models.config import ModelConfig
from finesight.models.pretrained import Preprocessing
from finesight.models.weights import check_folder, listed

_WHAT = "an image classifier"
# Weights that another task's model has and a classifier does not use; none of them can leave a gap here.
_UNUSED = ("pooler.dense.",)


class HuggingFaceBackbone(nn.Module):
    """A transformers image classifier whose last layer is the identity: [B, 3, S, S] -> [B, D]."""

    def __init__(self, model: nn.Module, interpolate: bool) -> None:
        super().__init__()
        self.model = model
        self._options = {"interpolate_pos_encoding": True} if interpolate else {}

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, D]."""
        return self.model(pixel_values=images, **self._options).logits.flatten(1)


@dataclass
class Loaded:
    """A model without its head, the head it came with (None: it had none), and that head's class names."""

    backbone: HuggingFaceBackbone
    head: nn.Linear | None
    labels: list[str]
    preprocessing: Preprocessing
    notes: list[str]


def load(folder: Path, config: ModelConfig, *, pretrained: bool, image_size: int | None) -> Loaded:
    """A classifier from a Hugging Face folder; no code of the folder is run, no network is used.

    Only the head may be missing from the weights. Raises `ModelError` for a folder that is unsafe,
    incomplete, of another kind of model, or whose weights leave anything else unset.
    """
    check_folder(folder, needs_weights=pretrained)
    notes: list[str] = []
    settings = folders.settings_of(folder, _WHAT)
    if pretrained:
        model, missing = _pretrained(folder, config, notes)
    else:
        model, missing = _random(settings, config, folder), set()
    _drop_mask_tokens(model)
    name, head = _take_head(model, folder)
    _only_the_head(missing, name, folder)
    preprocessing = folders.preprocessing(folder, settings, notes)
    size = image_size or preprocessing.image_size
    backbone = HuggingFaceBackbone(model, _must_interpolate(model, settings, size))
    labels = [str(settings.id2label[index]) for index in range(settings.num_labels)]
    kept = head if pretrained and not missing else None
    preprocessing = Preprocessing(size, preprocessing.mean, preprocessing.std, preprocessing.fit)
    return Loaded(backbone.eval(), kept, labels, preprocessing, notes)


def _random(settings: Any, config: ModelConfig, folder: Path) -> nn.Module:
    from transformers import AutoModelForImageClassification

    with folders.quiet(), folders.explained(folder, _WHAT):
        return AutoModelForImageClassification.from_config(
            settings,
            attn_implementation=folders.attention(config.attention),
            dtype=torch.float32,
            trust_remote_code=False,
        )


def _pretrained(folder: Path, config: ModelConfig, notes: list[str]) -> tuple[nn.Module, set[str]]:
    """The model, and the names of its parameters that the weights do not have."""
    from transformers import AutoModelForImageClassification

    model, missing, unused = folders.from_weights(AutoModelForImageClassification, folder, config.attention, _WHAT)
    unexpected = [name for name in unused if not name.startswith(_UNUSED)]
    if unexpected:
        folders.refuse_weights(
            folder, [f"{folder}: {len(unexpected)} weights have no place in the model: {listed(unexpected)}."]
        )
    if unused:
        notes.append(f"Not used by a classifier and left out: {listed(unused)}.")
    return model, missing


def _only_the_head(missing: set[str], head: str, folder: Path) -> None:
    others = sorted(name for name in missing if not (head and name.startswith(f"{head}.")))
    if others:
        raise ModelError(
            f"{folder}: {len(others)} weights besides the head are missing and would stay random: "
            f"{listed(others)}. Use the complete folder of an image classifier or encoder, or "
            "model.pretrained false to train from scratch."
        )


def _take_head(model: Any, folder: Path) -> tuple[str, nn.Linear | None]:
    """Replace the last linear layer by the identity; returns its name and it ("" and None: had none)."""
    body = getattr(model, model.base_model_prefix, None)
    inside = {id(module) for module in body.modules()} if isinstance(body, nn.Module) and body is not model else set()
    heads = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in inside and module.out_features == model.config.num_labels
    ]
    if len(heads) > 1:
        names = listed(name for name, _ in heads)
        raise ModelError(f"{folder}: {type(model).__name__} has several heads ({names}); use a model with one.")
    if not heads:
        if model.config.num_labels == 0:
            return "", None
        raise ModelError(f"{folder}: no linear head was found in {type(model).__name__}; use another architecture.")
    name, head = heads[0]
    model.set_submodule(name, nn.Identity())
    return name, head


def _drop_mask_tokens(model: nn.Module) -> None:
    # Used in masked pretraining only: no gradient would ever reach them.
    for module in model.modules():
        if isinstance(getattr(module, "mask_token", None), nn.Parameter):
            module.register_parameter("mask_token", None)


def _must_interpolate(model: nn.Module, settings: Any, size: int) -> bool:
    native = folders.native_size(settings)
    accepts = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return accepts and native is not None and native != size
