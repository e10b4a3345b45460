"""A small CLIP with random weights (Radford et al. 2021, arXiv:2103.00020): a ViT and a text transformer, one space."""

import math
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from finesight.config import Section
from finesight.errors import ModelError
from finesight.models import pretrained as folders
from finesight.models import tokenizers
from finesight.models.classifier import Fit, Spec

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own, for pixels in [0, 1]."""
LARGEST_SCALE = 100.0
_WHAT = "a CLIP model"


class DualEncoderConfig(Section):
    """The size of both towers; their weights begin at random."""

    name: Literal["small-clip"] = Field("small-clip", description="Architecture: transformers' CLIPModel, made small")
    image_size: int = Field(32, ge=8, description="Side of the square input in pixels")
    patch_size: int = Field(4, ge=1, description="Side of a patch in pixels")
    width: int = Field(192, ge=8, description="Width of the image tower")
    layers: int = Field(6, ge=1, description="Layers of the image tower")
    heads: int = Field(3, ge=1, description="Attention heads of the image tower")
    text_width: int = Field(128, ge=8, description="Width of the text tower")
    text_layers: int = Field(2, ge=1, description="Layers of the text tower")
    text_heads: int = Field(2, ge=1, description="Attention heads of the text tower")
    projection: int = Field(128, ge=2, description="Dimensions of the space that both towers map into")
    vocabulary: int = Field(1024, ge=257, description="Most tokens that the tokenizer learns from the texts")
    longest: int = Field(32, ge=4, description="Tokens of a text, its end included")
    temperature: float = Field(0.07, ge=0.01, description="Where the learnt temperature starts")
    fit: Fit = Field("squash", description="How an image becomes square, if data.fit does not say: squash, crop or pad")
    attention: Literal["auto", "eager", "sdpa"] = Field("auto", description="auto is eager on a CPU, sdpa on a GPU")

    @model_validator(mode="after")
    def _fits_together(self) -> "DualEncoderConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"model.image_size {self.image_size} is no multiple of model.patch_size {self.patch_size}")
        for width, heads in (("width", "heads"), ("text_width", "text_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"model.{width} {getattr(self, width)} is no multiple of model.{heads} {getattr(self, heads)}"
                )
        return self


class DualEncoder(nn.Module):
    """Both towers, with preprocessing and tokenizer. images: float32 [B, 3, S, S], normalised by `mean` and `std`.

    `bias` is SigLIP's, added to every scaled cosine; None for the losses that have none.
    """

    def __init__(self, net: Any, spec: Spec, tokenizer: Any, biased: bool) -> None:
        super().__init__()
        self.net, self.spec, self.tokenizer = net, spec, tokenizer
        self.bias = nn.Parameter(torch.tensor(-10.0)) if biased else None
        self.image_size, self.mean, self.std, self.fit = spec.image_size, spec.mean, spec.std, spec.fit
        self.longest = net.config.text_config.max_position_embeddings
        self.notes = [f"The tokenizer was learnt from the texts of the training: {len(tokenizer):,} tokens."]

    def image_features(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> float32 unit vectors [B, P]."""
        return functional.normalize(self.net.get_image_features(pixel_values=images).pooler_output.float(), dim=1)

    def text_features(self, tokens: Tensor) -> Tensor:
        """int64 [T, L] of `tokens` -> float32 unit vectors [T, P]."""
        # What is behind the end is never seen: attention is causal, and the state at the first end is taken.
        return functional.normalize(self.net.get_text_features(input_ids=tokens).pooler_output.float(), dim=1)

    @property
    def scale(self) -> Tensor:
        """1 / temperature, a scalar."""
        return self.net.logit_scale.exp()

    def clamp_scale(self) -> None:
        """Keep the scale at 100 or below, as CLIP does; to be called after every step."""
        with torch.no_grad():
            self.net.logit_scale.clamp_(max=math.log(LARGEST_SCALE))

    def tokens(self, texts: list[str]) -> Tensor:
        """int64 [T, L]: each text, its end, and the end again as filler.

        Raises `ModelError` for a text of more than `longest` tokens: without its end it would have no features.
        """
        rows = tokenizers.encode(self.tokenizer, texts, self.tokenizer.eos_token_id, self.longest + 1)
        width = max(len(row) for row in rows)
        if width > self.longest:
            text = texts[max(range(len(rows)), key=lambda row: len(rows[row]))]
            raise ModelError(
                f"{text!r}: has more than {self.longest} tokens. Shorten it, or raise --model.longest for a new run."
            )
        return torch.tensor([row + [self.tokenizer.eos_token_id] * (width - len(row)) for row in rows])

    def random_parameters(self) -> list[str]:
        """Names of the parameters that began with random weights: all."""
        return [name for name, _ in self.named_parameters()]

    def save_spec(self, directory: Path) -> None:
        """Write what `build(config, classes, texts, saved=directory)` rebuilds architecture and tokenizer from."""
        directory.mkdir(parents=True, exist_ok=True)
        self.spec.write(directory)
        self.tokenizer.save_pretrained(directory)
        self.net.config.save_pretrained(directory)


def build(
    config: DualEncoderConfig, classes: list[str], texts: list[str], *, biased: bool, saved: Path | None = None
) -> DualEncoder:
    """Both towers with random weights, and a tokenizer learnt from `texts`; with `saved` those of `save_spec`."""
    if saved is not None:
        spec, tokenizer = Spec.read(saved), tokenizers.load(saved)
        settings = folders.settings_of(saved, _WHAT)
    else:
        tokenizer = learnt_tokenizer(texts, config)
        settings = _settings(config, tokenizer)
        spec = Spec("huggingface", config.name, tuple(classes), config.image_size, MEAN, STD, config.fit, ("net",))
    from transformers import AutoModel

    with folders.quiet():
        net = AutoModel.from_config(
            settings,
            attn_implementation=folders.attention(config.attention),
            dtype=torch.float32,
            trust_remote_code=False,
        )
    return DualEncoder(net, spec, tokenizer, biased).eval()


def learnt_tokenizer(texts: list[str], config: DualEncoderConfig) -> Any:
    """Byte pairs learnt from `texts` in lower case; called as a whole it adds the end, as CLIP's does."""
    from tokenizers import normalizers, processors

    made = tokenizers.train([text.lower() for text in texts], config.vocabulary)
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    end = (made.eos_token, made.eos_token_id)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end[0]}", pair=f"$A $B {end[0]}", special_tokens=[end]
    )
    made.pad_token = made.eos_token
    made.model_max_length = config.longest
    return made


def _settings(config: DualEncoderConfig, tokenizer: Any) -> Any:
    from transformers import CLIPConfig

    end = tokenizer.eos_token_id
    if end == 2:
        raise ModelError("The end of a text must not be token 2: transformers' CLIP then looks for the largest token.")
    common = {"projection_dim": config.projection, "hidden_act": "gelu"}
    image = common | {
        "hidden_size": config.width, "intermediate_size": 4 * config.width, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "image_size": config.image_size, "patch_size": config.patch_size,
    }  # fmt: skip
    text = common | {
        "hidden_size": config.text_width, "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers, "num_attention_heads": config.text_heads,
        "vocab_size": len(tokenizer), "max_position_embeddings": config.longest,
        "bos_token_id": end, "eos_token_id": end, "pad_token_id": end,
    }  # fmt: skip
    return CLIPConfig(
        text_config=text,
        vision_config=image,
        projection_dim=config.projection,
        logit_scale_init_value=math.log(1 / config.temperature),
    )
