"""Image classifiers of transformers: strict loading from a folder, head taken out, preprocessing read."""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finesight.errors import ModelError
from finesight.models.classifier import Fit
from finesight.models.config import ModelConfig
from finesight.models.weights import check_folder, first_line, listed

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
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


@dataclass(frozen=True)
class Preprocessing:
    """How the model wants its images; mean and std on the [0, 1] scale."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit


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
    from transformers import AutoConfig

    check_folder(folder, needs_weights=pretrained)
    notes: list[str] = []
    with _quiet(), _explained(folder):
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model, missing = _pretrained(folder, config, notes) if pretrained else (_random(settings, config), set())
    _drop_mask_tokens(model)
    name, head = _take_head(model, folder)
    _only_the_head(missing, name, folder)
    preprocessing = _preprocessing(folder, settings, notes)
    size = image_size or preprocessing.image_size
    backbone = HuggingFaceBackbone(model, _must_interpolate(model, settings, size))
    labels = [str(settings.id2label[index]) for index in range(settings.num_labels)]
    kept = head if pretrained and not missing else None
    preprocessing = Preprocessing(size, preprocessing.mean, preprocessing.std, preprocessing.fit)
    return Loaded(backbone.eval(), kept, labels, preprocessing, notes)


def _attention(config: ModelConfig) -> str | None:
    # Measured for ViT and BEiT base in bfloat16 on two CPU cores: eager is as fast or up to 7 % faster.
    # None lets transformers take sdpa where the model has it.
    if config.attention != "auto":
        return config.attention
    return None if torch.cuda.is_available() else "eager"


def _random(settings: Any, config: ModelConfig) -> nn.Module:
    from transformers import AutoModelForImageClassification

    return AutoModelForImageClassification.from_config(
        settings, attn_implementation=_attention(config), dtype=torch.float32, trust_remote_code=False
    )


def _pretrained(folder: Path, config: ModelConfig, notes: list[str]) -> tuple[nn.Module, set[str]]:
    """The model, and the names of its parameters that the weights do not have."""
    from transformers import AutoModelForImageClassification

    model, found = AutoModelForImageClassification.from_pretrained(
        folder,
        attn_implementation=_attention(config),
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        ignore_mismatched_sizes=True,  # so that they are reported here, by name
        output_loading_info=True,
    )
    unexpected = sorted(name for name in found["unexpected_keys"] if not name.startswith(_UNUSED))
    unused = sorted(set(found["unexpected_keys"]) - set(unexpected))
    wrong = [f"{name} (has {list(has)}, the model {list(wants)})" for name, has, wants in found["mismatched_keys"]]
    problems = [
        f"{folder}: {len(names)} weights {what}: {listed(names)}."
        for what, names in (("have no place in the model", unexpected), ("have another shape", sorted(wrong)))
        if names
    ]
    problems += [f"{folder}: {message}" for message in found["error_msgs"]]
    if problems:
        raise ModelError(
            *problems,
            f"{folder}: its weights and its config.json do not belong together; take both from one source.",
        )
    if unused:
        notes.append(f"Not used by a classifier and left out: {listed(unused)}.")
    return model, set(found["missing_keys"])


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
    native = _native_size(settings)
    accepts = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return accepts and native is not None and native != size


def _native_size(settings: Any) -> int | None:
    """The image size in a model's configuration (that of the vision tower, where there are two towers)."""
    size = getattr(settings, "image_size", None) or getattr(
        getattr(settings, "vision_config", None), "image_size", None
    )
    return size[0] if isinstance(size, (list, tuple)) else size


def _preprocessing(folder: Path, settings: Any, notes: list[str]) -> Preprocessing:
    from transformers import AutoImageProcessor

    if not (folder / "preprocessor_config.json").is_file():
        size = _native_size(settings) or 224
        notes.append(f"{folder.name} has no preprocessor_config.json: images of {size} pixels, ImageNet mean and std.")
        return Preprocessing(size, *IMAGENET, "squash")
    with _quiet(), _explained(folder):
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if getattr(processor, "do_flip_channel_order", False):
        raise ModelError(f"{folder}: the model wants blue-green-red images, which finesight does not make.")
    cropped = bool(getattr(processor, "do_center_crop", False)) and getattr(processor, "crop_size", None)
    size, square = _side(processor.crop_size if cropped else processor.size, folder)
    mean, std = _scale(processor)
    return Preprocessing(size, mean, std, "crop" if cropped or not square else "squash")


def _side(size: Any, folder: Path) -> tuple[int, bool]:
    """(side in pixels, whether both sides are given) of a processor's size."""
    entries = (
        dict(size)
        if isinstance(size, dict)
        else {k: getattr(size, k, None) for k in ("height", "width", "shortest_edge")}
    )
    height, width, shortest = (entries.get(name) for name in ("height", "width", "shortest_edge"))
    if height and height == width:
        return int(height), True
    if shortest and not height:
        return int(shortest), False
    raise ModelError(
        f"{folder}: preprocessor_config.json asks for images of {entries}; only square ones are supported."
    )


def _scale(processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """mean and std for pixels in [0, 1] that equal the processor's rescaling and normalisation."""
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    if math.isclose(factor, 1.0) and not offset:
        return tuple(mean), tuple(std)
    return tuple((value + offset) / factor for value in mean), tuple(value / factor for value in std)  # type: ignore[return-value]


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what transformers raises for an unusable folder into a `ModelError` of one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: cannot be loaded as an image classifier ({first_line(error)}); give a folder of one."
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and load reports of transformers: what matters of them is checked and raised here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
