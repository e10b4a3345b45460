"""From a configured name to the network of a captioner: named architectures, pairs, existing captioners."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from finesight.config import Section, nearest
from finesight.errors import ModelError
from finesight.models import hub, tokenizers
from finesight.models import pretrained as folders
from finesight.models.caption_parts import KINDS
from finesight.models.pretrained import IMAGENET, Preprocessing
from finesight.models.weights import check_folder, listed

WHAT = "a captioner"
NAMED: Mapping[str, tuple[dict[str, int], dict[str, int]]] = {
    "small-captioner": (
        {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512,
         "image_size": 96, "patch_size": 12},
        {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 256, "vocab_size": 2048},
    ),
    "vit-base+distilgpt2": ({}, {"n_layer": 6}),
}  # fmt: skip
"""What differs from ViT base and from GPT-2; both halves begin with random weights."""


class CaptionerConfig(Section):
    """Which captioner, and from where its weights come."""

    name: str = Field(
        "small-captioner",
        min_length=1,
        description=f"{', '.join(NAMED)} (random weights); ENCODER+LANGUAGE_MODEL, each a local folder or a Hub id; or "
        "one existing captioner (a pair saved as one model, BLIP, GIT)",
    )
    tokenizer: str | None = Field(
        None,
        description="Folder of a tokenizer (or of GPT-2's vocabulary files); that of the language model if none, and "
        "one learnt from the training captions for random weights",
    )
    revision: str | None = Field(None, description="Commit, tag or branch of an existing captioner on the Hub")
    pretrained: bool = Field(True, description="false takes only the architecture of folders and Hub models")
    image_size: int | None = Field(
        None, ge=8, description="Side of the square input in pixels, where weights are random; the model's own if none"
    )
    longest: int = Field(128, ge=4, description="Tokens of a training caption; what is behind them is cut off")
    attention: Literal["auto", "eager", "sdpa"] = Field("auto", description="auto is eager on a CPU, sdpa on a GPU")

    @field_validator("name", "tokenizer")
    @classmethod
    def _whole_paths(cls, value: str | None) -> str | None:
        """Folders made absolute, both of a pair, so that the run can be continued from anywhere."""
        if value is None or value in NAMED or Path(value).expanduser().is_dir():
            return value if value is None or value in NAMED else str(Path(value).expanduser().absolute())
        parts = [Path(part.strip()).expanduser() for part in value.split("+")]
        names = [
            str(path.absolute()) if path.is_dir() else part.strip()
            for path, part in zip(parts, value.split("+"), strict=True)
        ]
        return "+".join(names)


def named(config: CaptionerConfig) -> tuple[nn.Module, Preprocessing]:
    """A named architecture with random weights."""
    from transformers import GPT2Config, ViTConfig

    image, text = (dict(options) for options in NAMED[config.name])
    settings = ViTConfig(**image)  # type: ignore[arg-type]
    settings.image_size = _size(config, settings)
    none = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # the tokenizer says which they are
    words = GPT2Config(**text, **none, is_decoder=True, add_cross_attention=True)  # type: ignore[arg-type,call-arg]
    return with_random_weights(_joined(settings, words), config), Preprocessing(
        settings.image_size, *IMAGENET, "squash"
    )


def _size(config: CaptionerConfig, settings: Any) -> int:
    size, patch = config.image_size or settings.image_size, getattr(settings, "patch_size", 1)
    if size % patch:
        raise ModelError(
            f"model.image_size {size}: is no multiple of the patch size {patch}; give a multiple, or leave it unset."
        )
    return size


def _joined(image: Any, text: Any) -> Any:
    from transformers import VisionEncoderDecoderConfig

    return VisionEncoderDecoderConfig.from_encoder_decoder_configs(image, text)


def with_random_weights(settings: Any, config: CaptionerConfig) -> nn.Module:
    """The architecture with random weights."""
    from transformers import AutoModelForImageTextToText

    with folders.quiet():
        return AutoModelForImageTextToText.from_config(
            settings,
            attn_implementation=folders.attention(config.attention),
            dtype=torch.float32,
            trust_remote_code=False,
        )


def pair(config: CaptionerConfig, notes: list[str]) -> tuple[nn.Module, Preprocessing, Any, tuple[str, ...]]:
    """Image encoder and language model in one: the model, its preprocessing and tokenizer, and what of it is random."""
    from transformers import VisionEncoderDecoderModel

    if config.name.count("+") != 1:
        raise ModelError(f"model.name {config.name!r}: a pair is ENCODER+LANGUAGE_MODEL, with one plus sign.")
    image, text = (_folder(part, config, text=bool(place)) for place, part in enumerate(config.name.split("+")))
    tokenizer = None if config.tokenizer is not None else tokenizers.load(text)
    shown = folders.settings_of(image, "an image encoder")
    preprocessing = folders.preprocessing(image, shown, notes)
    spoken = folders.settings_of(text, "a language model")
    spoken.is_decoder = spoken.add_cross_attention = True
    if not config.pretrained:
        shown = getattr(shown, "vision_config", shown)
        shown.image_size = _size(config, shown)
        net = with_random_weights(_joined(shown, spoken), config)
        return net, replace(preprocessing, image_size=shown.image_size), tokenizer, ("net",)
    _own_size(config, preprocessing)
    encoder = _encoder(image, shown, config, notes)
    decoder, random = _decoder(text, spoken, config, notes)
    with folders.quiet():
        net = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    fresh = [f"net.decoder.{name}" for name in random]
    fresh += ["net.enc_to_dec_proj"] if hasattr(net, "enc_to_dec_proj") else []
    return net, preprocessing, tokenizer, tuple(fresh)


def _encoder(folder: Path, settings: Any, config: CaptionerConfig, notes: list[str]) -> Any:
    """The image encoder; only an unused pooler may be without weights."""
    from transformers import AutoModel

    settings = getattr(settings, "vision_config", settings)  # the image half of CLIP and its like
    kind = SimpleNamespace(from_pretrained=partial(AutoModel.from_pretrained, config=settings))
    model, missing, unused = folders.from_weights(kind, folder, config.attention, "an image encoder")
    lost = sorted(name for name in missing if not name.startswith("pooler."))
    if lost:
        folders.refuse_weights(
            folder, [f"{folder}: {len(lost)} weights are missing and would stay random: {listed(lost)}."]
        )
    if unused:
        notes.append(f"Not used of {folder.name}: {listed(unused, 4)}.")
    if "pixel_values" not in inspect.signature(model.forward).parameters:
        raise ModelError(
            f"{folder}: {type(model).__name__} takes no images; give an image encoder, then the language model."
        )
    return model


def _decoder(folder: Path, settings: Any, config: CaptionerConfig, notes: list[str]) -> tuple[Any, list[str]]:
    """The language model with cross-attention, and the names of the parameters for which there are no weights."""
    from transformers import AutoModelForCausalLM

    kind = SimpleNamespace(from_pretrained=partial(AutoModelForCausalLM.from_pretrained, config=settings))
    model, missing, unused = folders.from_weights(kind, folder, config.attention, "a language model")
    if "encoder_hidden_states" not in inspect.signature(model.forward).parameters:
        raise ModelError(
            f"{folder}: {type(model).__name__} has no cross-attention, so it would never see the image. Use one that "
            "has, such as GPT-2, BERT or RoBERTa."
        )
    lost = sorted(name for name in missing if "cross" not in name and "encoder_attn" not in name)
    if lost:
        folders.refuse_weights(
            folder, [f"{folder}: {len(lost)} weights are missing and would stay random: {listed(lost)}."]
        )
    if unused:
        notes.append(f"Not used of {folder.name}: {listed(unused, 4)}.")
    return model, sorted(missing)


def existing(config: CaptionerConfig, notes: list[str]) -> tuple[nn.Module, Preprocessing, Any, dict[str, Any]]:
    """A captioner that is one model already."""
    from transformers import AutoModelForImageTextToText

    folder = _folder(config.name, config, text=True)
    settings = folders.settings_of(folder, WHAT)
    if settings.model_type not in KINDS:
        raise ModelError(
            f"{folder}: a {settings.model_type} model, not one of {', '.join(KINDS)}. Give a captioner, or a pair: "
            "--model.name ENCODER+LANGUAGE_MODEL."
        )
    tokenizer = None if config.tokenizer is not None else tokenizers.load(folder)
    arguments: dict[str, Any] = {"kind": settings.model_type}
    start = settings.text_config.bos_token_id if settings.model_type == "blip" else None
    start = getattr(settings, "decoder_start_token_id", None) if start is None else start
    arguments |= {} if start is None else {"start": start}
    vision = getattr(settings, "encoder", None) or settings.vision_config
    preprocessing = folders.preprocessing(folder, vision, notes)
    if not config.pretrained:
        vision.image_size = _size(config, vision)
        return (
            with_random_weights(settings, config),
            replace(preprocessing, image_size=vision.image_size),
            tokenizer,
            arguments,
        )
    _own_size(config, preprocessing)
    net, missing, unused = folders.from_weights(AutoModelForImageTextToText, folder, config.attention, WHAT)
    lost = sorted(name for name in missing if not any(word in name for word in KINDS[settings.model_type].unused))
    problems = [
        f"{folder}: {len(names)} weights {what}: {listed(names)}."
        for what, names in (("are missing and would stay random", lost), ("have no place in the model", unused))
        if names
    ]  # fmt: skip
    if problems:
        folders.refuse_weights(folder, problems)
    return net, preprocessing, tokenizer, arguments


def _own_size(config: CaptionerConfig, preprocessing: Preprocessing) -> None:
    if config.image_size not in (None, preprocessing.image_size):
        raise ModelError(
            f"model.image_size {config.image_size}: the weights of {config.name} are for {preprocessing.image_size} "
            "pixels; leave it unset, or train from scratch with model.pretrained false."
        )


def _folder(name: str, config: CaptionerConfig, *, text: bool) -> Path:
    """The folder of a local or Hub model, checked to be safe; with its tokenizer where it writes `text`."""
    from finesight.models.backbones import _REPOSITORY

    path = Path(name).expanduser()
    if not path.is_dir():
        if not _REPOSITORY.fullmatch(name):
            raise ModelError(
                f"model.name {name!r}: no such folder, and no captioner{nearest(name, list(NAMED))}. Give one of "
                f"{', '.join(NAMED)}, ENCODER+LANGUAGE_MODEL (folders or Hub ids), or one captioner."
            )
        revision = config.revision if config.name == name else None
        path = hub.fetch(name, revision, needs_weights=config.pretrained)
        if text and config.tokenizer is None:
            tokenizers.fetch(name, revision)
    check_folder(path, needs_weights=config.pretrained)
    return path
