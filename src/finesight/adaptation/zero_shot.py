"""Adapting a zero-shot classifier: what is asked for trains; projection, temperature and texts stay as they are."""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from finesight.adaptation.auditing import Audit, audit
from finesight.adaptation.config import AdaptConfig
from finesight.errors import ModelError

if TYPE_CHECKING:
    from finesight.models.classifier import Classifier
    from finesight.models.clip import ZeroShotHead


class ZeroShotAdaptConfig(AdaptConfig):
    """Which parameters of the vision tower are trained."""

    method: Literal["none", "full", "lora", "prompts"] = Field(  # type: ignore[assignment]
        "none", description="Train nothing, the whole vision tower, low-rank adapters (LoRA), or visual prompts"
    )
    alpha: float = Field(32.0, gt=0, description="LoRA scale; the update is multiplied by alpha / rank")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout on the input of the LoRA matrices")
    targets: list[str] | None = Field(
        ["q_proj", "k_proj", "v_proj"], description="Modules of the vision tower that get LoRA"
    )
    projection: bool = Field(False, description="Train the visual projection too")
    temperature: bool = Field(False, description="Train the temperature too")

    @field_validator("modules_to_save")
    @classmethod
    def _nothing_beside(cls, value: list[str] | None) -> list[str] | None:
        if value:
            raise ValueError("is for other tasks; of a zero-shot classifier projection and temperature have options")
        return value


class LearntVectors(nn.Module):
    """A zero-shot head whose class vectors may move: `offset` [C, D] is added to them, the sum made unit again."""

    def __init__(self, head: "ZeroShotHead") -> None:
        super().__init__()
        self.fixed = head
        self.offset = nn.Parameter(torch.zeros_like(head.class_vectors))

    @property
    def vectors(self) -> Tensor:
        """Unit class vectors [C, D]."""
        return functional.normalize(self.fixed.class_vectors + self.offset, dim=-1)

    def project(self, features: Tensor) -> Tensor:
        """[B, width] -> [B, D]."""
        return self.fixed.project(features)

    def embed(self, features: Tensor) -> Tensor:
        """[B, width] -> unit vectors [B, D]."""
        return self.fixed.embed(features)

    def forward(self, features: Tensor) -> Tensor:
        """[B, width] -> logits [B, C]."""
        with torch.autocast(features.device.type, enabled=False):
            return self.embed(features) @ self.vectors.T * self.fixed.log_scale.exp()

    def inconsistency(self) -> Tensor:
        """1 - cosine of each moved class vector with that of each single template, the mean over both: a scalar."""
        return 1 - (self.fixed.template_vectors * self.vectors).sum(-1).mean()


def apply(model: "Classifier", config: ZeroShotAdaptConfig, learns_vectors: bool = False) -> Audit:
    """Make exactly the parameters trainable that `config` names, in place; returns the audit of the vision tower.

    With `learns_vectors` the class vectors get an offset that is trained. Counts are of the vision tower alone, as in
    the literature (442,368 of 87,898,368 for LoRA of rank 8 on queries, keys and values of ViT-B/32), and of what else
    is trained. Raises `ModelError` for targets that match nothing, and for random weights that would stay as they are.
    """
    head = model.head
    head.requires_grad_(False)
    if config.method == "lora":
        from finesight.adaptation.lora import inject

        inject(model.backbone, config)
    elif config.method == "prompts":
        from finesight.adaptation.prompts import insert

        insert(model.backbone, config.prompts)
    else:
        model.backbone.requires_grad_(config.method == "full")
    extra: list[nn.Parameter] = []
    if config.projection:
        extra += head.projection.parameters()  # type: ignore[union-attr]
    if config.temperature:
        extra.append(head.log_scale)  # type: ignore[arg-type]
    if learns_vectors:
        model.head = LearntVectors(head)  # type: ignore[arg-type]
        extra.append(model.head.offset)
    for parameter in extra:
        parameter.requires_grad_(True)
    found = _counted(model, extra)
    if found.frozen_random and not config.allow_random_frozen:
        raise ModelError(
            f"adapt.method {config.method}: the weights of {model.spec.name} are random and would stay frozen "
            f"({len(found.frozen_random)} tensors). Give a pretrained CLIP as model.name (a folder, a Hub id, or what "
            "`finesight export` wrote of a cifar10-clip run), or accept it: --adapt.allow_random_frozen true."
        )
    model.train(model.training)
    return found


def _counted(model: "Classifier", extra: list[nn.Parameter]) -> Audit:
    tower, whole = audit(model.backbone), audit(model)
    more = sum(parameter.numel() for parameter in extra)
    return replace(
        tower,
        trainable=tower.trainable + more,
        total=tower.total + more,
        adapted=whole.adapted,
        frozen_random=whole.frozen_random,
    )
