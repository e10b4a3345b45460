"""Fine-tuning ViT-MAE base, batch 8 at 224 pixels, against transformers' Trainer.

Twice: with the Trainer's defaults (float32), and with `bf16`. The peer decodes and preprocesses each image when it is
asked for, as the Trainer's users do; images come from the same files. Then the drift of the bf16 loss from float32
over 25 steps of the same run: same weights, images and masks.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import timing
from finesight import config as configuration
from finesight.engine import Engine
from finesight.reopen import quiet
from finesight.run_folder import RunFolder
from finesight.tasks.reconstruction import Reconstruction, ReconstructionConfig
from finesight.train import Loop

STEPS, ROUNDS, DRIFT, BATCH = 3, 3, 25, 8


class _Files(torch.utils.data.Dataset[dict[str, Any]]):
    """Images opened, resized and normalised one by one."""

    def __init__(self, files: list[Path], processor: Any) -> None:
        self.files, self.processor = files, processor

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = Image.open(self.files[index]).convert("RGB")
        return {"pixel_values": self.processor(image, return_tensors="pt")["pixel_values"][0]}


def _trainer(files: list[Path], scratch: Path, bf16: bool) -> Any:
    from transformers import Trainer, TrainingArguments, ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining

    arguments = TrainingArguments(
        str(scratch / f"peer-{bf16}"), per_device_train_batch_size=BATCH, max_steps=STEPS, bf16=bf16,
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    torch.manual_seed(0)
    net = ViTMAEForPreTraining(ViTMAEConfig())
    return Trainer(net, arguments, train_dataset=_Files(files, ViTImageProcessor()))


def _loop(root: Path, scratch: Path, precision: str) -> Loop:
    options = {
        "data.root": str(root), "data.cache_dir": str(scratch / "cache"), "model.name": "vit-mae-base",
        "train.batch_size": BATCH, "train.lr": 5e-5, "precision": precision,
    }  # fmt: skip
    settings = configuration.build(ReconstructionConfig, configuration.nest(options))
    task = Reconstruction(settings, ["image"], Engine(precision), quiet)
    task.prepare(Reconstruction.load(settings))
    for module in task.modules.values():
        module.train()
    return Loop(task, settings.train, task.engine, RunFolder(scratch / precision), 0, quiet)


def _steps(loop: Loop, count: int) -> list[float]:
    losses: list[float] = []
    while len(losses) < count:
        for batch in loop.task.train.epoch(loop.state.epoch):
            before = loop.state.sums.get("loss", 0.0)
            loop.step(batch)
            loop.state.step += 1
            losses.append((loop.state.sums["loss"] - before) / len(batch["id"]))
            if len(losses) == count:
                break
        loop.state.epoch += 1
    return losses


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        root = scratch / "images"
        root.mkdir()
        generator = np.random.default_rng(0)
        for number in range(64):
            small = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(small).resize((512, 384)).save(root / f"{number:03d}.jpg", quality=90)
        files = sorted(root.iterdir())
        ours, peer, tuned = (
            _loop(root, scratch, "auto"),
            _trainer(files, scratch, False),
            _trainer(files, scratch, True),
        )
        _steps(ours, 1)
        print(f"ViT-MAE base, batch {BATCH}, {STEPS} steps [{timing.machine()}, {ours.engine.precision}]")
        for label, other in (("Trainer's defaults", peer), ("Trainer with bf16", tuned)):
            other.train()
            own, theirs = timing.interleaved(lambda: _steps(ours, STEPS), other.train, ROUNDS)
            print(
                f"  {label}: {timing.ratio(own, theirs)}; {statistics.median(own) / STEPS:.2f} s against "
                f"{statistics.median(theirs) / STEPS:.2f} s per step"
            )
        if ours.engine.precision == "bf16":
            pair = [np.array(_steps(_loop(root, scratch, precision), DRIFT)) for precision in ("bf16", "fp32")]
            drift = 100 * np.abs(pair[0] / pair[1] - 1)
            print(
                f"  bf16 loss against float32 over {DRIFT} steps: {drift.mean():.2f} % mean, {drift.max():.2f} % most"
            )
