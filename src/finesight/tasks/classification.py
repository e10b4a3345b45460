"""Image classification: one label per image, any backbone, trained in full, by head, LoRA or visual prompts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from finesight import adaptation, cache
from finesight.adaptation import AdaptConfig
from finesight.config import Section
from finesight.data import transforms
from finesight.data.batches import Batch, Batches
from finesight.data.config import DataConfig
from finesight.data.decoding import decode
from finesight.data.loading import load, load_test_set
from finesight.data.transforms import AugmentConfig
from finesight.engine import Engine, Precision
from finesight.evaluate import EvaluationConfig
from finesight.metrics.classification import ClassificationMetric
from finesight.metrics.kinds import higher_is_better
from finesight.models import backbones
from finesight.models.backbones import ModelConfig
from finesight.models.layout import memory_format
from finesight.models.weights import state_hash
from finesight.optimization import TrainConfig, make_optimizer
from finesight.tasks.base import Figures, Loss, Say
from finesight.tasks.classifying import classify_images, compared, label_table, line, trivial_baselines

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from finesight.adaptation import Audit
    from finesight.models.classifier import Classifier

CACHED_PIXELS = 720_000
"""Pixels of a forward pass whose feature maps fit a processor's cache: 8 images of 299 x 299."""


class ClassificationConfig(Section):
    """Everything that decides a classification run."""

    task: Literal["classification"] = Field("classification", description="Kind of learning")
    description: str = Field("", description="What this recipe does, for `finesight list`")
    seed: int = Field(0, ge=0, description="Seed of splits, weights, order, augmentation, dropout and bootstrap")
    precision: Precision = Field("auto", description="auto is bf16 where the hardware multiplies it natively")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread over all classes")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    adapt: AdaptConfig = AdaptConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


class Classification:
    """The classification task; see `tasks.base.Task` for the contract."""

    Config = ClassificationConfig
    higher_is_better = staticmethod(higher_is_better)
    measured = ("validation", "test")
    test_set = "root"
    measures_start = False
    also_selectable: tuple[str, ...] = ()
    conditions: dict[str, Any] = {}  # noqa: RUF012 (never mutated)
    compared = staticmethod(compared)
    line = staticmethod(line)

    def __init__(
        self,
        config: ClassificationConfig,
        classes: list[str],
        engine: Engine,
        say: Say,
        saved: Path | None = None,
    ) -> None:
        self.config, self.classes, self.engine, self.say = config, classes, engine, say
        engine.seed(config.seed)
        self.model, self.audit = self._adapted(saved)
        engine.place(self.model)
        engine.share_parameters([self.model])
        self.modules = {"model": self.model}
        self.fit = config.data.fit or self.model.fit
        self.layout = memory_format(self.model)
        self.metric = ClassificationMetric(classes)
        self.selectable = ("loss", *self.metric.names, *self.also_selectable)

    def _adapted(self, saved: Path | None) -> "tuple[Classifier, Audit]":
        """The model with what trains in it chosen, and the audit of that."""
        model = backbones.build(self.config.model, self.classes, saved)
        return model, adaptation.apply(model, self.config.adapt)

    # ---- data ---------------------------------------------------------------------------------

    @property
    def held_size(self) -> int:
        """Side of the images as they are held and given to the model."""
        return self.config.data.size or self.model.image_size

    @staticmethod
    def load(config: ClassificationConfig) -> "DatasetDict":
        """train, validation and test, before anything is decoded."""
        return load(config.data, config.seed)

    @staticmethod
    def load_test(config: ClassificationConfig, classes: list[str]) -> "Dataset":
        """Another test set for a finished run."""
        return load_test_set(config.data, classes)

    def prepare(self, data: "DatasetDict") -> "DatasetDict":
        """Decode (once), cache frozen features where that is sound; returns the data without unreadable images."""
        options = self.config.data
        found = decode(data, options, self.held_size, self.fit, self.engine, self.say)
        data, self.pixels = found.data, found.pixels
        self.labels = {split: np.asarray(data[split]["label"], dtype=np.int64) for split in data}
        directory = cache.folder(options.cache_dir)
        self._batches = {
            split: self._make_batches(data[split], split, found.hashes[split], directory) for split in data
        }
        if "train" in data:
            self.train = self._batches["train"]
        return data

    def _make_batches(self, dataset: "Dataset", split: str, hashes: list[str], directory: Path) -> Batches:
        config, train = self.config, split == "train"
        augment = config.augment if train and config.augment.active else None
        batches = Batches(
            list(dataset["id"]),
            {"image": self.pixels[split], "label": torch.from_numpy(self.labels[split])},
            batch_size=config.train.batch_size if train else config.evaluation.batch_size,
            seed=config.seed,
            shuffle=train,
            balance=config.train.balance if train else None,
            augment=augment,
            size=self.model.image_size,
            workers=config.train.workers if train else 0,
        )
        if self.model.frozen_backbone and augment is None:
            batches.columns = {
                "features": self._features(batches, split, hashes, directory),
                "label": batches.columns["label"],
            }
        elif self.model.frozen_backbone:
            self.say("Features of the frozen backbone are computed anew each epoch: augmentation changes its input.")
        return batches

    def _features(self, batches: Batches, split: str, hashes: list[str], directory: Path) -> Tensor:
        """What the frozen backbone makes of every image, float32 [N, D], from the cache."""
        size, data = batches.columns["image"].shape[-1], self.config.data
        key = cache.key_of(
            "features-2", state_hash(self.model.backbone), self.model.spec_key(), self.engine.precision,
            self.engine.device.type, torch.__version__, str(size), self.fit, data.sixteen_bit, *hashes,
        )  # fmt: skip
        step = self._images_at_once()

        def inputs() -> Iterator[Batch]:
            for start in range(0, len(batches.ids), step):
                yield self.engine.send(batches.take(np.arange(start, min(start + step, len(batches.ids)))))

        def compute(batch: Batch) -> Tensor:
            with torch.inference_mode(), self.engine.autocast():
                return self.model.features(self.prepared(batch))

        self.model.eval()
        with self.engine.first_alone():
            return cache.features(
                key,
                inputs(),
                len(batches.ids),
                self.model.width,
                compute,
                directory,
                f"features of {split}",
                self.say,
            )

    def _images_at_once(self) -> int:
        """Images in one frozen pass; on a CPU few enough that their maps stay in its cache."""
        most = self.config.evaluation.batch_size
        if self.engine.device.type != "cpu":
            return most
        return min(most, max(8, CACHED_PIXELS // self.model.image_size**2))

    def held_out(self, split: str) -> Batches:
        return self._batches[split]

    def references(self, split: str) -> NDArray[np.int64]:
        return self.labels[split]

    # ---- learning -----------------------------------------------------------------------------

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"model": make_optimizer(adaptation.trainable_parameters(self.model), self.config.train)}

    def train_step(self, batch: Batch) -> Iterator[Loss]:
        logits = self._logits(batch)
        loss = functional.cross_entropy(logits, batch["label"], label_smoothing=self.config.label_smoothing)
        correct = (logits.detach().argmax(1) == batch["label"]).float().mean()
        yield Loss("model", loss, {"accuracy": correct})

    def predict(self, batch: Batch) -> NDArray[np.float64]:
        """Class probabilities, float64 [B, C]."""
        return self._logits(batch).cpu().double().softmax(1).numpy()

    def _logits(self, batch: Batch) -> Tensor:
        """float32 [B, C]"""
        if "features" in batch:
            return self.model.head(batch["features"]).float()
        return self.model(self.prepared(batch)).float()

    def prepared(self, batch: Batch) -> Tensor:
        """uint8 [B, 3, S, S] -> normalised float32, channels last where the model convolves."""
        images = transforms.normalise(batch["image"], self.model.mean, self.model.std)
        return images.contiguous(memory_format=self.layout)

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

    def alarms(self, metrics: dict[str, Any], history: list[dict[str, Any]]) -> list[str]:  # noqa: ARG002
        """Sentences on results that look too good or too bad."""
        found, test = [], metrics["test"]["accuracy"]
        for name, splits in metrics["baselines"].items():
            trivial = splits["test"]["accuracy"]["value"]
            if (test["low"] if test["low"] is not None else test["value"]) <= trivial:
                worse = test["high"] is not None and test["high"] < trivial
                verdict = "Worse than" if worse else "Not clearly better than"
                found.append(
                    f"{verdict} the trivial baseline '{name}': {test['value']:.1%} against {trivial:.1%}. "
                    "Train longer, use a pretrained backbone, or look for wrong labels."
                )
        validation = metrics["validation"]["accuracy"]
        if None not in (validation["low"], test["high"]) and validation["low"] > test["high"]:
            found.append(
                f"Validation ({validation['value']:.1%}) is clearly above test ({test['value']:.1%}): the two splits "
                "differ, or copies of training samples are in validation. Run: finesight data check"
            )
        if test["value"] == 1.0:
            found.append(
                f"Every one of the {test['n']} test samples is right. Before believing it, run: finesight data check"
            )
        return found

    def figures(
        self,
        predictions: dict[str, NDArray[np.float64]],
        history: list[dict[str, Any]],
        metrics: dict[str, Any],
    ) -> Figures:
        from finesight.report.classification import figures

        return figures(self, predictions, history, metrics)

    def predict_images(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Classify files (paths) or uint8 arrays [H, W, 3]: label, confidence and all scores of each."""
        return classify_images(self, inputs)
