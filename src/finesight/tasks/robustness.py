"""Robust zero-shot classification with CLIP (S12): its vision tower defended against attacks, its prompts untouched."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from finesight.adaptation import zero_shot
from finesight.adaptation.halving import halve_frozen
from finesight.adaptation.zero_shot import ZeroShotAdaptConfig
from finesight.attacks import Normalized, pgd
from finesight.attacks.config import AttackConfig
from finesight.attacks.features import feature_pgd
from finesight.config import Section
from finesight.data import transforms
from finesight.data.batches import Batch, Batches
from finesight.data.config import DataConfig
from finesight.data.transforms import AugmentConfig
from finesight.engine import Precision
from finesight.errors import ModelError
from finesight.evaluate import BEFORE, EvaluationConfig
from finesight.models import clip
from finesight.models.clip import ClipConfig
from finesight.optimization import TrainConfig
from finesight.tasks import retention
from finesight.tasks.base import Loss
from finesight.tasks.classification import Classification
from finesight.tasks.classifying import classify_images
from finesight.tasks.defence import ADVERSARIAL, DefenceConfig
from finesight.tasks.retention import RetentionConfig

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from finesight.adaptation import Audit
    from finesight.models.classifier import Classifier


class RobustnessConfig(Section):
    """Everything that decides a run of zero-shot classification and its defence."""

    task: Literal["robustness"] = Field("robustness", description="Kind of learning")
    description: str = Field("", description="What this recipe does, for `finesight list`")
    seed: int = Field(0, ge=0, description="Seed of splits, order, augmentation, attacks, dropout and bootstrap")
    precision: Precision = Field("auto", description="auto is bf16 where the hardware multiplies it natively")
    data: DataConfig = DataConfig()
    model: ClipConfig = ClipConfig()
    adapt: ZeroShotAdaptConfig = ZeroShotAdaptConfig()
    defence: DefenceConfig = DefenceConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    retention: RetentionConfig = RetentionConfig()
    attack: AttackConfig = AttackConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _trains_or_not(self) -> "RobustnessConfig":
        trains, learns = self.adapt.method != "none", self.defence.method != "none"
        if trains != learns or (self.train.epochs > 0) != learns:
            raise ValueError(
                f"adapt.method {self.adapt.method}, defence.method {self.defence.method} and train.epochs "
                f"{self.train.epochs} do not go together: a defence needs parameters to train (adapt.method full, lora "
                "or prompts) and epochs; without one set both methods to none and train.epochs to 0"
            )
        return self


class Robustness(Classification):
    """Zero-shot classification: of `Classification` it changes the model, the loss and the size images are held at.

    Training, predictions and attacks see one function: pixels in [0, 1] as they are held (`data.size`), resized and
    normalised inside (`self.pixels_to_logits`).
    """

    Config = RobustnessConfig  # type: ignore[assignment]
    also_selectable = (ADVERSARIAL,)
    config: RobustnessConfig  # type: ignore[assignment]
    second: retention.Second | None = None

    def _adapted(self, saved: Path | None) -> "tuple[Classifier, Audit]":
        config = self.config
        retention.check(config.retention, self.classes)
        if saved is None:
            self._refuse_random_original()
        self.measures_start = config.defence.method != "none"
        model = clip.build(config.model, self.classes, saved, config.data.cache_dir, self.say)
        found = zero_shot.apply(model, config.adapt, learns_vectors=config.defence.method == "coprompt")
        self.pixels_to_logits = Normalized(model, model.mean, model.std, model.image_size)
        self.pixels_to_features = Normalized(_Features(model), model.mean, model.std, model.image_size)
        return model, found

    def _refuse_random_original(self) -> None:
        """Raise `ModelError` where the model before training is asked for, and would be drawn anew, so be another."""
        config = self.config
        asked: list[str] = [config.defence.method] if config.defence.method in ("fare", "coprompt") else []
        asked += ["retention"] if retention.is_wanted(self) else []
        if asked and (config.model.name in clip.NAMED or not config.model.pretrained):
            raise ModelError(
                f"{' and '.join(asked)}: compares with the model as it was before training, and that of "
                f"{config.model.name} has random weights, which are drawn anew. Give --model.name a CLIP with weights."
            )

    # ---- data ---------------------------------------------------------------------------------

    def prepare(self, data: "DatasetDict") -> "DatasetDict":
        """As a classification's; before a training also the second label set (`retention`)."""
        if "train" in data:
            self.second = retention.opened(self)
        return super().prepare(data)

    def _make_batches(self, dataset: "Dataset", split: str, hashes: list[str], directory: Path) -> Batches:  # noqa: ARG002
        config, train = self.config, split == "train"
        batches = Batches(
            list(dataset["id"]),
            {"image": self.pixels[split], "label": torch.from_numpy(self.labels[split])},
            batch_size=config.train.batch_size if train else config.evaluation.batch_size,
            seed=config.seed,
            shuffle=train,
            balance=config.train.balance if train else None,
            augment=config.augment if train and config.augment.active else None,
            workers=config.train.workers if train else 0,
        )
        if train and config.defence.method == "fare" and batches.augment is None:
            batches.columns["original"] = self._original_features(batches)
        return batches

    @property
    def scale(self) -> float:
        """1 / temperature."""
        head = getattr(self.model.head, "fixed", self.model.head)
        return float(head.log_scale.exp())  # type: ignore[operator]

    # ---- learning -----------------------------------------------------------------------------

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        if self.engine.bf16:
            halve_frozen(self.model.backbone)  # the run folder holds it already, whole
        return super().optimizers() if self.config.adapt.method != "none" else {}

    def train_step(self, batch: Batch) -> Iterator[Loss]:
        images, labels, defence = _pixels(batch), batch["label"], self.config.defence
        if defence.method == "fare":
            yield Loss("model", self._fare(images, batch))
            return
        if defence.method == "tecoa":
            images = pgd(
                self.pixels_to_logits,
                images,
                labels,
                defence.budget,
                defence.stride,
                defence.iters,
                bf16=self.engine.bf16,
            )
        logits = self.pixels_to_logits(images).float()
        loss = functional.cross_entropy(logits, labels)
        observed = {"accuracy": (logits.detach().argmax(1) == labels).float().mean()}
        if defence.method == "coprompt":
            distance = self._inconsistency(images)
            loss, observed = loss + defence.consistency * distance, observed | {"inconsistency": distance.detach()}
        yield Loss("model", loss, observed)

    def _fare(self, images: Tensor, batch: Batch) -> Tensor:
        """Squared distance of adversarial images' features from the original model's of the clean ones, a scalar."""
        defence = self.config.defence
        original = batch["original"] if "original" in batch else self.features_before(images)
        images = feature_pgd(
            self.pixels_to_features,
            images,
            original,
            defence.budget,
            defence.stride,
            defence.iters,
            bf16=self.engine.bf16,
        )
        return (self.pixels_to_features(images).float() - original).square().sum(1).mean()

    def _inconsistency(self, images: Tensor) -> Tensor:
        """How far image and class vectors turn from the original ones of changed images and single prompts, a scalar.

        Roy & Etemad 2024 (CoPrompt, arXiv:2306.01195), with one offset a class in the place of its text prompts.
        """
        changed = _changed(images)
        cosines = functional.cosine_similarity(self.pixels_to_features(images).float(), self.features_before(changed))
        return (1 - cosines).mean() + self.model.head.inconsistency()  # type: ignore

    def features_before(self, images: Tensor) -> Tensor:
        """Features of pixels by the model as it was before training, [B, D]."""
        if not hasattr(self, "_original"):
            original = clip.build(self.config.model, self.classes, None, self.config.data.cache_dir)
            self.engine.place(original.requires_grad_(False).eval())
            self._original = Normalized(_Features(original), original.mean, original.std, original.image_size)
        with torch.no_grad():
            return self._original(images).float()

    def _original_features(self, batches: Batches) -> Tensor:
        """Those of every image, float32 [N, D]: without augmentation they are the same in each epoch."""
        step, found = self._images_at_once(), []
        for start in range(0, len(batches.ids), step):
            rows = np.arange(start, min(start + step, len(batches.ids)))
            with self.engine.autocast():
                found.append(self.features_before(_pixels(self.engine.send(batches.take(rows)))).cpu())
        return torch.cat(found)

    def _logits(self, batch: Batch) -> Tensor:
        """float32 [B, C]"""
        return self.pixels_to_logits(_pixels(batch)).float()

    def validators(self, scores: dict[str, float]) -> dict[str, float]:  # noqa: ARG002
        """Accuracy under PGD with the budget of the defence, on some validation images."""
        defence, batches, hits = self.config.defence, self.held_out("validation"), []
        if defence.method == "none":
            return {}
        chosen = np.linspace(0, batches.samples - 1, min(defence.validated, batches.samples)).astype(np.int64)
        generator = torch.Generator().manual_seed(self.config.seed)
        for start in range(0, len(chosen), self._images_at_once()):
            batch = self.engine.send(batches.take(chosen[start : start + self._images_at_once()]))
            images, labels = _pixels(batch), batch["label"]
            eps = defence.budget
            attacked = pgd(
                self.pixels_to_logits, images, labels, eps, eps / 4, 10, generator=generator, bf16=self.engine.bf16
            )
            with torch.inference_mode(), self.engine.autocast():
                hits.append(self.pixels_to_logits(attacked).argmax(1) == labels)
        return {ADVERSARIAL: torch.cat(hits).double().mean().item()}

    # ---- judging ------------------------------------------------------------------------------

    def further(self, predictions: dict[str, NDArray[Any]], groups: dict[str, list[str]]) -> dict[str, Any]:
        return super().further(predictions, groups) | retention.measured(self, groups["test"])

    def alarms(self, metrics: dict[str, Any], history: list[dict[str, Any]]) -> list[str]:
        # The model before training is no trivial method: a defence may well cost some clean accuracy.
        trivial = {name: splits for name, splits in metrics["baselines"].items() if name != BEFORE}
        found = super().alarms({**metrics, "baselines": trivial}, history)
        change = metrics.get("improvement", {}).get(BEFORE, {}).get("accuracy")
        if change and change["high"] is not None and change["high"] < -0.1:
            found.append(
                f"Clean test accuracy fell by {-change['difference']:.1%} through the training. Lower train.lr or "
                "defence.eps, or look at the learning curve."
            )
        return [*found, *retention.alarms(metrics)]

    def predict_images(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        return classify_images(self, inputs, self.held_size)


class _Features(torch.nn.Module):
    """The image vectors of a zero-shot classifier, not made unit: normalised [B, 3, S, S] -> [B, D]."""

    def __init__(self, model: "Classifier") -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, D]."""
        return self.model.head.project(self.model.features(images))  # type: ignore[operator]


def _pixels(batch: Batch) -> Tensor:
    """uint8 [B, 3, S, S] -> float32 in [0, 1]."""
    return batch["image"].float() / 255


def _changed(images: Tensor) -> Tensor:
    """Each image cropped, perhaps mirrored and in other colours; drawn from torch's generator, seeded for each step."""
    draws = torch.rand(len(images), transforms.DRAWS)
    config = AugmentConfig(crop=1.0, crop_min=0.5, flip=0.5, jitter=1.0, jitter_strength=0.3)
    made = transforms.augment((images * 255).round().to(torch.uint8).cpu(), draws, config)
    return made.to(images.device).float() / 255
