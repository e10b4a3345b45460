"""Small random Hugging Face image classifiers and CLIPs, saved as folders."""

import gzip
import json
from collections.abc import Sequence
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


def clip_folder(
    path: Path, texts: Sequence[str] = (), *, tokenizer: Any = None, size: int = 32, processor: bool = True, **text: Any
) -> Any:
    """Write a random CLIP (8 dimensions, 16 patches) with tokenizer and processor into `path`; returns its CLIPModel.

    The tokenizer knows single bytes, and pairs learnt from `texts`; `text` changes options of the text tower.
    """
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer = tokenizer or clip_tokenizer(texts)
    layers = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings = CLIPConfig(
        text_config={**layers, **ends, "pad_token_id": 1, "vocab_size": len(tokenizer), "projection_dim": 8, **text},
        vision_config={**layers, "image_size": size, "patch_size": size // 4, "projection_dim": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that no bias is zero by construction, and sentences differ
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    if processor:
        square = {"height": size, "width": size}
        CLIPImageProcessor(size={"shortest_edge": size}, crop_size=square).save_pretrained(path)
    return model


def clip_tokenizer(texts: Sequence[str] = ()) -> Any:
    """A tokenizer as CLIP's, its end the highest token: bytes, within and at the end of a word, and learnt pairs."""
    from tokenizers import pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs: list[tuple[str, str]] = []
    if texts:
        learning = CLIPTokenizer().backend_tokenizer
        trainer = trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
        )
        learning.train_from_iterator([text.lower() for text in texts], trainer)
        pairs = [tuple(pair) for pair in json.loads(learning.to_str())["model"]["merges"]]
    return _clip_tokenizer(letters, pairs)


def real_clip_tokenizer(file: Path) -> Any:
    """CLIP's own tokenizer of 49,408 tokens, from OpenAI's bpe_simple_vocab_16e6.txt.gz."""
    from open_clip.tokenizer import bytes_to_unicode

    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    return _clip_tokenizer(list(bytes_to_unicode().values()), [tuple(line.split()) for line in lines[1:48895]])


def _clip_tokenizer(letters: list[str], pairs: list[tuple[str, ...]]) -> Any:
    from transformers import CLIPTokenizer

    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in pairs)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=pairs)
