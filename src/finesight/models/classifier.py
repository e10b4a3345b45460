"""The classifier every recipe trains: a backbone that gives features, and a head that gives logits."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from finesight.errors import ModelError

SPEC_FILE = "model.json"
FORMAT = 1
Fit = Literal["squash", "crop", "pad"]
PROMPTS = "prompts.tokens"
"""How the names of visual prompts end (`adaptation.prompts`)."""
_CONFIGURED = ("huggingface", "clip")
"""Families whose backbone holds a model of transformers, which knows its own configuration."""


@dataclass(frozen=True)
class Spec:
    """What rebuilds a classifier's architecture without the Hub or the original folder.

    mean and std are on the [0, 1] scale; `random` lists the parts ("backbone", "head") that began with
    random weights; `arguments` are those of the family's constructor.
    """

    family: Literal["named", "huggingface", "timm", "clip"]
    name: str
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit
    random: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Write `model.json`."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False)
        (directory / SPEC_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> "Spec":
        """Read `model.json`; raises `ModelError` where it is missing, damaged or of a later format."""
        path = directory / SPEC_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ModelError(f"{path}: written by another version of finesight; use that version to open it.")
            for name in ("classes", "mean", "std", "random"):
                content[name] = tuple(content[name])
            return cls(**content)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror}); the model cannot be rebuilt.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: damaged ({error}); restore it from a copy of the run.") from None


class Classifier(nn.Module):
    """`forward = head(features(images))`.

    images: float32 [B, 3, S, S] with S = `image_size`, normalised by `mean` and `std`. Returns logits [B, C]
    in the order of `classes`. `notes` are sentences for the report about how the model was made. The
    parameters are named backbone.* and head.*, whatever the family.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, spec: Spec, notes: Iterable[str] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.spec = spec
        self.notes = list(notes)
        self.classes = list(spec.classes)
        self.image_size = spec.image_size
        self.mean = spec.mean
        self.std = spec.std
        self.fit: Fit = spec.fit
        self.width = next(module for module in head.modules() if isinstance(module, nn.Linear)).in_features

    @property
    def frozen_backbone(self) -> bool:
        """Whether no parameter of the backbone is trained, so that its features of an image never change."""
        return not any(parameter.requires_grad for parameter in self.backbone.parameters())

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, D]."""
        return self.backbone(images)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> logits [B, C]."""
        return self.head(self.features(images))

    def train(self, mode: bool = True) -> "Classifier":
        """As `nn.Module.train`, but what is frozen stays in evaluation mode.

        A backbone without trainable parameters stays there whole: no dropout, fixed batch statistics. In a
        partly trained one (LoRA) the normalisation layers with frozen parameters keep their statistics.
        """
        super().train(mode)
        if mode:
            for module in frozen_modules(self):
                module.eval()
        return self

    def random_parameters(self) -> list[str]:
        """Names of the parameters that did not come from pretrained weights."""
        prefixes = tuple(f"{part}." for part in self.spec.random)
        return [name for name, _ in self.named_parameters() if prefixes and name.startswith(prefixes)]

    def spec_key(self) -> str:
        """Text that is equal for two models exactly if they make the same features from the same weights."""
        kept = {**asdict(self.spec), "classes": None, "random": None, "name": None}
        if self.spec.family in _CONFIGURED:
            settings = self.backbone.model.config  # type: ignore[union-attr]
            kept["config"] = settings.to_diff_dict()  # type: ignore[union-attr,operator]
            kept["attention"] = settings._attn_implementation  # type: ignore[union-attr]
            kept["arguments"] = kept["arguments"] if self.spec.family != "clip" else None  # of the head alone
        else:
            kept["name"] = self.spec.name
        return json.dumps(kept, sort_keys=True, default=str)

    def save_spec(self, directory: Path) -> None:
        """Write what `backbones.build(config, classes, saved=directory)` rebuilds the architecture from."""
        directory.mkdir(parents=True, exist_ok=True)
        self.spec.write(directory)
        if self.spec.family in _CONFIGURED:
            self.backbone.model.config.save_pretrained(directory)  # type: ignore[union-attr,operator]


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that must not change even in training mode.

    The `backbone` when nothing but visual prompts is trained in it; else its normalisation layers that keep running
    statistics and have parameters of which none is trained. The `head` when it has parameters and none is trained
    (that of a zero-shot classifier: its class vectors are buffers).
    """
    backbone, head = getattr(model, "backbone", None), getattr(model, "head", None)
    if backbone is None:
        return []
    held = [head] if isinstance(head, nn.Module) and _all_frozen(list(head.parameters())) else []
    if all(name.endswith(PROMPTS) for name, parameter in backbone.named_parameters() if parameter.requires_grad):
        return [backbone, *held]
    return [*(module for module in backbone.modules() if _frozen_norm(module)), *held]


def _frozen_norm(module: nn.Module) -> bool:
    statistics = getattr(module, "running_mean", None) is not None
    return statistics and _all_frozen(list(module.parameters(recurse=False)))


def _all_frozen(parameters: list[nn.Parameter]) -> bool:
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
