"""From a configured name to a classifier: named architectures, Hugging Face folders and Hub ids, timm."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finesight.config import nearest
from finesight.data.cifar10 import CLASSES as CIFAR10
from finesight.errors import ModelError
from finesight.models import weights
from finesight.models.classifier import Classifier, Spec
from finesight.models.config import NAMED, ModelConfig

__all__ = ["Classifier", "ModelConfig", "build"]

_HALF = (0.5, 0.5, 0.5)
_SIZES = {
    "small-cnn": 64, "mlp": 32, "leaf-vit-64": 64, "leaf-vit-256": 256, "inception-v3": 299, "pixelda": 32,
    "resnet20": 32,
}  # fmt: skip
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation that the weight files of resnet20 in common use were trained with."""
_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w.-]+")


def build(config: ModelConfig, classes: list[str], saved: Path | None = None) -> Classifier:
    """The classifier `config` asks for, with a head for `classes` (names in label order), in evaluation mode.

    With `saved`, a directory written by `Classifier.save_spec`, the architecture is rebuilt from it without
    network or original folder; its weights are then random, to be loaded strictly by the caller.
    Raises `ModelError` for an unknown name, unsafe or unfitting weights, and a Hub that cannot be reached.
    """
    if len(set(classes)) != len(classes) or not classes:
        raise ModelError(
            f"{len(classes)} class names, {len(set(classes))} of them distinct; every class needs its own."
        )
    if saved is not None:
        return _rebuild(config, classes, saved)
    if config.name in NAMED:
        model = _named(config, classes)
    elif config.name.startswith("timm:"):
        model = _timm(config, classes)
    else:
        model = _huggingface(config, classes, local_or_fetched(config, list(NAMED), ", or timm:NAME"))
    _check_size(model, config.name)
    return model.eval()


def fresh_head(width: int, classes: int, dropout: float, bias: bool = True) -> nn.Module:
    """A linear head with small random weights: [B, width] -> [B, classes], dropout before it if > 0."""
    layer = nn.Linear(width, classes, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Dropout(dropout), layer) if dropout else layer


# --- named architectures


def _named(config: ModelConfig, classes: list[str]) -> Classifier:
    size = config.image_size or _SIZES[config.name]
    arguments: dict[str, Any] = {"dropout": config.dropout, "hidden": config.hidden, "width": config.width}
    mean, std = _IMAGENET if config.name == "resnet20" else (_HALF, _HALF)
    spec = Spec("named", config.name, tuple(classes), size, mean, std, "squash", ("backbone", "head"), arguments)
    model = _architecture(spec)
    if config.weights is None:
        return model
    return _restore_named(model, Path(config.weights).expanduser())


def _architecture(spec: Spec) -> Classifier:
    """A named architecture with random weights."""
    from finesight import models

    count, size, options = len(spec.classes), spec.image_size, dict(spec.arguments)
    dropout = {} if options["dropout"] is None else {"dropout": options["dropout"]}
    whole: Any
    if spec.name == "small-cnn":
        whole = models.SmallCNN(count, options["width"], **dropout)
    elif spec.name == "mlp":
        whole = models.MLP(3 * size * size, count, **dropout)
    elif spec.name == "pixelda":
        whole = models.PixelDAClassifier(count, size)
    elif spec.name == "resnet20":
        net = models.resnet20(count)
        head = net.linear
        net.set_submodule("linear", nn.Identity())
        return Classifier(net, head, spec)
    elif spec.name == "inception-v3":
        whole = models.inception_v3(count, options["hidden"], **dropout)
    else:
        native = _SIZES[spec.name]
        if size != native:
            raise ModelError(f"model.image_size {size}: {spec.name} is defined for {native} pixels; leave it unset.")
        whole = models.LeafViT(native, count, **dropout)
    return Classifier(whole.backbone, whole.head, spec)


def _restore_named(model: Classifier, path: Path) -> Classifier:
    """Load a local file: finesight's names (backbone.*, head.*), or those in common use for inception-v3, resnet20."""
    state = weights.read(path)
    if any(name.startswith("backbone.") for name in state):
        head = {name.removeprefix("head."): t for name, t in state.items() if name.startswith("head.")}
        body = {name.removeprefix("backbone."): t for name, t in state.items() if name.startswith("backbone.")}
        stray = sorted(name for name in state if not name.startswith(("backbone.", "head.")))
        if stray:
            raise ModelError(f"{path}: weights of no part of {model.spec.name}: {weights.listed(stray)}.")
    elif model.spec.name == "resnet20":
        # The classes of a file in common use are CIFAR-10's, in their own order.
        known = model.classes == list(CIFAR10)
        head = {name.removeprefix("linear."): t for name, t in state.items() if known and name.startswith("linear.")}
        body = {name: t for name, t in state.items() if not name.startswith("linear.")}
    else:
        head, body = {}, _torchvision_names(state)
    weights.load_strict(model.backbone, body, source=str(path))
    wanted = {name: tensor.shape for name, tensor in model.head.state_dict().items()}
    if head and {name: tensor.shape for name, tensor in head.items()} == wanted:
        weights.load_strict(model.head, head, source=str(path))
        return _respecify(model, random=())
    note = f"The backbone is from {path.name}; the head is new."
    return _respecify(model, random=("head",), note=note)


def _torchvision_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # torchvision's ImageNet file of Inception v3 has an auxiliary head and 1,000 classes, which are not here.
    return {name: tensor for name, tensor in state.items() if not name.startswith(("AuxLogits.", "fc."))}


def _respecify(model: Classifier, random: tuple[str, ...], note: str | None = None) -> Classifier:
    from dataclasses import replace

    return Classifier(model.backbone, model.head, replace(model.spec, random=random), [note] if note else [])


# --- Hugging Face


def local_or_fetched(config: Any, named: list[str], more: str = "") -> Path:
    """The local folder of a Hugging Face model, fetched from the Hub if need be.

    `config` has name, revision and pretrained; `named` are the architectures that a wrong name may have meant, `more`
    is what else a name may be.
    """
    name = config.name.removeprefix("hf:")
    local = Path(name).expanduser()
    if local.is_dir() and not config.name.startswith("hf:"):
        return local
    if _REPOSITORY.fullmatch(name):
        from finesight.models import hub

        return hub.fetch(name, config.revision, needs_weights=config.pretrained)
    raise ModelError(
        f"model.name {config.name!r}: no such folder, and no model{nearest(config.name, named)}. "
        f"Give one of {', '.join(named)}, a Hugging Face folder, or a Hub id OWNER/NAME{more}."
    )


def _huggingface(config: ModelConfig, classes: list[str], folder: Path) -> Classifier:
    from finesight.models import huggingface

    if config.weights is not None:
        raise ModelError("model.weights: is for named architectures and timm; give a Hugging Face model as one folder.")
    loaded = huggingface.load(folder, config, pretrained=config.pretrained, image_size=config.image_size)
    kept = loaded.head is not None and sorted(loaded.labels) == sorted(classes)
    if kept:
        head = _with_dropout(_reordered(loaded.head, loaded.labels, classes), config.dropout or 0.0)
        loaded.notes.append("The head came with the model: its class names are those of the data.")
    else:
        width = _feature_width(loaded.backbone, loaded.preprocessing.image_size, config.name)
        head = fresh_head(width, len(classes), config.dropout or 0.0)
    random = ("backbone", "head") if not config.pretrained else () if kept else ("head",)
    shape = loaded.preprocessing
    arguments = {"dropout": config.dropout or 0.0, "bias": _last_linear(head).bias is not None}
    name = config.name if not Path(config.name).expanduser().is_dir() else folder.resolve().name
    spec = Spec(
        "huggingface",
        name,
        tuple(classes),
        shape.image_size,
        shape.mean,
        shape.std,
        shape.fit,
        random,
        arguments,
    )
    return Classifier(loaded.backbone, head, spec, loaded.notes)


def _reordered(head: nn.Linear | None, labels: list[str], classes: list[str]) -> nn.Linear:
    """The head with its outputs in the order of `classes`."""
    assert head is not None
    order = torch.tensor([labels.index(name) for name in classes])
    with torch.no_grad():
        head.weight.copy_(head.weight[order])
        if head.bias is not None:
            head.bias.copy_(head.bias[order])
    return head


def _with_dropout(layer: nn.Linear, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Dropout(dropout), layer) if dropout else layer


def _last_linear(head: nn.Module) -> nn.Linear:
    return [module for module in head.modules() if isinstance(module, nn.Linear)][-1]


# --- timm


def _timm(config: ModelConfig, classes: list[str]) -> Classifier:
    from finesight.models import timm_models

    name = config.name.removeprefix("timm:")
    file = None if config.weights is None else Path(config.weights).expanduser()
    loaded = timm_models.load(name, file, pretrained=config.pretrained, image_size=config.image_size)
    width = _feature_width(loaded.backbone, loaded.image_size, config.name)
    random = ("head",) if config.pretrained or file else ("backbone", "head")
    arguments = {"dropout": config.dropout or 0.0, "image_size": config.image_size}
    spec = Spec(
        "timm",
        name,
        tuple(classes),
        loaded.image_size,
        loaded.mean,
        loaded.std,
        loaded.fit,
        random,
        arguments,
    )
    return Classifier(loaded.backbone, fresh_head(width, len(classes), config.dropout or 0.0), spec)


# --- all


def _rebuild(config: ModelConfig, classes: list[str], saved: Path) -> Classifier:
    spec = Spec.read(saved)
    if list(spec.classes) != list(classes):
        raise ModelError(
            f"{saved}: the model was made for the classes {weights.listed(spec.classes)}, not for "
            f"{weights.listed(classes)}; use data with the same classes in the same order."
        )
    if spec.family == "named":
        return _architecture(spec).eval()
    backbone: nn.Module
    if spec.family == "timm":
        from finesight.models import timm_models

        backbone = timm_models.create(spec.name, None, spec.arguments["image_size"], source=str(saved))
    else:
        from finesight.models import huggingface

        backbone = huggingface.load(saved, config, pretrained=False, image_size=spec.image_size).backbone
    width = _feature_width(backbone, spec.image_size, spec.name)
    head = fresh_head(width, len(classes), spec.arguments["dropout"], spec.arguments.get("bias", True))
    return Classifier(backbone, head, spec).eval()


def _feature_width(backbone: nn.Module, size: int, name: str) -> int:
    """D, found by one image; raises `ModelError` where the backbone does not take that size."""
    try:
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(
            f"{name}: does not take images of {size} pixels ({weights.first_line(error)}); leave "
            "model.image_size unset, or give a multiple of the patch size."
        ) from None
    if features.ndim != 2:
        raise ModelError(f"{name}: gives features of shape {list(features.shape)}, not one vector an image.")
    return features.shape[1]


def _check_size(model: Classifier, name: str) -> None:
    if model.spec.family == "named":
        _feature_width(model.backbone, model.image_size, name)
