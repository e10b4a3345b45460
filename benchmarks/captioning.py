"""LoRA training of ViT base and DistilGPT-2 on real captions, samples per second against transformers' Seq2SeqTrainer.

Twice: with the Trainer's defaults (float32, captions padded to 128 tokens), and tuned (`bf16`, padded to the longest of
the batch). All train the same 1,179,648 adapter weights of the same architecture, batch 4, on the same images and
captions, an epoch each in turn. The peer decodes and preprocesses each image when it is asked for, as its users do, and
runs the frozen encoder each time. The time to fill our cache of encoder outputs is told apart, with its size and the
epoch from which on it has paid.
"""

import io
import statistics
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from datasets import Image
from PIL import Image as Picture

from benchmarks import timing
from finesight import config as configuration
from finesight.engine import Engine
from finesight.models import tokenizers
from finesight.reopen import quiet
from finesight.run_folder import RunFolder
from finesight.tasks.captioning import Captioning, CaptioningConfig
from finesight.train import Loop

IMAGES, ROUNDS, BATCH, PADDED, RANK = 32, 3, 4, 128, 16
TARGETS = ("c_attn", "c_proj")


class _Files(torch.utils.data.Dataset[dict[str, Any]]):
    """Images opened, resized and normalised one by one, with the tokens of their captions, the end included."""

    def __init__(self, data: Any, rows: list[list[int]]) -> None:
        from transformers import ViTImageProcessor

        self.places = [entry["path"] for entry in data["image"]]
        self.rows, self.processor = rows, ViTImageProcessor()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from finesight.data.images import split_zip_path

        place = split_zip_path(self.places[index])
        assert place is not None
        with zipfile.ZipFile(place[0]) as archive:
            image = Picture.open(io.BytesIO(archive.read(place[1]))).convert("RGB")
        pixels = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": self.rows[index]}


class _Collate:
    """Labels padded with -100 by the length of each caption, to a fixed width or to the longest of the batch."""

    def __init__(self, width: int | None) -> None:
        self.width = width

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = self.width or max(len(sample["labels"]) for sample in samples)
        labels = torch.full((len(samples), width), -100)
        for row, sample in enumerate(samples):
            labels[row, : len(sample["labels"])] = torch.tensor(sample["labels"])
        return {"pixel_values": torch.stack([sample["pixel_values"] for sample in samples]), "labels": labels}


def _trainer(files: _Files, end: int, scratch: Path, tuned: bool) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import (
        GPT2Config,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
    )

    text = GPT2Config(n_layer=6, is_decoder=True, add_cross_attention=True)
    settings = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), text)
    settings.pad_token_id = settings.decoder_start_token_id = end
    torch.manual_seed(0)
    net = VisionEncoderDecoderModel(settings)
    lora = LoraConfig(r=RANK, lora_alpha=32, lora_dropout=0.05, target_modules=list(TARGETS), fan_in_fan_out=True)
    arguments = Seq2SeqTrainingArguments(
        str(scratch / f"peer-{tuned}"), per_device_train_batch_size=BATCH, num_train_epochs=1, bf16=tuned,
        save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False, logging_strategy="no",
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    return Seq2SeqTrainer(
        get_peft_model(net, lora), arguments, train_dataset=files, data_collator=_Collate(None if tuned else PADDED)
    )


def _task(root: Path, words: Path, scratch: Path, cached: str = "on") -> tuple[Captioning, Any]:
    options = {
        "data.root": str(root), "data.cache_dir": str(scratch / "cache"), "data.limit_train": IMAGES,
        "data.limit_validation": 1, "data.limit_test": 1, "model.name": "vit-base+distilgpt2",
        "model.tokenizer": str(words), "model.longest": PADDED, "adapt.method": "lora", "adapt.rank": RANK,
        "adapt.alpha": 32.0, "adapt.dropout": 0.05, "adapt.targets": list(TARGETS), "adapt.allow_random_frozen": True,
        "train.batch_size": BATCH, "cache_encoder": cached,
    }  # fmt: skip
    settings = configuration.build(CaptioningConfig, configuration.nest(options))
    return Captioning(settings, ["image"], Engine("auto"), quiet), Captioning.load(settings)


def _loop(task: Captioning, scratch: Path) -> Loop:
    return Loop(task, task.config.train, task.engine, RunFolder(scratch / "run"), 0, quiet)


def _epoch(loop: Loop) -> None:
    loop.task.modules["model"].train()
    for batch in loop.task.train.epoch(loop.state.epoch):
        loop.step(batch)
        loop.state.step += 1
    loop.state.epoch += 1


def main() -> None:
    found = timing.test_data()
    words = None if found is None else found / "tokenizers" / "gpt2"
    if found is None or words is None or not words.is_dir():
        print("captioning: set FINESIGHT_TEST_DATA to the folder of real data")
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        task, data = _task(found / "radiology", words, scratch)
        assert (task.audit.trainable, task.audit.total) == (1_179_648, 183_664_896)
        plain = data["train"].cast_column("image", Image(decode=False))
        filled = timing.seconds(lambda: task.prepare(data))
        tokenizer = tokenizers.load(words)
        rows = tokenizers.encode(tokenizer, list(data["train"]["caption"]), tokenizer.eos_token_id, PADDED)
        files = _Files(plain, rows)
        ours = _loop(task, scratch)
        _epoch(ours)
        print(
            f"Captioner, LoRA, batch {BATCH}, {len(files)} images and captions of "
            f"{statistics.mean(map(len, rows)):.0f} tokens on average [{timing.machine()}, {task.engine.precision}]"
        )
        own: list[float] = []
        for label, tuned in (
            (f"Seq2SeqTrainer, padded to {PADDED}", False),
            ("Seq2SeqTrainer, bf16, dynamic padding", True),
        ):
            other = _trainer(files, tokenizer.eos_token_id, scratch, tuned)
            other.train()
            own, theirs = timing.interleaved(lambda: _epoch(ours), other.train, ROUNDS)
            print(
                f"  {label}: {timing.ratio(own, theirs)}; {len(files) / statistics.median(own):.2f} against "
                f"{len(files) / statistics.median(theirs):.2f} samples per second"
            )
            del other
        _break_even(found, words, scratch, task, filled, statistics.median(own))


def _break_even(found: Path, words: Path, scratch: Path, task: Captioning, filled: float, cached: float) -> None:
    states = task.train.columns["states"]
    size = states[0].numel() * states.element_size()
    without, data = _task(found / "radiology", words, scratch, cached="off")
    without.prepare(data)
    loop = _loop(without, scratch)
    _epoch(loop)
    plain = timing.seconds(lambda: _epoch(loop))
    saved = plain - cached
    paid = f"has paid after {filled / saved:.1f} epochs" if saved > 0 else "does not pay here"
    print(
        f"  cache of encoder outputs: {size:,} bytes an image, filled in {filled:.1f} s; an epoch takes {cached:.1f} s "
        f"with it and {plain:.1f} s without, so it {paid}"
    )
