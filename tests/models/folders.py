"""Small random Hugging Face image classifiers, saved as folders."""

from pathlib import Path
from typing import Any

import torch

KINDS = ("vit", "beit", "dinov2", "swin", "resnet", "convnext")
_TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
_CONVOLUTIONS = {"depths": [1, 1], "hidden_sizes": [8, 16]}
_WINDOWS = {"patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}


def settings_of(kind: str) -> Any:
    """A transformers configuration of a model with a few thousand parameters."""
    import transformers as t

    if kind == "vit":
        return t.ViTConfig(**_TRANSFORMER)
    if kind == "beit":
        return t.BeitConfig(**_TRANSFORMER, use_relative_position_bias=True)
    if kind == "dinov2":
        return t.Dinov2Config(**{**_TRANSFORMER, "image_size": 28, "patch_size": 14})
    if kind == "swin":
        return t.SwinConfig(image_size=32, **_WINDOWS)
    if kind == "resnet":
        return t.ResNetConfig(embedding_size=8, layer_type="basic", **_CONVOLUTIONS)
    return t.ConvNextConfig(num_stages=2, image_size=32, **_CONVOLUTIONS)


def save(kind: str, folder: Path, labels: list[str]) -> Any:
    """Write a random classifier of that kind into `folder`; returns the transformers model."""
    from transformers import AutoModelForImageClassification

    settings = settings_of(kind)
    settings.id2label = dict(enumerate(labels))
    settings.label2id = {label: index for index, label in enumerate(labels)}
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that no bias or token is zero by construction
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return model
