"""Captioning (S2): what an image shows, in words; an image encoder and a language model trained on captions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from finesight import adaptation
from finesight.adaptation import captioners
from finesight.adaptation.captioners import CaptionAdaptConfig
from finesight.adaptation.halving import halve_frozen
from finesight.config import Section
from finesight.data import captions as captioned
from finesight.data import transforms
from finesight.data.batches import Batch, Batches
from finesight.data.captions import CaptionsConfig
from finesight.data.decoding import decode
from finesight.data.transforms import AugmentConfig
from finesight.engine import Engine, Precision
from finesight.metrics.kinds import higher_is_better
from finesight.models import captioner
from finesight.models.captioner import CaptionerConfig
from finesight.optimization import TrainConfig, make_optimizer
from finesight.tasks import caption_controls, caption_splits, encoder_cache
from finesight.tasks.base import Figures, Loss, Say
from finesight.tasks.caption_metric import CaptionEvaluationConfig, CaptionMetric
from finesight.tasks.generation import GenerationOptions, likelihood, refuse_leak, text_of, token_losses, write
from finesight.tasks.pictures import refuse_balance, square_images

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


class CaptionTrainConfig(TrainConfig):
    """How the weights are learned."""

    select: str = Field(
        "loss",
        description="What picks the best epoch, on validation: the loss per token, or a caption metric such as cider",
    )


class CaptioningConfig(Section):
    """Everything that decides a captioning run."""

    task: Literal["captioning"] = Field("captioning", description="Kind of learning")
    description: str = Field("", description="What this recipe does, for `finesight list`")
    seed: int = Field(
        0, ge=0, description="Seed of splits, weights, order, augmentation, dropout, sampling and bootstrap"
    )
    precision: Precision = Field("auto", description="auto is bf16 where the hardware multiplies it natively")
    cache_encoder: Literal["auto", "on", "off"] = Field(
        "auto", description="Keep the frozen image encoder's outputs on disk; auto does so wherever that is sound"
    )
    data: CaptionsConfig = CaptionsConfig()
    model: CaptionerConfig = CaptionerConfig()
    adapt: CaptionAdaptConfig = CaptionAdaptConfig()
    augment: AugmentConfig = AugmentConfig()
    train: CaptionTrainConfig = CaptionTrainConfig()
    generation: GenerationOptions = GenerationOptions()
    evaluation: CaptionEvaluationConfig = CaptionEvaluationConfig()

    without_classes = model_validator(mode="after")(refuse_balance)

    @model_validator(mode="after")
    def _not_compiled(self) -> "CaptioningConfig":
        if self.train.compile:
            raise ValueError(
                "train.compile: has no effect here, where the parts of a captioner are called one by one; leave it out"
            )
        return self


class Captioning:
    """The captioning task; see `tasks.base.Task` for the contract.

    A prediction is one row: the negative log-likelihood of all references of the image, how many tokens these have, and
    the tokens that the model wrote by itself (`generation.write`). Only the latter are ever scored as a caption.
    """

    Config = CaptioningConfig
    higher_is_better = staticmethod(higher_is_better)
    measured = ("validation", "test")
    test_set = "root"
    measures_start = False

    def __init__(
        self,
        config: CaptioningConfig,
        classes: list[str],
        engine: Engine,
        say: Say,
        saved: Path | None = None,
    ) -> None:
        self.config, self.classes, self.engine, self.say = config, classes, engine, say
        engine.seed(config.seed)
        self.model = captioner.build(config.model, saved)
        self.audit = captioners.apply(self.model, config.adapt)
        encoder_cache.check(config, self.model)
        engine.place(self.model)
        engine.share_parameters([self.model])
        self.modules = {"model": self.model}
        self.fit = config.data.fit or self.model.fit
        self.metric = CaptionMetric(self.texts, config.evaluation.encoder(engine.device))
        self.selectable = ("loss", *self.metric.names)
        self.conditions = {"caption metrics": self.metric.signature}
        self.model.notes.append(f"Caption scores: {self.metric.signature}.")
        self.written: dict[str, NDArray[np.float64]] = {}
        """The last prediction of each sample, by its id."""

    # ---- data ---------------------------------------------------------------------------------

    @staticmethod
    def load(config: CaptioningConfig) -> "DatasetDict":
        """train, validation and test, before anything is decoded."""
        return captioned.load(config.data, config.seed)

    @staticmethod
    def load_test(config: CaptioningConfig, classes: list[str]) -> "Dataset":
        """Another test set for a finished run."""
        return captioned.load_test(config.data, classes)

    def prepare(self, data: "DatasetDict") -> "DatasetDict":
        """Decode every split once, and encode it once where the encoder is frozen; returns what could be read."""
        options = self.config.data
        found = decode(data, options, options.size or self.model.image_size, self.fit, self.engine, self.say)
        data, self.pixels = found.data, found.pixels
        self._references = {split: caption_splits.objects(captioned.texts_of(data[split])) for split in data}
        self.captions = {split: [texts[0] for texts in lists] for split, lists in self._references.items()}
        """The first caption of each image."""
        if self.model.tokenizer is None:
            self.model.learn_tokenizer([text for texts in self._references["train"] for text in texts])
        self._batches = {split: caption_splits.batches(self, data[split], split, found.hashes[split]) for split in data}
        if "train" in data:
            self.train = self._batches["train"]
            self.model.notes += [*caption_splits.mirrored(self), *caption_splits.ceiling(self)]
        self._refuse_leak(next(iter(data)))
        return data

    def _refuse_leak(self, split: str) -> None:
        batch = self.engine.send(self._batches[split].take(np.array([0])))
        self.model.eval()
        with torch.inference_mode():
            states = self.states(batch).to(next(self.model.parameters()).dtype)
            refuse_leak(self.model, states, batch["tokens"][:, : int(batch["length"][0])])

    def held_out(self, split: str) -> Batches:
        return self._batches[split]

    def references(self, split: str) -> NDArray[np.object_]:
        """The true captions: a list for each sample, object [N]."""
        return self._references[split]

    # ---- learning -----------------------------------------------------------------------------

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        if self.engine.bf16:
            halve_frozen(self.model)  # the run folder holds them already, whole
        return {"model": make_optimizer(adaptation.trainable_parameters(self.model), self.config.train)}

    def train_step(self, batch: Batch) -> Iterator[Loss]:
        losses, _ = token_losses(self.model, self.states(batch), batch["tokens"], batch["length"])
        # The mean over the tokens of the whole batch, however it is cut and shared out.
        yield Loss("model", losses.sum() / (len(batch["id"]) * batch["mean_length"][0]))

    def states(self, batch: Batch) -> Tensor:
        """What the image encoder makes of a batch, [B, T, D]: from the cache where it holds it."""
        return batch["states"] if "states" in batch else self.model.encode(self.prepared(batch["image"]))

    def prepared(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> normalised float32."""
        return transforms.normalise(images, self.model.mean, self.model.std)

    def predict(self, batch: Batch) -> NDArray[np.float64]:
        """One row per sample, float64 [B, 2 + max_tokens]: see the class."""
        states = self.states(batch)
        total, length = likelihood(self.model, states, batch)
        tokens = write(self.model, states, batch["id"], self.config.generation, self.config.seed)
        rows = np.column_stack([total.cpu().numpy(), length.cpu().numpy(), tokens]).astype(np.float64)
        self.written |= dict(zip(batch["id"], rows, strict=True))
        return rows

    def texts(self, rows: NDArray[Any]) -> list[str]:
        """The captions of prediction rows."""
        return [text_of(self.model, row[2:]) for row in rows]

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
        self._controls = caption_controls.controls(self)
        return self._controls

    def further(self, predictions: dict[str, NDArray[Any]], groups: dict[str, list[str]]) -> dict[str, Any]:
        """Each control paired with the model, image by image: {"improvement": {control: {metric: {a, b, ...}}}}."""
        return {
            "improvement": caption_controls.paired(self, self._controls, predictions["test"], groups["test"]),
        }

    def table(self, split: str, predictions: NDArray[Any]) -> dict[str, list[Any]]:
        several = any(len(texts) > 1 for lists in self._references.values() for texts in lists)
        return {
            "reference": list(self._references[split]) if several else self.captions[split],
            "caption": self.texts(predictions),
            "scores": self.metric.statistics(predictions, self.references(split)).tolist(),
        }

    @staticmethod
    def compared(classes: list[str], own: list[str], rows: dict[str, list[Any]]) -> tuple[CaptionMetric, Any]:  # noqa: ARG004
        return CaptionMetric(), np.asarray(rows["scores"], np.float64)

    def alarms(self, metrics: dict[str, Any], history: list[dict[str, Any]]) -> list[str]:  # noqa: ARG002
        return caption_controls.alarms(self, metrics)

    def figures(
        self,
        predictions: dict[str, NDArray[np.float64]],
        history: list[dict[str, Any]],
        metrics: dict[str, Any],
    ) -> Figures:
        from finesight.report.captioning import figures

        return figures(self, predictions, history, metrics)

    def predict_images(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The captions of files (paths), PIL images or uint8 arrays [H, W, 3]."""
        found: list[dict[str, Any]] = []
        self.model.eval()
        for names, images in square_images(self, inputs):
            batch = self.engine.send({"image": images})
            with torch.inference_mode(), self.engine.autocast():
                ids = [Path(name).name if name else "array" for name in names]
                rows = write(self.model, self.states(batch), ids, self.config.generation, self.config.seed)
            found += [
                {"input": name, "caption": text_of(self.model, row)} for name, row in zip(names, rows, strict=True)
            ]
        return found

    @staticmethod
    def line(row: dict[str, Any]) -> str:
        """The caption, for the console."""
        return row["caption"] or "(the model wrote nothing)"
