"""Masked reconstruction (S1): a ViT-MAE hides most patches of an image and learns to paint them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from finesight import adaptation
from finesight.config import Section
from finesight.data import draws, transforms, unlabelled
from finesight.data.batches import Batch, Batches
from finesight.data.decoding import decode
from finesight.data.transforms import AugmentConfig
from finesight.data.unlabelled import ImagesConfig
from finesight.engine import Engine, Precision
from finesight.evaluate import EvaluationConfig
from finesight.metrics import images as quality
from finesight.metrics import kinds
from finesight.metrics.means import MeanMetric
from finesight.models import mae
from finesight.models.mae import MAEConfig
from finesight.optimization import TrainConfig, make_optimizer
from finesight.tasks import inpainting
from finesight.tasks.base import Figures, Loss, Say
from finesight.tasks.pictures import (
    held,
    mean_image,
    measure_columns,
    measured_images,
    numbers_of,
    pixel_conditions,
    refuse_balance,
    refuse_diverged,
)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

MEASURES = ("masked_psnr", "masked_ssim", "masked_mse", "psnr", "ssim", "mse", "objective")
"""Of each image: on the hidden pixels, on all pixels (visible ones pasted in), and the loss of the training."""


class ReconstructionTrainConfig(TrainConfig):
    """How the weights are learned."""

    select: str = Field(
        "masked_psnr", description=f"What picks the best epoch, on validation images: {', '.join(MEASURES)}"
    )


class ReconstructionConfig(Section):
    """Everything that decides a masked reconstruction run."""

    task: Literal["reconstruction"] = Field("reconstruction", description="Kind of learning")
    description: str = Field("", description="What this recipe does, for `finesight list`")
    seed: int = Field(0, ge=0, description="Seed of splits, weights, masks, order, augmentation and bootstrap")
    precision: Precision = Field("auto", description="auto is bf16 where the hardware multiplies it natively")
    mask_ratio: float = Field(0.75, gt=0, lt=1, description="Share of the patches that are hidden")
    mask_seed: int = Field(0, ge=0, description="Seed of the masks of every evaluation; those of training follow seed")
    norm_pix_loss: bool | None = Field(
        None, description="Predict each patch standardised by its own mean and deviation; the model's own habit if none"
    )
    data: ImagesConfig = ImagesConfig()
    model: MAEConfig = MAEConfig()
    augment: AugmentConfig = AugmentConfig()
    train: ReconstructionTrainConfig = ReconstructionTrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    without_classes = model_validator(mode="after")(refuse_balance)


class Reconstructed(NamedTuple):
    """Float32 in [0, 1]: original, prediction everywhere, prediction with the visible pixels; bool [B, S, S]."""

    original: Tensor
    predicted: Tensor
    pasted: Tensor
    hidden: Tensor


class Reconstruction:
    """The masked reconstruction task; see `tasks.base.Task` for the contract."""

    Config = ReconstructionConfig
    higher_is_better = staticmethod(kinds.higher_is_better)
    measured = ("validation", "test")
    test_set = "root"
    measures_start = True
    line = staticmethod(numbers_of)

    def __init__(
        self,
        config: ReconstructionConfig,
        classes: list[str],
        engine: Engine,
        say: Say,
        saved: Path | None = None,
    ) -> None:
        self.config, self.classes, self.engine, self.say = config, classes, engine, say
        engine.seed(config.seed)
        self.model = mae.build(config.model, config.mask_ratio, saved)
        given = config.norm_pix_loss
        self.normalised = bool(self.model.net.config.norm_pix_loss) if given is None else given
        self.audit = adaptation.audit(self.model)
        engine.place(self.model)
        engine.share_parameters([self.model])
        self.modules = {"model": self.model}
        self.fit = config.data.fit or self.model.fit
        self.metric = MeanMetric(MEASURES, "objective")
        self.selectable = ("loss", *MEASURES)
        self.conditions = {
            **pixel_conditions(self),
            "mask_ratio": config.mask_ratio,
            "patches": self.model.patches,
            "mask_seed": config.mask_seed,
            "norm_pix_loss": self.normalised,
            "scale": [list(self.model.mean), list(self.model.std)],
        }

    # ---- data ---------------------------------------------------------------------------------

    @staticmethod
    def load(config: ReconstructionConfig) -> "DatasetDict":
        """train, validation and test, before anything is decoded; labels are not read."""
        return unlabelled.load(config.data, config.seed)

    @staticmethod
    def load_test(config: ReconstructionConfig, classes: list[str]) -> "Dataset":
        """Another test set for a finished run."""
        return unlabelled.load_test(config.data, classes)

    def prepare(self, data: "DatasetDict") -> "DatasetDict":
        """Decode every split once; returns the data without unreadable images."""
        options = self.config.data
        found = decode(data, options, options.size or self.model.image_size, self.fit, self.engine, self.say)
        data, self.pixels = found.data, found.pixels
        self._batches = {
            split: held(list(data[split]["id"]), self.pixels[split], split, self.config, self.model.image_size)
            for split in data
        }
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
        # A mask of its own for each image and epoch, whatever the batch.
        noise = self.noise(batch["id"], 1 + int(batch["progress"][0]))
        predicted, mask = self.model(images, noise)
        yield Loss("model", self.objective(predicted, images, mask).mean())

    def noise(self, ids: Sequence[str], epoch: int = 0) -> Tensor:
        """What decides the masks: distinct numbers, float32 [B, L]; epoch 0 is an evaluation."""
        key = (self.config.seed, epoch) if epoch else (self.config.mask_seed, 0)
        drawn = draws.uniform(ids, self.model.patches, *key)
        # Ranks: their order is the same on every device, and there are no ties.
        ranks = drawn.argsort(1, kind="stable").argsort(1, kind="stable").astype(np.float32)
        return torch.from_numpy(ranks).to(self.engine.device)

    def objective(self, predicted: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error on the hidden patches of each image, as in He et al. 2022. float32 [B]"""
        errors = (predicted.float() - self.model.targets(images, self.normalised)).square().mean(-1)
        return (errors * mask).sum(1) / mask.sum(1)

    def prepared(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> normalised float32."""
        return transforms.normalise(images, self.model.mean, self.model.std)

    def predict(self, batch: Batch) -> NDArray[np.float64]:
        """The `MEASURES` of each image under its own fixed mask, float64 [B, 7]."""
        images = self.prepared(batch["image"])
        predicted, mask = self.model(images, self.noise(batch["id"]))
        objective = self.objective(predicted, images, mask)
        refuse_diverged(objective, batch["id"])
        shown = self._shown(batch["image"], predicted.float(), images, mask)
        return np.column_stack([measured(shown.original, shown.pasted, shown.hidden), objective.double().cpu().numpy()])

    def reconstruct(self, batch: Batch) -> Reconstructed:
        """What is shown and measured of a batch of held images."""
        self.model.eval()
        batch = self.engine.send(batch)
        with torch.inference_mode(), self.engine.autocast():
            images = self.prepared(batch["image"])
            predicted, mask = self.model(images, self.noise(batch["id"]))
        return self._shown(batch["image"], predicted.float(), images, mask)

    def _shown(self, held_images: Tensor, predicted: Tensor, images: Tensor, mask: Tensor) -> Reconstructed:
        original, hidden = held_images.float() / 255, self.model.pixel_mask(mask)
        made = self.model.images(predicted, images, self.normalised)
        return Reconstructed(original, made, inpainting.paste(original, made, hidden), hidden)

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
        """The training images' mean, each image's mean visible colour, and an interpolation; same masks."""
        average = mean_image(self.pixels["train"], self.model.image_size)
        ways = {
            "mean image": lambda images, hidden: average.expand_as(images),  # noqa: ARG005
            "mean of the visible patches": inpainting.mean_of_visible,
            "interpolation": inpainting.interpolated,
        }
        if self.normalised:
            patch = self.model.net.config.patch_size
            ways["true mean of each hidden patch"] = lambda images, hidden: inpainting.patch_means(images, patch)  # noqa: ARG005
        rows: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ways}
        for images, hidden in self._masked("test"):
            for name, fill in ways.items():
                filled = inpainting.paste(images, fill(images, hidden), hidden)
                # No patches are predicted in the model's own scale: its loss is not defined here.
                rows[name].append(np.column_stack([measured(images, filled, hidden), np.full(len(images), np.nan)]))
        return {name: {"test": np.concatenate(parts)} for name, parts in rows.items()}

    def _masked(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, 3, S, S] in [0, 1] and their hidden pixels [B, S, S], as `predict` sees them."""
        batches = self.held_out(split)
        visible = int(self.model.patches * (1 - self.config.mask_ratio))
        for start in range(0, batches.samples, 64):
            batch = batches.take(np.arange(start, min(start + 64, batches.samples)))
            order = torch.argsort(self.noise(batch["id"]).cpu(), dim=1)
            mask = torch.ones(order.shape).scatter_(1, order[:, :visible], 0.0)
            yield batch["image"].float() / 255, self.model.pixel_mask(mask)

    def further(self, predictions: dict[str, NDArray[Any]], groups: dict[str, list[str]]) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def table(self, split: str, predictions: NDArray[Any]) -> dict[str, list[Any]]:  # noqa: ARG002
        return measure_columns(predictions, MEASURES)

    @staticmethod
    def compared(classes: list[str], own: list[str], rows: dict[str, list[Any]]) -> tuple[MeanMetric, Any]:  # noqa: ARG004
        metric = MeanMetric(MEASURES, "objective")
        return metric, metric.statistics(np.asarray(rows["scores"]))

    def alarms(self, metrics: dict[str, Any], history: list[dict[str, Any]]) -> list[str]:  # noqa: ARG002
        """Sentences on results that look too good or too bad."""
        from finesight.report.reconstruction import beaten

        found = beaten(metrics, "masked_psnr", "Train longer, or begin from pretrained weights.")
        if self.normalised:
            found.append(
                "The model predicts standardised patches (norm_pix_loss), so each hidden patch was given its true mean "
                "and deviation: its pixel scores are better than a real reconstruction's and no match for others."
            )
        return found

    def figures(
        self,
        predictions: dict[str, NDArray[np.float64]],
        history: list[dict[str, Any]],
        metrics: dict[str, Any],
    ) -> Figures:
        from finesight.report.reconstruction import figures

        return figures(self, predictions, history, metrics)

    def predict_images(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The scores of files (paths) or uint8 arrays [H, W, 3] under a mask decided by the file's name."""
        return measured_images(self, inputs, MEASURES)


def measured(original: Tensor, pasted: Tensor, hidden: Tensor) -> NDArray[np.float64]:
    """The pixel measures of `MEASURES` in their order, float64 [B, 6]; images in [0, 1], hidden bool [B, S, S]."""
    masked, whole = quality.scores(pasted, original, hidden), quality.scores(pasted, original)
    names = ("psnr", "ssim", "mse")
    return np.column_stack([*(masked[name] for name in names), *(whole[name] for name in names)])
