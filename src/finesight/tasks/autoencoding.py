"""Autoencoding (S10): a variational autoencoder learns what normal images look like."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from finesight import adaptation
from finesight.config import Section
from finesight.data import draws, unlabelled
from finesight.data.batches import Batch, Batches
from finesight.data.decoding import decode
from finesight.data.transforms import AugmentConfig
from finesight.data.unlabelled import ANOMALIES, AutoencodingDataConfig
from finesight.engine import Engine, Precision
from finesight.evaluate import EvaluationConfig
from finesight.losses import elbo
from finesight.metrics import images as quality
from finesight.metrics import kinds
from finesight.metrics.anomaly import auroc_interval
from finesight.metrics.means import MeanMetric
from finesight.models import vae
from finesight.models.vae import VAEConfig
from finesight.optimization import TrainConfig, make_optimizer
from finesight.tasks.base import Figures, Loss, Say
from finesight.tasks.pictures import (
    held,
    in_order,
    mean_image,
    measure_columns,
    measured_images,
    numbers_of,
    pixel_conditions,
    principal_components,
    refuse_balance,
    refuse_diverged,
)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

MEASURES = ("psnr", "ssim", "mse", "negative_elbo", "reconstruction_nats", "kl")
"""Of each image: its reconstruction from the posterior mean, and the bound at one sample of the posterior."""

SCORES = {"reconstruction error": "mse", "negative ELBO": "negative_elbo"}
"""Anomaly scores by the measure they are."""


class AutoencodingTrainConfig(TrainConfig):
    """How the weights are learned."""

    select: str = Field(
        "negative_elbo", description=f"What picks the best epoch, on validation images: {', '.join(MEASURES[:-1])}"
    )


class AutoencodingConfig(Section):
    """Everything that decides an autoencoding run."""

    task: Literal["autoencoding"] = Field("autoencoding", description="Kind of learning")
    description: str = Field("", description="What this recipe does, for `finesight list`")
    seed: int = Field(0, ge=0, description="Seed of splits, weights, order, augmentation, noise and bootstrap")
    precision: Precision = Field("auto", description="auto is bf16 where the hardware multiplies it natively")
    beta: float = Field(1.0, ge=0, description="Weight of the KL term; both terms are sums over an image, in nats")
    data: AutoencodingDataConfig = AutoencodingDataConfig()
    model: VAEConfig = VAEConfig()
    augment: AugmentConfig = AugmentConfig()
    train: AutoencodingTrainConfig = AutoencodingTrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    without_classes = model_validator(mode="after")(refuse_balance)


class Autoencoding:
    """The autoencoding task; see `tasks.base.Task` for the contract."""

    Config = AutoencodingConfig
    higher_is_better = staticmethod(kinds.higher_is_better)
    measured: tuple[str, ...] = ("validation", "test")
    test_set = "root"
    measures_start = False
    line = staticmethod(numbers_of)

    def __init__(
        self,
        config: AutoencodingConfig,
        classes: list[str],
        engine: Engine,
        say: Say,
        saved: Path | None = None,
    ) -> None:
        self.config, self.classes, self.engine, self.say = config, classes, engine, say
        engine.seed(config.seed)
        self.model = vae.build(config.model, saved)
        self.audit = adaptation.audit(self.model)
        engine.place(self.model)
        engine.share_parameters([self.model])
        self.modules = {"model": self.model}
        self.fit = config.data.fit or "squash"
        self.metric = MeanMetric(MEASURES, "negative_elbo")
        self.selectable = ("loss", *MEASURES[:-1])
        self.conditions: dict[str, Any] = {**pixel_conditions(self), "beta": config.beta}

    # ---- data ---------------------------------------------------------------------------------

    @staticmethod
    def load(config: AutoencodingConfig) -> "DatasetDict":
        """train, validation, test, and the anomalies where they are given; labels are not read."""
        return unlabelled.load(config.data, config.seed)

    @staticmethod
    def load_test(config: AutoencodingConfig, classes: list[str]) -> "Dataset":
        """Another test set for a finished run."""
        return unlabelled.load_test(config.data, classes)

    def prepare(self, data: "DatasetDict") -> "DatasetDict":
        """Decode every split once; returns the data without unreadable images."""
        options, size = self.config.data, self.model.image_size
        found = decode(data, options, options.size or size, self.fit, self.engine, self.say)
        data, self.pixels = found.data, found.pixels
        self.data = data
        self._batches = {
            split: held(list(data[split]["id"]), self.pixels[split], split, self.config, size) for split in data
        }
        self.measured = tuple(split for split in data if split != "train")
        if "train" in data:
            self.train = self._batches["train"]
        return data

    def held_out(self, split: str) -> Batches:
        return self._batches[split]

    def references(self, split: str) -> NDArray[np.int64]:
        """Nothing: the images themselves are compared in `predict`. int64 [N]"""
        return np.zeros(len(self._batches[split].ids), np.int64)

    # ---- learning -----------------------------------------------------------------------------

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"model": make_optimizer(adaptation.trainable_parameters(self.model), self.config.train)}

    def train_step(self, batch: Batch) -> Iterator[Loss]:
        images = self.prepared(batch["image"])
        logits, mean, log_variance = self.model(images, self.noise(batch["id"], 1 + int(batch["progress"][0])))
        reconstruction, kl = elbo.reconstruction_nats(logits, images), elbo.kl_nats(mean, log_variance)
        observed = {"reconstruction_nats": reconstruction.detach().mean(), "kl": kl.detach().mean()}
        yield Loss("model", elbo.negative_elbo(reconstruction, kl, self.config.beta).mean(), observed)

    def noise(self, ids: Sequence[str], epoch: int = 0) -> Tensor:
        """Standard normal numbers, float32 [B, D]: in training of each sample and epoch; epoch 0 is an evaluation."""
        # One and the same draw for every image of an evaluation: its score cannot depend on its name.
        drawn = (
            draws.normal(ids, self.model.latent, self.config.seed, epoch)
            if epoch
            else np.tile(draws.normal(["evaluation"], self.model.latent), (len(ids), 1))
        ).astype(np.float32)
        return torch.from_numpy(drawn).to(self.engine.device)

    @staticmethod
    def prepared(images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> float32 in [0, 1], channels last."""
        return (images.float() / 255).contiguous(memory_format=torch.channels_last)

    def predict(self, batch: Batch) -> NDArray[np.float64]:
        """The `MEASURES` of each image, float64 [B, 6]."""
        images = self.prepared(batch["image"])
        logits, mean, log_variance = self.model(images, self.noise(batch["id"]))
        reconstruction, kl = elbo.reconstruction_nats(logits, images), elbo.kl_nats(mean, log_variance)
        made = self.model.decoder(mean).float().sigmoid()
        refuse_diverged(made, batch["id"])
        found = quality.scores(made, images)
        bound = [elbo.negative_elbo(reconstruction, kl, self.config.beta), reconstruction, kl]
        return np.column_stack(
            [*(found[name] for name in MEASURES[:3]), *(value.double().cpu().numpy() for value in bound)]
        )

    def reconstructed(self, images: Tensor) -> Tensor:
        """Held images uint8 [B, 3, S, S] from their posterior means, float32 in [0, 1]."""
        with self._judging():
            mean, _ = self.model.encoder(self.prepared(images.to(self.engine.device)))
            return self.model.decoder(mean).float().sigmoid()

    def decoded(self, codes: Tensor) -> Tensor:
        """Images of latent codes [B, D], float32 in [0, 1] [B, 3, S, S]."""
        with self._judging():
            return self.model.decoder(codes.to(self.engine.device)).float().sigmoid()

    def codes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior means and log-variances [B, D] of held images uint8 [B, 3, S, S]."""
        with self._judging():
            mean, log_variance = self.model.encoder(self.prepared(images.to(self.engine.device)))
            return mean.float(), log_variance.float()

    def validators(self, scores: dict[str, float]) -> dict[str, float]:  # noqa: ARG002
        return {}

    def trainable_state(self) -> dict[str, dict[str, Tensor]]:
        return {"model": adaptation.trainable_state(self.model)}

    def frozen_state(self) -> dict[str, dict[str, Tensor]]:
        return {}

    def save_spec(self, directory: Path) -> None:
        vae.save_spec(self.model, directory)

    # ---- judging ------------------------------------------------------------------------------

    def baselines(self) -> dict[str, dict[str, NDArray[Any]]]:
        """The training images' mean, which needs no code, and a linear autoencoder with as many dimensions."""
        average = mean_image(self.pixels["train"], self.model.image_size)
        linear = principal_components(self.held_out("train"), self.model.latent)
        probability = average.clamp(1 / 510, 1 - 1 / 510)
        rows: dict[str, list[NDArray[np.float64]]] = {"mean image": [], self._components: []}
        for images in in_order(self.held_out("test")):
            entropy = functional.binary_cross_entropy(probability.expand_as(images), images, reduction="none")
            surprise = entropy.flatten(1).sum(1).double().numpy()
            rows["mean image"].append(_rows(average.expand_as(images), images, surprise))
            rows[self._components].append(_rows(linear(images), images, None))
        return {name: {"test": np.concatenate(parts)} for name, parts in rows.items()}

    @property
    def _components(self) -> str:
        return f"{self.model.latent} principal component{'s' if self.model.latent > 1 else ''}"

    def further(self, predictions: dict[str, NDArray[Any]], groups: dict[str, list[str]]) -> dict[str, Any]:
        """How well each anomaly score tells the anomalies from the test images: AUROC."""
        if ANOMALIES not in predictions:
            return {}
        options = self.config.evaluation
        found = {
            name: auroc_interval(
                predictions["test"][:, MEASURES.index(measure)],
                predictions[ANOMALIES][:, MEASURES.index(measure)],
                resamples=options.resamples,
                seed=self.config.seed,
                level=options.level,
                groups_normal=groups["test"],
                groups_anomalous=groups[ANOMALIES],
            )
            for name, measure in SCORES.items()
        }
        return {"anomaly": found}

    def table(self, split: str, predictions: NDArray[Any]) -> dict[str, list[Any]]:  # noqa: ARG002
        return measure_columns(predictions, MEASURES)

    @staticmethod
    def compared(classes: list[str], own: list[str], rows: dict[str, list[Any]]) -> tuple[MeanMetric, Any]:  # noqa: ARG004
        metric = MeanMetric(MEASURES, "negative_elbo")
        return metric, metric.statistics(np.asarray(rows["scores"]))

    def alarms(self, metrics: dict[str, Any], history: list[dict[str, Any]]) -> list[str]:  # noqa: ARG002
        """Sentences on results that look too good or too bad."""
        from finesight.report.autoencoding import alarms

        return alarms(self, metrics)

    def figures(
        self,
        predictions: dict[str, NDArray[np.float64]],
        history: list[dict[str, Any]],
        metrics: dict[str, Any],
    ) -> Figures:
        from finesight.report.autoencoding import figures

        return figures(self, predictions, history, metrics)

    def predict_images(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The measures of files (paths) or uint8 arrays [H, W, 3]: high error or negative ELBO is unusual."""
        return measured_images(self, inputs, MEASURES)

    @contextmanager
    def _judging(self) -> Iterator[None]:
        self.model.eval()
        with torch.inference_mode(), self.engine.autocast():
            yield


def _rows(made: Tensor, images: Tensor, surprise: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """`MEASURES` of a trivial reconstruction; its bound is `surprise`, as it has no code to pay for, or undefined."""
    found = quality.scores(made, images)
    nats = np.full(len(images), np.nan) if surprise is None else surprise
    none = np.full(len(images), np.nan) if surprise is None else np.zeros(len(images))
    return np.column_stack([*(found[name] for name in MEASURES[:3]), nats, nats, none])
