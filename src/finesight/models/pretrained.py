"""Strict and safe loading from Hugging Face folders, whatever the architecture; no code of a folder is run."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from finesight.errors import ModelError
from finesight.models.classifier import Fit
from finesight.models.weights import first_line, listed

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How the model wants its images; mean and std on the [0, 1] scale."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit


def attention(choice: Literal["auto", "eager", "sdpa"]) -> str | None:
    """The implementation to ask transformers for; None lets it take sdpa where the model has it."""
    # Measured for ViT and BEiT base in bfloat16 on two CPU cores: eager is as fast or up to 7 % faster.
    if choice != "auto":
        return choice
    return None if torch.cuda.is_available() else "eager"


def settings_of(folder: Path, what: str) -> Any:
    """The configuration object of a folder that `weights.check_folder` found safe."""
    from transformers import AutoConfig

    with quiet(), explained(folder, what):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def from_weights(
    kind: Any, folder: Path, choice: Literal["auto", "eager", "sdpa"], what: str
) -> tuple[nn.Module, set[str], list[str]]:
    """The float32 model of transformers class `kind`: (model, parameters without weights, weights without use).

    `what` names the kind of model in messages. Raises `ModelError` for weights of another shape.
    """
    with quiet(), explained(folder, what):
        model, found = kind.from_pretrained(
            folder,
            attn_implementation=attention(choice),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # so that they are reported here, by name
            output_loading_info=True,
        )
    wrong = [f"{name} (has {list(has)}, the model {list(wants)})" for name, has, wants in found["mismatched_keys"]]
    problems = [f"{folder}: {len(wrong)} weights have another shape: {listed(sorted(wrong))}."] if wrong else []
    problems += [f"{folder}: {message}" for message in found["error_msgs"]]
    if problems:
        refuse_weights(folder, problems)
    return model, set(found["missing_keys"]), sorted(found["unexpected_keys"])


def refuse_weights(folder: Path, problems: list[str]) -> None:
    """Raise `ModelError` for weights that do not fit the folder's configuration."""
    raise ModelError(
        *problems, f"{folder}: its weights and its config.json do not belong together; take both from one source."
    )


def native_size(settings: Any) -> int | None:
    """The image size in a model's configuration (that of the vision tower, where there are two towers)."""
    size = getattr(settings, "image_size", None) or getattr(
        getattr(settings, "vision_config", None), "image_size", None
    )
    return size[0] if isinstance(size, (list, tuple)) else size


def preprocessing(folder: Path, settings: Any, notes: list[str]) -> Preprocessing:
    from transformers import AutoImageProcessor

    if not (folder / "preprocessor_config.json").is_file():
        size = native_size(settings) or 224
        notes.append(f"{folder.name} has no preprocessor_config.json: images of {size} pixels, ImageNet mean and std.")
        return Preprocessing(size, *IMAGENET, "squash")
    with quiet(), explained(folder, "an image model"):
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
def explained(folder: Path, what: str) -> Iterator[None]:
    """Turn what transformers raises for an unusable folder into a `ModelError` of one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded as {what} ({first_line(error)}); give a folder of one.") from None


@contextmanager
def quiet() -> Iterator[None]:
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
