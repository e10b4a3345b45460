"""CLIP as a zero-shot classifier: the vision tower, and a head of class vectors that its text tower made.

Radford et al. 2021, Learning transferable visual models from natural language supervision (arXiv 2103.00020).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from finesight.errors import ModelError
from finesight.files import read_json
from finesight.models import backbones, prompts, tokenizers
from finesight.models import pretrained as folders
from finesight.models.classifier import Classifier, Spec
from finesight.models.clip_config import NAMED, ClipConfig
from finesight.models.pretrained import Preprocessing
from finesight.models.prompts import TextTower
from finesight.models.weights import first_line, listed

__all__ = ["ClipConfig", "VisionTower", "ZeroShotHead", "build", "text_tower"]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the published models, on the [0, 1] scale."""
_BYTES = 257
"""Tokens of a tokenizer that knows single bytes and the end."""
_SIZES: Mapping[str, Mapping[str, Any]] = {
    "small-clip": {
        "vision_config": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
                          "num_attention_heads": 4, "image_size": 64, "patch_size": 8},
        "text_config": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
                        "num_attention_heads": 4, "max_position_embeddings": 160, "vocab_size": _BYTES},
        "projection_dim": 128,
    },
    "clip-vit-base-patch32": {"vision_config": {}, "text_config": {"vocab_size": 49_408}},
}  # fmt: skip
"""What differs from ViT-B/32, whose sizes are the defaults of transformers."""


class VisionTower(nn.Module):
    """CLIPVisionModel up to its pooled output: [B, 3, S, S] -> [B, width], before the projection."""

    def __init__(self, model: nn.Module, interpolate: bool = False) -> None:
        super().__init__()
        self.model = model
        self.interpolate = interpolate

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, width]."""
        return self.model(pixel_values=images, interpolate_pos_encoding=self.interpolate).pooler_output


class ZeroShotHead(nn.Module):
    """Cosines of image and class vectors, times a temperature: features [B, width] -> logits [B, C].

    `projection` is the model's Linear width -> D without bias; `vectors` [T, C, D] are the unit vectors of T templates,
    kept as `template_vectors`; `class_vectors` [C, D] is their ensemble. `log_scale` is the logarithm of 1 /
    temperature. Nothing of it is trained. It computes in float32 also under autocast: with a scale of 100, bfloat16's
    steps of 0.002 in a cosine would be steps of 0.2 in a logit.
    """

    template_vectors: Tensor
    class_vectors: Tensor

    def __init__(self, projection: nn.Linear, vectors: Tensor, log_scale: float) -> None:
        super().__init__()
        self.projection = projection
        self.log_scale = nn.Parameter(torch.tensor(float(log_scale)))
        self.register_buffer("template_vectors", vectors)
        self.register_buffer("class_vectors", prompts.ensemble(vectors))
        self.requires_grad_(False)

    def project(self, features: Tensor) -> Tensor:
        """[B, width] -> [B, D]: CLIP's image features as they are, not made unit; at least float32."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            return functional.linear(features, self.projection.weight.to(features.dtype))

    def embed(self, features: Tensor) -> Tensor:
        """[B, width] -> unit vectors [B, D], at least float32."""
        return functional.normalize(self.project(features), dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """[B, width] -> logits [B, C], at least float32."""
        return self.logits(self.embed(features))

    def logits(self, vectors: Tensor) -> Tensor:
        """Unit image vectors [B, D] -> [B, C]."""
        with torch.autocast(vectors.device.type, enabled=False):
            return vectors @ self.class_vectors.to(vectors.dtype).T * self.log_scale.to(vectors.dtype).exp()


def build(
    config: ClipConfig,
    classes: list[str],
    saved: Path | None = None,
    cache_dir: str | None = None,
    say: Callable[[str], None] = prompts.quiet,
) -> Classifier:
    """The zero-shot classifier of `classes` (names in label order), in evaluation mode; its head is a `ZeroShotHead`.

    The text tower makes the class vectors (or the cache has them) and is dropped. With `saved`, a directory written
    by `Classifier.save_spec`, the architecture is rebuilt from it without network, original folder or text tower; its
    weights are then random and its class vectors zero, to be loaded strictly by the caller.
    Raises `ModelError` for what is no CLIP, unsafe or unfitting weights, a tokenizer that does not belong to them,
    and a Hub that cannot be reached.
    """
    if len(set(classes)) != len(classes) or not classes:
        raise ModelError(
            f"{len(classes)} class names, {len(set(classes))} of them distinct; every class needs its own."
        )
    if saved is not None:
        return _rebuild(config, classes, saved)
    loaded = _load(config)
    net, shape = loaded.net, loaded.preprocessing
    vectors = prompts.text_vectors(loaded.text, classes, config.templates, cache_dir, say)
    head = ZeroShotHead(net.visual_projection, vectors, net.logit_scale.item())
    spec = Spec(
        "clip", loaded.name, tuple(classes), shape.image_size, shape.mean, shape.std, shape.fit,
        () if config.pretrained and config.name not in NAMED else ("backbone", "head"),
        {"dimensions": vectors.shape[-1], "templates": list(config.templates)},
    )  # fmt: skip
    notes = [*loaded.notes, f"Prompts such as {prompts.filled(config.templates[0], classes[0])!r}."]
    return Classifier(_tower(net.vision_model, shape.image_size), head, spec, notes).eval()


def text_tower(config: ClipConfig) -> TextTower:
    """The text tower of the model that `config` names, for `prompts.text_vectors` of further label sets.

    That of a random model is drawn anew: its vectors do not belong to a classifier built before.
    """
    if config.name in NAMED or not config.pretrained:
        return _load(config).text
    return prompts.load_text_tower(_folder(config), _given_tokenizer(config))


# ---- loading --------------------------------------------------------------------------------------


@dataclass
class _Loaded:
    """A whole CLIP (`net`: CLIPModel), its text half with tokenizer, and how it wants its images."""

    net: Any
    text: TextTower
    preprocessing: Preprocessing
    name: str
    notes: list[str]


def _load(config: ClipConfig) -> _Loaded:
    notes: list[str] = []
    if config.name in NAMED and (Path(config.name) / "config.json").is_file():
        raise ModelError(
            f"model.name {config.name!r}: the name of a built-in CLIP with random weights, and of a folder here. Write "
            f"./{config.name} for the folder; for the random one start elsewhere, or rename the folder."
        )
    if config.name in NAMED:
        net, tokenizer, name = *_named(config), config.name
        shape = Preprocessing(net.config.vision_config.image_size, MEAN, STD, "crop")
    else:
        folder = _folder(config)
        settings = prompts.clip_settings(folder, needs_weights=config.pretrained)
        tokenizer = _given_tokenizer(config) or prompts.load_tokenizer(folder)
        shape = _preprocessing(folder, settings, notes)
        net = _pretrained(folder, config) if config.pretrained else _random(_resized(settings, config), config)
        shape = replace(shape, image_size=_size(config, net.config.vision_config, shape.image_size))
        name = config.name if not Path(config.name).expanduser().is_dir() else folder.resolve().name
    if config.name in NAMED or not config.pretrained:
        notes.append("The weights are random: without training, the predictions are no better than chance.")
    net.eval()
    text = TextTower(net.text_model, net.text_projection, tokenizer, name)
    prompts.check_tokenizer(text)
    return _Loaded(net, text, shape, name, notes)


def _folder(config: ClipConfig) -> Path:
    """The local folder of a model, fetched from the Hub with its tokenizer if need be."""
    folder = backbones.local_or_fetched(config, list(NAMED))
    if config.tokenizer is None and not Path(config.name).expanduser().is_dir():
        tokenizers.fetch(config.name.removeprefix("hf:"), config.revision)
    return folder


def _given_tokenizer(config: ClipConfig) -> Any:
    if config.tokenizer is None:
        return None
    folder = Path(config.tokenizer).expanduser()
    if not folder.is_dir():
        raise ModelError(f"model.tokenizer {config.tokenizer!r}: no such folder; give the folder of a tokenizer.")
    return prompts.load_tokenizer(folder)


def _named(config: ClipConfig) -> tuple[Any, Any]:
    """A random model, and the tokenizer given or one token for each byte."""
    tokenizer = _given_tokenizer(config) or tokenizers.train([], _BYTES)
    return _random(_resized(_named_settings(config.name, tokenizer), config), config), tokenizer


def _named_settings(name: str, tokenizer: Any) -> Any:
    from transformers import CLIPConfig

    start, end, pad = tokenizers.ends(tokenizer, name)
    different: dict[str, Any] = {key: value for key, value in _SIZES[name].items() if key != "text_config"}
    text = {**_SIZES[name]["text_config"], "bos_token_id": start, "eos_token_id": end, "pad_token_id": pad}
    text["vocab_size"] = max(text["vocab_size"], len(tokenizer))
    return CLIPConfig(**different, text_config=text)


def _random(settings: Any, config: ClipConfig) -> Any:
    from transformers import AutoModel

    with folders.quiet():
        return AutoModel.from_config(
            settings,
            attn_implementation=folders.attention(config.attention),
            dtype=torch.float32,
            trust_remote_code=False,
        )


def _pretrained(folder: Path, config: ClipConfig) -> Any:
    from transformers import CLIPModel

    net, missing, unused = folders.from_weights(CLIPModel, folder, config.attention, "a CLIP")
    prompts.refuse_gaps(folder, missing, unused)
    return net


def _resized(settings: Any, config: ClipConfig) -> Any:
    """The settings of a random model for images of `config.image_size`: it has no positions to keep."""
    settings.vision_config.image_size = _size(config, settings.vision_config, settings.vision_config.image_size)
    return settings


def _size(config: ClipConfig, settings: Any, own: int) -> int:
    size, patch = config.image_size or own, settings.patch_size
    if size % patch:
        raise ModelError(
            f"model.image_size {size}: is no multiple of the patch size {patch}, so that a border of every image would "
            "never be seen; give a multiple, or leave it unset."
        )
    return size


def _preprocessing(folder: Path, settings: Any, notes: list[str]) -> Preprocessing:
    if (folder / "preprocessor_config.json").is_file():
        return folders.preprocessing(folder, settings, notes)
    if "image_processor" in _json(folder / "processor_config.json"):
        return _of_whole_processor(folder)
    size = settings.vision_config.image_size
    notes.append(f"{folder.name} has no preprocessor_config.json: images of {size} pixels, CLIP's own mean and std.")
    return Preprocessing(size, MEAN, STD, "crop")


def _of_whole_processor(folder: Path) -> Preprocessing:
    """As transformers 5 writes it: one file for images and text, and no preprocessor_config.json beside it."""
    from transformers import AutoImageProcessor

    with folders.quiet(), folders.explained(folder, "an image model"):
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    crop = processor.crop_size if processor.do_center_crop else None
    size, square = folders._side(crop or processor.size, folder)
    return Preprocessing(size, *folders._scale(processor), "crop" if crop or not square else "squash")


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise ModelError(f"{path}: not readable as JSON ({first_line(error)}).") from None


def _tower(model: Any, size: int) -> VisionTower:
    return VisionTower(model, interpolate=model.config.image_size != size)


def _rebuild(config: ClipConfig, classes: list[str], saved: Path) -> Classifier:
    spec = Spec.read(saved)
    if spec.family != "clip":
        raise ModelError(f"{saved}: holds a classifier of another kind ({spec.family}); open it with its own task.")
    if list(spec.classes) != list(classes):
        raise ModelError(
            f"{saved}: the model was made for the classes {listed(spec.classes)}, not for {listed(classes)}; use data "
            "with the same classes in the same order."
        )
    model = _random(folders.settings_of(saved, "the vision tower of a CLIP"), config)
    dimensions, templates = spec.arguments["dimensions"], spec.arguments["templates"]
    projection = nn.Linear(model.config.hidden_size, dimensions, bias=False)
    head = ZeroShotHead(projection, torch.zeros(len(templates), len(classes), dimensions), 0.0)
    return Classifier(_tower(model, spec.image_size), head, spec).eval()
