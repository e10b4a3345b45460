"""From a configured name to the network of a captioner: named architectures, pairs, existing captioners."""

import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from finesight.errors import ModelError
from finesight.models import pretrained as folders
from finesight.models import tokenizers
from finesight.models.backbones import local_or_fetched
from finesight.models.caption_config import NAMED, CaptionerConfig, names, revisions
from finesight.models.caption_parts import KINDS
from finesight.models.caption_probe import TRANSFORMERS
from finesight.models.pretrained import IMAGENET, Preprocessing
from finesight.models.weights import check_folder, listed

WHAT = "a captioner"


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
    first, second = zip(names(config), revisions(config), strict=True)
    image, text = _folder(*first, config, text=False), _folder(*second, config, text=True)
    tokenizer = None if config.tokenizer is not None else tokenizers.load(text)
    shown = folders.settings_of(image, "an image encoder")
    preprocessing = folders.preprocessing(image, shown, notes)
    spoken = folders.settings_of(text, "a language model")
    spoken.is_decoder = spoken.add_cross_attention = True
    _refuse_maps(image, getattr(shown, "vision_config", shown))
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


def _refuse_maps(folder: Path, settings: Any) -> None:
    """Raise `ModelError` for an encoder whose outputs have no one width, as those of convolutional networks."""
    if not isinstance(getattr(settings, "hidden_size", None), int):
        raise ModelError(
            f"{folder}: a {settings.model_type} model has no hidden_size: it makes maps of features, and not a row of "
            f"states that words could look at. {TRANSFORMERS}"
        )


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

    folder = _folder(config.name, config.revision, config, text=True)
    settings = folders.settings_of(folder, WHAT)
    if settings.model_type not in KINDS:
        raise ModelError(
            f"{folder}: a {settings.model_type} model, not one of {', '.join(KINDS)}. Give a captioner, or a pair: "
            "--model.name ENCODER+LANGUAGE_MODEL."
        )
    tokenizer = None if config.tokenizer is not None else tokenizers.load(folder)
    _note_habits(folder, notes)
    start = _start(folder, settings)
    arguments = {"kind": settings.model_type} | ({} if start is None else {"start": start})
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
    lost = sorted(name for name in missing if not any(word in name for word in KINDS[settings.model_type].optional))
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


def _writing(folder: Path) -> dict[str, Any]:
    """What generation_config.json says beside the defaults."""
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").is_file():
        return {}
    with folders.quiet(), folders.explained(folder, WHAT):
        return GenerationConfig.from_pretrained(folder, local_files_only=True).to_diff_dict()


def _note_habits(folder: Path, notes: list[str]) -> None:
    """Say how the model was used to write, such as 'num_beams 4', which is not taken over."""
    plain = ("transformers_version", "use_cache")
    said = {name: value for name, value in _writing(folder).items() if value is not None and name not in plain}
    habits = [f"{name} {v}" for name, v in said.items() if not name.endswith("_id") and not name.startswith("_")]
    if habits:
        notes.append(
            f"How {folder.name} was used to write is not taken over ({listed(habits, 6)}): --generation.method and "
            "the options beside it decide."
        )


def _start(folder: Path, settings: Any) -> int | None:
    """The token that begins a caption, where the model says so: newer folders do it beside the configuration."""
    if settings.model_type == "blip":
        return settings.text_config.bos_token_id
    found = _writing(folder).get("decoder_start_token_id")
    return getattr(settings, "decoder_start_token_id", None) if found is None else found


def _folder(name: str, revision: str | None, config: CaptionerConfig, *, text: bool) -> Path:
    """The folder of a local or Hub model, checked to be safe; with its tokenizer where it writes `text`."""
    wanted = SimpleNamespace(name=name, revision=revision, pretrained=config.pretrained)
    path = local_or_fetched(wanted, list(NAMED), ", two of them as ENCODER+LANGUAGE_MODEL")
    if text and not Path(name).expanduser().is_dir():
        tokenizers.fetch(name.removeprefix("hf:"), revision)
    check_folder(path, needs_weights=config.pretrained)
    return path
