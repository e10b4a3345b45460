"""Unit and direction of every metric that finesight reports, by name."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from finesight.errors import ConfigError


class Kind(NamedTuple):
    """Unit of a metric, and whether more of it is better."""

    unit: str
    higher_is_better: bool


CLASSIFICATION: Mapping[str, Kind] = {
    "accuracy": Kind("fraction", True),
    "top_k_accuracy": Kind("fraction", True),
    "precision": Kind("fraction", True),
    "recall": Kind("fraction", True),
    "f1": Kind("fraction", True),
    "macro_precision": Kind("fraction", True),
    "macro_recall": Kind("fraction", True),
    "macro_f1": Kind("fraction", True),
    "weighted_precision": Kind("fraction", True),
    "weighted_recall": Kind("fraction", True),
    "weighted_f1": Kind("fraction", True),
    "expected_calibration_error": Kind("fraction", False),
    "nll": Kind("nats", False),
    "loss": Kind("nats", False),
}

IMAGES: Mapping[str, Kind] = {
    "mse": Kind("squared intensity", False),
    "psnr": Kind("dB", True),
    "ssim": Kind("index", True),
}
"""On pixels in [0, 1]; with the prefix `masked_` on masked patches only."""

LIKELIHOOD: Mapping[str, Kind] = {
    "negative_elbo": Kind("nats", False),
    "reconstruction_nats": Kind("nats", False),
    "kl": Kind("nats", False),
}
"""Of a variational autoencoder. A KL divergence has no better direction; the bound that holds it has."""

CAPTIONS: Mapping[str, Kind] = {
    **{name: Kind("fraction", True) for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4")},
    **{name: Kind("fraction", True) for name in ("rouge_1", "rouge_2", "rouge_l", "meteor")},
    "cider": Kind("index", True),
    **{f"bertscore_{name}": Kind("index", True) for name in ("precision", "recall", "f1")},
}
"""Of captions against references; `cider` runs from 0 to 10, BERTScore is a mean cosine, mostly from 0.8 to 1."""

KINDS: Mapping[str, Kind] = {
    **CLASSIFICATION,
    **IMAGES,
    **{f"masked_{name}": of for name, of in IMAGES.items()},
    **LIKELIHOOD,
    **CAPTIONS,
    "adversarial_accuracy": Kind("fraction", True),
    "objective": Kind("the model's own scale", False),
    "auroc": Kind("fraction", True),
}
"""Unit and direction by family: `f1/cat` is of family `f1`, `top_5_accuracy` of `top_k_accuracy`."""


def kind(name: str) -> Kind:
    """Unit and direction of a metric. Raises `ConfigError` for a name that is no metric."""
    family = re.sub(r"^top_\d+_accuracy$", "top_k_accuracy", name)
    if name.startswith(("precision/", "recall/", "f1/")):
        family = name.partition("/")[0]
    if family not in KINDS:
        from finesight.config import nearest

        hint = nearest(name, list(KINDS)) or "."
        raise ConfigError(f"{name}: no metric of this name{hint} Known: {', '.join(KINDS)}.")
    return KINDS[family]


def higher_is_better(name: str) -> bool:
    """Whether a larger value of this metric (or of `loss`) is the better one."""
    return kind(name).higher_is_better
