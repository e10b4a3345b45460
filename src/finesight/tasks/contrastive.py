"""Contrastive learning (S4): a small CLIP from scratch, on labelled images with captions made of templates."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from finesight import adaptation
from finesight.config import Section
from finesight.data import transforms
from finesight.data.batches import Batch, Batches
from finesight.data.config import DataConfig
from finesight.data.decoding import decode
from finesight.data.loading import load, load_test_set
from finesight.data.transforms import AugmentConfig
from finesight.engine import Engine, Precision
from finesight.evaluate import EvaluationConfig
from finesight.losses.contrastive import clip_loss, debiased_contrastive_loss, siglip_loss
from finesight.losses.labelled import labelled_clip_loss
from finesight.metrics.classification import ClassificationMetric
from finesight.metrics.kinds import higher_is_better
from finesight.models import dual_encoder
from finesight.models.dual_encoder import DualEncoderConfig
from finesight.models.prompts import filled
from finesight.optimization import TrainConfig, make_optimizer
from finesight.tasks.base import Figures, Loss, Say
from finesight.tasks.classifying import classify_images, compared, label_table, line, trivial_baselines
from finesight.tasks.templated import TextBatches, Texts, template_problems

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

TEMPLATES = [
    "a photo of a {}.",
    "a picture of a {}.",
    "a small photo of a {}.",
    "a blurry photo of a {}.",
    "a low resolution photo of a {}.",
    "a close-up of a {}.",
    "an image of the {}.",
    "there is a {} in the photo.",
]


class ContrastiveConfig(Section):
    """Everything that decides a contrastive run."""

    task: Literal["contrastive"] = Field("contrastive", description="Kind of learning")
    description: str = Field("", description="What this recipe does, for `finesight list`")
    seed: int = Field(0, ge=0, description="Seed of splits, weights, order, texts, augmentation and bootstrap")
    precision: Precision = Field("auto", description="auto is bf16 where the hardware multiplies it natively")
    loss: Literal["clip", "siglip", "debiased"] = Field("clip", description="What pulls an image and its text together")
    also_true: Literal["negative", "left-out"] = Field(
        "negative",
        description="clip: what the texts of a batch that also describe an image, by its label, are to it: negatives "
        "as in CLIP, or nothing",
    )
    tau_plus: float = Field(0.1, ge=0, lt=1, description="debiased: the prior of a class, 1 / classes where balanced")
    templates: list[str] = Field(TEMPLATES, description="Captions, with {} for the word; one is drawn for each image")
    words: dict[str, list[str]] = Field(
        default_factory=dict,
        description="Further words for a class, such as {cat: [kitten, animal]}; given in a recipe. Half of the "
        "captions use the name of the class, the others one of these",
    )
    prompt: str = Field("a photo of a {}.", description="What the classes are told apart by when the model is measured")
    data: DataConfig = DataConfig()
    model: DualEncoderConfig = DualEncoderConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _can_be_learnt(self) -> "ContrastiveConfig":
        problems = template_problems("templates", self.templates) + template_problems("prompt", [self.prompt])
        if self.also_true != "negative" and self.loss != "clip":
            problems.append(f"also_true: {self.also_true!r} is for loss clip; {self.loss} knows no labels")
        if self.train.accumulation > 1:
            problems.append(
                "train.accumulation: the negatives of an image are the rest of its batch, so micro-batches would "
                "change the loss; lower train.batch_size"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


class Contrastive:
    """The contrastive task; see `tasks.base.Task` for the contract. A prediction is what zero-shot prompts give."""

    Config = ContrastiveConfig
    higher_is_better = staticmethod(higher_is_better)
    measured = ("validation", "test")
    test_set = "root"
    measures_start = False
    conditions: dict[str, Any] = {}  # noqa: RUF012 (never mutated)
    divisible = False  # the negatives of an image are the rest of its batch
    compared = staticmethod(compared)
    line = staticmethod(line)

    def __init__(
        self,
        config: ContrastiveConfig,
        classes: list[str],
        engine: Engine,
        say: Say,
        saved: Path | None = None,
    ) -> None:
        self.config, self.classes, self.engine, self.say = config, classes, engine, say
        engine.seed(config.seed)
        self.texts = Texts(classes, config.templates, config.words)
        prompts = self.prompts(classes)
        every = [*self.texts.every, *prompts]
        self.model = dual_encoder.build(config.model, classes, every, biased=config.loss == "siglip", saved=saved)
        self.audit = adaptation.audit(self.model)
        engine.place(self.model)
        engine.share_parameters([self.model])
        self.modules = {"model": self.model}
        self.fit = config.data.fit or self.model.fit
        tokens = self.model.tokens(every).to(engine.device)
        self.tokens, self.prompt_tokens = tokens[: -len(classes)], tokens[-len(classes) :]
        self.true = torch.from_numpy(self.texts.true).to(engine.device)
        self.metric = ClassificationMetric(classes)
        self.selectable = ("loss", *self.metric.names)
        if engine.world > 1:
            say(
                "The negatives of an image are the rest of the batch in its own process, so the loss depends on the "
                "number of processes."
            )

    def prompts(self, names: Sequence[str]) -> list[str]:
        """What each of `names` is recognised by."""
        return [filled(self.config.prompt, name) for name in names]

    # ---- data ---------------------------------------------------------------------------------

    @staticmethod
    def load(config: ContrastiveConfig) -> "DatasetDict":
        """train, validation and test, before anything is decoded."""
        return load(config.data, config.seed)

    @staticmethod
    def load_test(config: ContrastiveConfig, classes: list[str]) -> "Dataset":
        """Another test set for a finished run."""
        return load_test_set(config.data, classes)

    def prepare(self, data: "DatasetDict") -> "DatasetDict":
        """Decode every split once; returns the data without unreadable images."""
        options = self.config.data
        found = decode(data, options, options.size or self.model.image_size, self.fit, self.engine, self.say)
        data, self.pixels = found.data, found.pixels
        self.labels = {split: np.asarray(data[split]["label"], dtype=np.int64) for split in data}
        self._batches = {split: self._make_batches(list(data[split]["id"]), split) for split in data}
        if "train" in data:
            self.train = self._batches["train"]
        return data

    def _make_batches(self, ids: list[str], split: str) -> Batches:
        config, train = self.config, split == "train"
        columns = {"image": self.pixels[split], "label": torch.from_numpy(self.labels[split])}
        if not train:
            size, batch_size = self.model.image_size, config.evaluation.batch_size
            return Batches(ids, columns, batch_size=batch_size, seed=config.seed, size=size)
        return TextBatches(
            ids,
            columns,
            self.texts,
            batch_size=config.train.batch_size,
            seed=config.seed,
            shuffle=True,
            balance=config.train.balance,
            augment=config.augment if config.augment.active else None,
            size=self.model.image_size,
            workers=config.train.workers,
        )

    def held_out(self, split: str) -> Batches:
        return self._batches[split]

    def references(self, split: str) -> NDArray[np.int64]:
        return self.labels[split]

    # ---- learning -----------------------------------------------------------------------------

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One optimiser; gains, biases and the temperature do not decay."""
        parameters = list(self.model.parameters())
        optimizer = make_optimizer([p for p in parameters if p.ndim > 1], self.config.train)
        optimizer.add_param_group({"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0})
        return {"model": optimizer}

    def train_step(self, batch: Batch) -> Iterator[Loss]:
        images = self.model.image_features(self.prepared(batch["image"]))
        # Many images of a batch have the same text: each is encoded once.
        distinct, place = torch.unique(batch["text"], return_inverse=True)
        texts = self.model.text_features(self._narrow(self.tokens[distinct]))
        loss = self._loss(images, texts[place], batch)
        with torch.no_grad():
            found = self.cosines(images.detach()).argmax(1)
        accuracy = (found == batch["label"]).float().mean()
        yield Loss("model", loss, {"accuracy": accuracy, "temperature": 1 / self.model.scale.detach()})
        self.model.clamp_scale()

    def _loss(self, images: Tensor, texts: Tensor, batch: Batch) -> Tensor:
        """images, texts: unit vectors [B, P]"""
        scale = self.model.scale
        if self.config.loss == "siglip":
            assert self.model.bias is not None
            return siglip_loss(images, texts, scale, self.model.bias)
        if self.config.loss == "debiased":
            return debiased_contrastive_loss(images, texts, scale, self.config.tau_plus)
        if self.config.also_true == "left-out":
            return labelled_clip_loss(images, texts, scale, self.true[batch["label"]][:, batch["text"]])
        return clip_loss(images, texts, scale)

    def _narrow(self, tokens: Tensor) -> Tensor:
        """Without the columns in which every text has ended; int64 [T, L] with the filler equal to the end."""
        ended = (tokens == self.model.tokenizer.eos_token_id).all(0)
        return tokens[:, : int((~ended).sum()) + 1]

    def cosines(self, images: Tensor) -> Tensor:
        """Of unit vectors [B, P] and the prompts of the classes, float32 [B, C]."""
        # The prompts are few: encoding them anew costs little, and they are never those of other weights.
        prompts = self.model.text_features(self.prompt_tokens)
        with torch.autocast(images.device.type, enabled=False):
            return images @ prompts.T

    def predict(self, batch: Batch) -> NDArray[np.float64]:
        """Class probabilities by the prompts, float64 [B, C]."""
        logits = self.cosines(self.model.image_features(self.prepared(batch["image"]))) * self.model.scale
        return logits.cpu().double().softmax(1).numpy()

    def prepared(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> normalised float32."""
        return transforms.normalise(images, self.model.mean, self.model.std)

    def validators(self, scores: dict[str, float]) -> dict[str, float]:  # noqa: ARG002
        return {}

    def trainable_state(self) -> dict[str, dict[str, Tensor]]:
        return {"model": adaptation.trainable_state(self.model)}

    def frozen_state(self) -> dict[str, dict[str, Tensor]]:
        return {"model": adaptation.frozen_state(self.model)}

    def save_spec(self, directory: Path) -> None:
        self.model.save_spec(directory)

    # ---- judging ------------------------------------------------------------------------------

    def baselines(self) -> dict[str, dict[str, NDArray[Any]]]:
        return trivial_baselines(self)

    def further(self, predictions: dict[str, NDArray[Any]], groups: dict[str, list[str]]) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def table(self, split: str, predictions: NDArray[Any]) -> dict[str, list[Any]]:
        return label_table(self, split, predictions)

    def alarms(self, metrics: dict[str, Any], history: list[dict[str, Any]]) -> list[str]:
        """Sentences on results that look too good or too bad."""
        from finesight.report.contrastive import alarms

        return alarms(metrics, history)

    def figures(
        self,
        predictions: dict[str, NDArray[np.float64]],
        history: list[dict[str, Any]],
        metrics: dict[str, Any],
    ) -> Figures:
        from finesight.report.contrastive import figures

        return figures(self, predictions, history, metrics)

    def predict_images(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Classify files (paths) or uint8 arrays [H, W, 3] by the prompts: label, confidence and all scores of each."""
        return classify_images(self, inputs)
