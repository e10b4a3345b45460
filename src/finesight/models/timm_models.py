"""Backbones of timm: created by name, weights loaded strictly by timm's own converter from a guarded file."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from finesight.errors import ModelError
from finesight.models import weights
from finesight.models.classifier import Fit


@dataclass(frozen=True)
class TimmModel:
    """A timm model without its head, and how it wants its images (mean and std on the [0, 1] scale)."""

    backbone: nn.Module
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit


def load(name: str, file: Path | None, *, pretrained: bool, image_size: int | None) -> TimmModel:
    """The timm model `name` (with its tag, where it has one) without classification head.

    Weights come from `file`, else from the Hub in safetensors, else (not pretrained) are random. Raises
    `ModelError` for an unknown name, a model without downloadable weights, and weights that do not fit to
    the last key.
    """
    timm = _timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(pretrained=False), n=3)
        raise ModelError(f"timm:{name}: timm {timm.__version__} has no such model; near: {', '.join(near) or 'none'}.")
    settings = timm.get_pretrained_cfg(name)
    state = None
    if file is not None:
        state = weights.read(file)
    elif pretrained:
        state = _download(name, settings)
    model = create(name, state, image_size, source=str(file or f"timm:{name}"))
    config = timm.data.resolve_model_data_config(model)
    fit: Fit = "squash" if config.get("crop_mode") == "squash" else "crop"
    return TimmModel(model, image_size or config["input_size"][-1], tuple(config["mean"]), tuple(config["std"]), fit)


def create(name: str, state: "dict[str, Tensor] | None", image_size: int | None, source: str) -> nn.Module:
    """The architecture with `state` loaded strictly (random weights if None), its head made the identity."""
    timm = _timm()
    settings = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {}
    if image_size is not None and settings is not None and settings.fixed_input_size:
        options["img_size"] = image_size
    if state is not None:
        # timm loads strictly only when the class counts agree, so the model is made with the file's own.
        classes = _class_count(state, settings)
        overlay = {"state_dict": state, "num_classes": classes, "label_offset": 0, "source": ""}
        options |= {"pretrained": True, "num_classes": classes, "pretrained_cfg_overlay": overlay}
    try:
        model = timm.create_model(name, **options)
    except (RuntimeError, ValueError, TypeError, AssertionError, KeyError) as error:
        detail = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{source}: timm cannot make {name} of it ({detail}); use weights of exactly this model."
        ) from None
    model.reset_classifier(0)
    model.pretrained_cfg.pop("state_dict", None)
    return model.eval()


def _class_count(state: "dict[str, Tensor]", settings: Any) -> int:
    classifier = settings.classifier if settings is not None else None
    if isinstance(classifier, tuple):
        classifier = classifier[0]
    weight = state.get(f"{classifier}.weight")
    return weight.shape[0] if weight is not None else 0


def _download(name: str, settings: Any) -> "dict[str, Tensor]":
    from finesight.models import hub

    repository = settings.hf_hub_id if settings is not None else None
    if not repository:
        raise ModelError(
            f"timm:{name}: timm knows no weights of it on the Hub; add a tag "
            f"({', '.join(_tags(name)) or 'none known'}), give model.weights FILE, or model.pretrained false."
        )
    folder = hub.fetch(repository)
    return weights.read(folder / "model.safetensors")


def _tags(name: str) -> list[str]:
    return list(_timm().list_models(f"{name}.*", pretrained=True))[:5]


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except ImportError:
        raise ModelError("timm models need the package timm: pip install 'finesight[timm]'.") from None
    return timm
