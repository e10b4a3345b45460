"""Unsupervised domain adaptation: labels on the source, images only of the target (S9, report 003).

pixelda: a generator repaints source images in the style of the target, against a discriminator, while
the classifier learns on both (Bousmalis et al. 2017). dann: the classifier's features are made alike by a
reversed gradient (Ganin et al. 2016). source-only and target-only are the bounds on either side.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from finesight import adaptation
from finesight.config import Section
from finesight.data import domains, transforms
from finesight.data.batches import Batch, Batches
from finesight.data.decoding import decode
from finesight.data.domains import DomainDataConfig
from finesight.engine import Engine, Precision
from finesight.errors import ConfigError
from finesight.evaluate import EvaluationConfig, predict, scores
from finesight.losses.content import content_similarity
from finesight.metrics import kinds
from finesight.metrics.classification import ClassificationMetric
from finesight.metrics.information import information
from finesight.models import backbones
from finesight.models.backbones import ModelConfig
from finesight.models.dann import DomainHead
from finesight.models.pixelda import PixelDADiscriminator, PixelDAGenerator, spectators
from finesight.optimization import TrainConfig, make_optimizer
from finesight.tasks.base import Figures, Loss, Say
from finesight.tasks.classifying import classify_images, compared, label_table, line, trivial_baselines

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from finesight.metrics.bootstrap import Metric

VALIDATORS = ("generated_accuracy", "target_information", "adaptation_score")
_SIGNED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # mean and deviation that map [0, 1] to [-1, 1]
JUDGED = 5000
"""Target training images that the validator looks at, without their labels."""


class PixelDAConfig(Section):
    """The weights of PixelDA's losses, and its two networks."""

    adversarial: Literal["non-saturating", "minimax"] = Field(
        "non-saturating", description="Generator's adversarial loss: -log D(fake), or the paper's log(1 - D(fake))"
    )
    discriminator_weight: float = Field(0.13, ge=0, description="Weight of the discriminator's loss in its own step")
    adversarial_weight: float = Field(0.011, ge=0, description="Weight of the adversarial loss in the generator's step")
    task_weight: float = Field(0.01, ge=0, description="Weight of the classifier's loss in the generator's step")
    content_weight: float = Field(0.0, ge=0, description="Weight of the content similarity (masked pairwise MSE)")
    content_threshold: float = Field(
        0.2, ge=0, le=1, description="Pixels of the source brighter than this, on [0, 1], are content"
    )
    noise: int = Field(10, ge=1, description="Length of the generator's noise vector, uniform in [-1, 1]")
    width: int = Field(64, ge=4, description="Channels of the generator")
    blocks: int = Field(6, ge=0, description="Residual blocks of the generator")
    first_stride: int = Field(1, ge=1, le=2, description="Stride of the discriminator's first convolution")


class AdaptationModelConfig(ModelConfig):
    """The classifier that is adapted."""

    name: str = Field("pixelda", min_length=1, description=str(ModelConfig.model_fields["name"].description))


class AdaptationTrainConfig(TrainConfig):
    """How the weights are learned; the epoch is chosen without target labels."""

    select: str = Field(
        "adaptation_score",
        description=f"Picks the best epoch and drives plateau and early stop: {', '.join(VALIDATORS)}, or a "
        "metric on source validation images such as accuracy",
    )


class DomainAdaptationConfig(Section):
    """Everything that decides a domain adaptation run."""

    task: Literal["domain-adaptation"] = Field("domain-adaptation", description="Kind of learning")
    description: str = Field("", description="What this recipe does, for `finesight list`")
    seed: int = Field(0, ge=0, description="Seed of splits, weights, order, noise, dropout and bootstrap")
    precision: Precision = Field("auto", description="auto is bf16 where the hardware multiplies it natively")
    method: Literal["pixelda", "dann", "source-only", "target-only"] = Field("pixelda", description="How to adapt")
    data: DomainDataConfig = DomainDataConfig()
    model: AdaptationModelConfig = AdaptationModelConfig()
    pixelda: PixelDAConfig = PixelDAConfig()
    train: AdaptationTrainConfig = AdaptationTrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _possible_without_target_labels(self) -> "DomainAdaptationConfig":
        if self.train.balance is not None:
            raise ValueError("train.balance is for classification; the target's classes are not known")
        if self.train.select == "oracle_accuracy":
            raise ValueError("train.select oracle_accuracy: target test labels never choose the epoch; name another")
        if self.data.margin * 4 > (self.data.size or self.model.image_size or 32):
            raise ValueError(f"data.margin {self.data.margin}: more than half of the image would be border")
        return self


class DomainAdaptation:
    """The domain adaptation task; see `tasks.base.Task` for the contract."""

    Config = DomainAdaptationConfig
    test_set = "target"
    measures_start = False
    conditions: dict[str, Any] = {}  # noqa: RUF012 (never mutated)
    compared = staticmethod(compared)
    line = staticmethod(line)

    def __init__(
        self,
        config: DomainAdaptationConfig,
        classes: list[str],
        engine: Engine,
        say: Say,
        saved: Path | None = None,
    ) -> None:
        self.config, self.classes, self.engine, self.say = config, classes, engine, say
        engine.seed(config.seed)
        self.model = backbones.build(config.model, classes, saved)
        self.model.requires_grad_(True)
        self.modules: dict[str, nn.Module] = {"model": self.model}
        size, options = self.model.image_size, config.pixelda
        if config.method == "pixelda":
            if size <= 8 * options.first_stride:
                other = ", or pixelda.first_stride 1" if options.first_stride > 1 else ""
                raise ConfigError(
                    f"model.image_size {size}: the discriminator would look at a single pixel at last. Give more than "
                    f"{8 * options.first_stride}{other}."
                )
            self.generator = PixelDAGenerator(size, options.noise, options.width, options.blocks)
            self.discriminator = PixelDADiscriminator(options.first_stride, size)
            self.modules |= {"generator": self.generator, "discriminator": self.discriminator}
        elif config.method == "dann":
            self.domain = DomainHead(self.model.width)
            self.modules["domain"] = self.domain
        for module in self.modules.values():
            engine.place(module)
        engine.share_parameters(self.modules.values())
        self.audit = adaptation.audit(nn.ModuleDict(self.modules))
        self.fit = config.data.fit or self.model.fit
        self.metric: Metric = ClassificationMetric(classes)
        known = [name for name in VALIDATORS if name != "generated_accuracy" or config.method == "pixelda"]
        self.selectable = ("loss", *self.metric.names, *known)

    @staticmethod
    def higher_is_better(name: str) -> bool:
        """Whether more of a metric or validator is better."""
        return name in VALIDATORS or kinds.higher_is_better(name)

    # ---- data ---------------------------------------------------------------------------------

    @staticmethod
    def load(config: DomainAdaptationConfig) -> "DatasetDict":
        """train and validation (source), source_test, target_train, test (target); see `domains.load`."""
        return domains.load(config.data, config.seed, supervised_target=config.method == "target-only")

    @staticmethod
    def load_test(config: DomainAdaptationConfig, classes: list[str]) -> "Dataset":
        """Other labelled target images for a finished run."""
        return domains.load_test(config.data, classes)

    def prepare(self, data: "DatasetDict") -> "DatasetDict":
        """Decode every split once; returns the data without unreadable images."""
        config = self.config
        data, self.pixels = self._decoded(data)
        self.labels = {split: np.asarray(data[split]["label"], dtype=np.int64) for split in data}
        self.labelled_target = "test" in data and data["test"]["domain"][0] == "target"
        trained = ("train", "target_train") if self.config.method == "target-only" else ("train",)
        self.measured = tuple(split for split in data if split not in trained and (self.labels[split] >= 0).all())
        self._held_out = {
            split: Batches(
                list(data[split]["id"]),
                {"image": held},
                batch_size=config.evaluation.batch_size,
                seed=config.seed,
            )
            for split, held in self.pixels.items()
        }
        if "train" in data:
            self._prepare_training(list(data["train"]["id"]))
        return data

    @property
    def held_size(self) -> int:
        """Side of the images as they are held and given to the model; the digits of the source lie in a margin."""
        return self.model.image_size

    def _decoded(self, data: "DatasetDict") -> "tuple[DatasetDict, dict[str, Tensor]]":
        """Images uint8 [N, 3, S, S] at the model's size; those of the source inside their margin."""
        options, size = self.config.data, self.model.image_size
        source = {split for split in data if data[split]["domain"][0] == "source"}
        pixels: dict[str, Tensor] = {}
        for margin, splits in ((options.margin, source), (0, set(data) - source)):
            inner = (options.size or size) - 2 * margin
            part = type(data)({split: data[split] for split in data if split in splits})
            found = decode(part, options, inner, self.fit, self.engine, self.say)
            for split, held in found.pixels.items():
                data[split] = found.data[split]
                framed = functional.pad(held, (margin,) * 4) if margin else held
                pixels[split] = transforms.resize(framed, size)
        return data, {split: pixels[split] for split in data}

    def _prepare_training(self, ids: list[str]) -> None:
        """The training batches, in which nothing of the target but its images is."""
        config = self.config
        adapts = config.method in ("pixelda", "dann")
        self.train = Batches(
            ids,
            {"image": self.pixels["train"], "label": torch.from_numpy(self.labels["train"])},
            batch_size=config.train.batch_size,
            seed=config.seed,
            shuffle=True,
            workers=config.train.workers,
            second={"target_image": self.pixels["target_train"]} if adapts else None,
        )
        generator = np.random.default_rng([config.seed, 9])
        judged = np.sort(generator.permutation(len(self.pixels["target_train"]))[:JUDGED])
        target = self._held_out["target_train"]
        self._held_out["judged"] = Batches(
            [target.ids[row] for row in judged],
            {"image": target.columns["image"][judged]},
            batch_size=config.evaluation.batch_size,
        )
        if config.method == "pixelda":
            # Fixed noise: epochs are compared on the same repainted images.
            images = self.pixels["validation"]
            noise = generator.uniform(-1, 1, (len(images), config.pixelda.noise)).astype(np.float32)
            self._held_out["generated"] = Batches(
                self._held_out["validation"].ids,
                {"image": images, "noise": torch.from_numpy(noise)},
                batch_size=config.evaluation.batch_size,
            )
            self.labels["generated"] = self.labels["validation"]

    def held_out(self, split: str) -> Batches:
        return self._held_out[split]

    def references(self, split: str) -> NDArray[np.int64]:
        return self.labels[split]

    # ---- learning -----------------------------------------------------------------------------

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        groups: dict[str, list[nn.Module]] = {"model": [self.model]}
        if self.config.method == "pixelda":
            groups = {"discriminator": [self.discriminator, self.model], "generator": [self.generator]}
        elif self.config.method == "dann":
            groups = {"model": [self.model, self.domain]}
        return {
            name: make_optimizer([p for module in modules for p in module.parameters()], self.config.train)
            for name, modules in groups.items()
        }

    def train_step(self, batch: Batch) -> Iterator[Loss]:
        if self.config.method == "pixelda":
            return self._pixelda_step(batch)
        return self._dann_step(batch) if self.config.method == "dann" else self._supervised_step(batch)

    def _supervised_step(self, batch: Batch) -> Iterator[Loss]:
        logits = self.model(self.normalised(self.prepared(batch["image"]))).float()
        yield Loss("model", functional.cross_entropy(logits, batch["label"]), {"accuracy": _accuracy(logits, batch)})

    def _dann_step(self, batch: Batch) -> Iterator[Loss]:
        images = self.prepared(torch.cat([batch["image"], batch["target_image"]]))
        half = len(batch["label"])
        features = self.model.features(self.normalised(images))
        logits = self.model.head(features[:half]).float()
        # The strength grows from 0 to 1: early features are not yet worth confusing (section 5.2.2).
        done = batch["progress"][0].item() / self.config.train.epochs
        domain = self.domain(features, 2 / (1 + np.exp(-10 * done)) - 1).float()
        adversarial = functional.softplus(domain[:half]).mean() + functional.softplus(-domain[half:]).mean()
        told_apart = ((domain[:half] < 0).float().mean() + (domain[half:] > 0).float().mean()) / 2
        observed = {"accuracy": _accuracy(logits, batch), "domain_accuracy": told_apart}
        yield Loss("model", functional.cross_entropy(logits, batch["label"]) + adversarial, observed)

    def _pixelda_step(self, batch: Batch) -> Iterator[Loss]:
        """Step D updates discriminator and classifier; the code after its yield sees them updated."""
        options, labels = self.config.pixelda, batch["label"]
        source, target = self.prepared(batch["image"]), self.prepared(batch["target_image"])
        fake = self.generator(source, self.generator.draw(len(source), source.device))
        painted = fake.detach()

        real_logit, fake_logit = self.discriminator(target).float(), self.discriminator(painted).float()
        discrimination = functional.softplus(-real_logit).mean() + functional.softplus(fake_logit).mean()
        on_source, on_fake = self.model(self.normalised(torch.cat([source, painted]))).float().chunk(2)
        task = functional.cross_entropy(on_source, labels) + functional.cross_entropy(on_fake, labels)
        observed = {
            "discrimination": discrimination.detach(),
            "told_apart": ((real_logit > 0).float().mean() + (fake_logit < 0).float().mean()) / 2,
            "accuracy": _accuracy(on_source, batch),
            "generated_accuracy": _accuracy(on_fake, batch),
        }
        yield Loss("discriminator", options.discriminator_weight * discrimination + task, observed)

        # The generator has not moved, so its graph of `fake` is good; the other two have, so they run anew.
        with spectators(self.discriminator, self.model):
            fake_logit = self.discriminator(fake).float()
            task = functional.cross_entropy(self.model(self.normalised(fake)).float(), labels)
        saturating = -functional.softplus(fake_logit).mean()
        fooling = saturating if options.adversarial == "minimax" else functional.softplus(-fake_logit).mean()
        loss = options.adversarial_weight * fooling + options.task_weight * task
        observed = {"fooling": fooling.detach()}
        if options.content_weight:
            content = content_similarity(source, fake, source > 2 * options.content_threshold - 1)
            loss = loss + options.content_weight * content
            observed["content"] = content.detach()
        yield Loss("generator", loss, observed)

    def prepared(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> float32 in [-1, 1], channels last: what the generator reads and writes."""
        return transforms.normalise(images, *_SIGNED).contiguous(memory_format=torch.channels_last)

    def normalised(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] as the classifier's backbone expects them; the same for PixelDA's own classifier."""
        if (self.model.mean, self.model.std) == _SIGNED:
            return images
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.model.mean, self.model.std))
        return ((images + 1) / 2 - mean) / std

    def predict(self, batch: Batch) -> NDArray[np.float64]:
        """Class probabilities, float64 [B, C]; of the repainted images where the batch has noise."""
        images = self.prepared(batch["image"])
        if "noise" in batch:
            images = self.generator(images, batch["noise"])
        return self.model(self.normalised(images)).float().cpu().double().softmax(1).numpy()

    def validators(self, found: dict[str, float]) -> dict[str, float]:
        """What can be known without target labels, and, apart, what the labels would have said.

        `target_information` is the mutual information of input and prediction on target images, divided by
        its bound ln C (Bridle et al. 1992, Shi & Sha 2012): high where predictions are sure, and spread over
        the classes. `adaptation_score` is its mean with the accuracy on source validation images (and, for
        pixelda, on their repainted versions). `oracle_accuracy`, on the target test split, is only recorded.
        """
        probabilities = predict(self, "judged", self.engine)
        values = {"target_information": information(probabilities)}
        accuracies = [found["accuracy"]]
        if self.config.method == "pixelda":
            values["generated_accuracy"] = scores(self, "generated", predict(self, "generated", self.engine))[
                "accuracy"
            ]
            accuracies.append(values["generated_accuracy"])
        values["adaptation_score"] = (float(np.mean(accuracies)) + values["target_information"]) / 2
        if self.labelled_target:
            values["oracle_accuracy"] = scores(self, "test", predict(self, "test", self.engine))["accuracy"]
        return values

    def trainable_state(self) -> dict[str, dict[str, Tensor]]:
        return {name: adaptation.trainable_state(module) for name, module in self.modules.items()}

    def frozen_state(self) -> dict[str, dict[str, Tensor]]:
        return {}

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
        from finesight.report.domains import alarms

        return alarms(self, metrics, history)

    def figures(
        self,
        predictions: dict[str, NDArray[np.float64]],
        history: list[dict[str, Any]],
        metrics: dict[str, Any],
    ) -> Figures:
        from finesight.report.domains import figures

        return figures(self, predictions, history, metrics)

    def predict_images(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Classify files (paths) or uint8 arrays [H, W, 3] of the target with the adapted classifier."""
        return classify_images(self, inputs)


def _accuracy(logits: Tensor, batch: Batch) -> Tensor:
    return (logits.detach().argmax(1) == batch["label"]).float().mean()
