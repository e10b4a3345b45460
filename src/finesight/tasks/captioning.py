"""Captioning (S2): what an image shows, in words; an image encoder and a language model trained on captions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from finesight import adaptation
from finesight.adaptation import captioners
from finesight.adaptation.captioners import CaptionAdaptConfig
from finesight.adaptation.halving import halve_frozen
from finesight.config import Section
from finesight.data import captions as captioned
from finesight.data import transforms
from finesight.data.batches import Batch, Batches
from finesight.data.caption_batches import CaptionBatches
from finesight.data.captions import CaptionsConfig
from finesight.data.decoding import decode
from finesight.data.transforms import AugmentConfig
from finesight.engine import Engine, Precision
from finesight.metrics.kinds import higher_is_better
from finesight.models import captioner, tokenizers
from finesight.models.captioner import CaptionerConfig
from finesight.optimization import TrainConfig, make_optimizer
from finesight.tasks import caption_controls, encoder_cache
from finesight.tasks.base import Figures, Loss, Say
from finesight.tasks.caption_metric import CaptionEvaluationConfig, CaptionMetric
from finesight.tasks.generation import GenerationOptions, refuse_leak, text_of, token_losses, write
from finesight.tasks.pictures import square_images

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
    evaluation: CaptionEvaluationConfig = CaptionEvaluationConfig(batch_size=16)


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
        self.metric = CaptionMetric(self._texts, config.evaluation.encoder(engine.device))
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
        self._references = {split: _lists(captioned.texts_of(data[split])) for split in data}
        self.captions = {split: [texts[0] for texts in lists] for split, lists in self._references.items()}
        """The first caption of each image."""
        if self.model.tokenizer is None:
            self.model.learn_tokenizer([text for texts in self._references["train"] for text in texts])
        self._batches = {split: self._make_batches(data[split], split, found.hashes[split]) for split in data}
        if "train" in data:
            self.train = self._batches["train"]
        self._refuse_leak(next(iter(data)))
        return data

    def _make_batches(self, dataset: "Dataset", split: str, hashes: list[str]) -> CaptionBatches:
        config, train = self.config, split == "train"
        augment = config.augment if train and config.augment.active else None
        columns = {"image": self.pixels[split]}
        if encoder_cache.sound(config, self.model, augment):
            columns = {"states": encoder_cache.states(self, self.pixels[split], hashes, split)}
        lists = self._references[split]
        return CaptionBatches(
            list(dataset["id"]),
            columns,
            self._tokens([text for texts in lists for text in texts], split),
            bucketed=train,
            counts=[len(texts) for texts in lists],
            batch_size=config.train.batch_size if train else config.evaluation.batch_size,
            seed=config.seed,
            augment=augment,
            size=self.model.image_size,
            workers=config.train.workers if train else 0,
        )

    def _tokens(self, texts: list[str], split: str) -> list[list[int]]:
        longest, end = self.config.model.longest, self.model.ends.end
        longest = min(longest, self.model.positions or longest)
        rows = tokenizers.encode(self.model.tokenizer, texts, end, longest)
        cut = sum(row[-1] != end for row in rows)
        if cut and split == "train":
            self.say(
                f"{split}: {cut:,} of {len(rows):,} captions have more than {longest} tokens; what is behind them is "
                "not learnt (--model.longest)."
            )
        return rows

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
        total, length = self._likelihood(states, batch)
        tokens = write(self.model, states, batch["id"], self.config.generation, self.config.seed)
        rows = np.column_stack([total.cpu().numpy(), length.cpu().numpy(), tokens]).astype(np.float64)
        self.written |= dict(zip(batch["id"], rows, strict=True))
        return rows

    def _likelihood(self, states: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of the references of each image in nats, float64 [B], and their tokens, int64 [B]."""
        total = torch.zeros(len(batch["id"]), dtype=torch.float64, device=states.device)
        if "references" not in batch:
            losses, owner = token_losses(self.model, states, batch["tokens"], batch["length"])
            return total.index_add_(0, owner, losses.double()), batch["length"]
        tokens, length = batch["references"], batch["reference_length"]
        for place in range(tokens.shape[1]):
            known = length[:, place].nonzero()[:, 0]
            width = int(length[:, place].max())
            given = states[known], tokens[known, place, :width], length[known, place]
            losses, owner = token_losses(self.model, *given)
            total.index_add_(0, known[owner], losses.double())
        return total, length.sum(1)

    def _texts(self, rows: NDArray[Any]) -> list[str]:
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
        return caption_controls.controls(self)

    def further(self, predictions: dict[str, NDArray[Any]], groups: dict[str, list[str]]) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def table(self, split: str, predictions: NDArray[Any]) -> dict[str, list[Any]]:
        several = any(len(texts) > 1 for lists in self._references.values() for texts in lists)
        return {
            "reference": list(self._references[split]) if several else self.captions[split],
            "caption": self._texts(predictions),
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


def _lists(texts: list[list[str]]) -> NDArray[np.object_]:
    """The references of each image, object [N] of lists, also where all are of one length."""
    found = np.empty(len(texts), object)
    for row, of_image in enumerate(texts):
        found[row] = of_image
    return found
