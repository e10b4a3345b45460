"""EndoVAE's training step, batch 32, against a plain loop: float32, default memory layout, one sample at a time."""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision import transforms as T

from benchmarks import timing
from finesight import config as configuration
from finesight.engine import Engine
from finesight.models import EndoVAE
from finesight.reopen import quiet
from finesight.run_folder import RunFolder
from finesight.tasks.autoencoding import Autoencoding, AutoencodingConfig
from finesight.train import Loop

STEPS, ROUNDS, BATCH = 6, 5, 32


class _Frames(torch.utils.data.Dataset[Tensor]):
    """Frames transformed one by one."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames, self.transform = frames, T.Compose([T.Resize(96), T.RandomHorizontalFlip(), T.ToTensor()])

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.fromarray(self.frames[index]))


def main() -> None:
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (STEPS * BATCH, 96, 96, 3), dtype=np.uint8)
    loader = torch.utils.data.DataLoader(_Frames(frames), BATCH, shuffle=True)
    model = EndoVAE()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def peer() -> None:
        for images in loader:
            logits, mean, log_variance = model(images, torch.randn(len(images), model.latent))
            reconstruction = functional.binary_cross_entropy_with_logits(logits, images, reduction="sum")
            kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
            optimizer.zero_grad()
            ((reconstruction + kl) / len(images)).backward()
            optimizer.step()

    with tempfile.TemporaryDirectory() as scratch:
        loop = _ours(frames, Path(scratch))

        def ours() -> None:
            for batch in loop.task.train.epoch(0):
                loop.step(batch)
                loop.state.step += 1

        ours()
        peer()
        own, other = timing.interleaved(ours, peer, ROUNDS)
    print(f"EndoVAE, batch {BATCH}, {STEPS} steps [{timing.machine()}, {loop.engine.precision}]")
    print(
        f"  {timing.ratio(own, other)}; {statistics.median(own) / STEPS:.3f} s against "
        f"{statistics.median(other) / STEPS:.3f} s per step"
    )


def _ours(frames: np.ndarray, scratch: Path) -> Loop:
    """finesight's loop on the same arrays, through its own data path."""
    labels = np.arange(len(frames)) % 2
    held_out = {f"{split}_{key}": array[:20] for split in ("valid", "test") for key, array in
                (("images", frames), ("labels", labels))}  # fmt: skip
    np.savez(scratch / "frames.npz", train_images=frames, train_labels=labels, **held_out)
    options = {
        "data.root": str(scratch / "frames.npz"), "data.cache_dir": str(scratch / "cache"), "train.batch_size": BATCH,
        "train.optimizer": "adam", "augment.flip": 0.5,
    }  # fmt: skip
    settings = configuration.build(AutoencodingConfig, configuration.nest(options))
    task = Autoencoding(settings, ["image"], Engine("auto"), quiet)
    task.prepare(Autoencoding.load(settings))
    assert task.train.samples == len(frames), "both sides must see as many images"
    task.model.train()
    return Loop(task, settings.train, task.engine, RunFolder(scratch / "run"), 0, quiet)
