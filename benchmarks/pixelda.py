"""PixelDA's training step at batch 32 and 128 against the loop that report 003 describes.

The peer has the same networks, losses and optimisers in float32, with one sample at a time through PIL transforms
in a DataLoader, torch's own noise and dropout layers, the generator run anew for its step, and gradients
computed for the networks that are not stepped. Both sides get their images from uint8 arrays in memory.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision import transforms as T

from benchmarks import timing
from finesight import config as configuration
from finesight.engine import Engine
from finesight.models import PixelDAClassifier, PixelDADiscriminator, PixelDAGenerator
from finesight.models.pixelda import NoisyDropout
from finesight.reopen import quiet
from finesight.run_folder import RunFolder
from finesight.tasks.domain_adaptation import DomainAdaptation, DomainAdaptationConfig
from finesight.train import Loop

STEPS, ROUNDS = 6, 3


class _Pairs(torch.utils.data.Dataset[tuple[Tensor, int, Tensor]]):
    """A source digit with its label, and a target image; transformed one by one."""

    def __init__(self, source: np.ndarray, labels: np.ndarray, target: np.ndarray) -> None:
        self.source, self.labels, self.target = source, labels, target
        half = (0.5, 0.5, 0.5)
        self.transform = T.Compose([T.Resize(32), T.ToTensor(), T.Normalize(half, half)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        digit = Image.fromarray(self.source[index]).convert("RGB")
        return self.transform(digit), int(self.labels[index]), self.transform(Image.fromarray(self.target[index]))


class _Noise(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values + 0.2 * torch.randn_like(values) if self.training else values


class _Peer:
    def __init__(self, loader: "torch.utils.data.DataLoader[tuple[Tensor, int, Tensor]]") -> None:
        self.loader = loader
        self.classifier, self.generator = PixelDAClassifier(), PixelDAGenerator()
        self.discriminator = PixelDADiscriminator()
        for position, layer in enumerate(self.discriminator.layers):
            if isinstance(layer, NoisyDropout):
                self.discriminator.layers[position] = nn.Sequential(_Noise(), nn.Dropout(0.1))
        both = [*self.discriminator.parameters(), *self.classifier.parameters()]
        self.first = torch.optim.Adam(both, 1e-3, betas=(0.5, 0.999))
        self.second = torch.optim.Adam(self.generator.parameters(), 1e-3, betas=(0.5, 0.999))

    def train(self) -> None:
        for number, (source, labels, target) in enumerate(self.loader):
            if number == STEPS:
                break
            self._step(source, labels, target)

    def _step(self, source: Tensor, labels: Tensor, target: Tensor) -> None:
        entropy = functional.binary_cross_entropy_with_logits
        fake = self.generator(source, self.generator.draw(len(source))).detach()
        real_logit, fake_logit = self.discriminator(target), self.discriminator(fake)
        adversarial = entropy(real_logit, torch.ones_like(real_logit)) + entropy(
            fake_logit, torch.zeros_like(fake_logit)
        )
        task = functional.cross_entropy(self.classifier(source), labels)
        task = task + functional.cross_entropy(self.classifier(fake), labels)
        self.first.zero_grad()
        (0.13 * adversarial + task).backward()
        self.first.step()

        fake = self.generator(source, self.generator.draw(len(source)))
        fake_logit = self.discriminator(fake)
        fooling = entropy(fake_logit, torch.ones_like(fake_logit))
        self.second.zero_grad()
        (0.011 * fooling + 0.01 * functional.cross_entropy(self.classifier(fake), labels)).backward()
        self.second.step()


def main() -> None:
    generator = np.random.default_rng(0)
    for size in (32, 128):
        count = STEPS * size
        digits = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count) % 10
        target = generator.integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)
        loader = torch.utils.data.DataLoader(
            _Pairs(digits, labels, target), size, shuffle=True, num_workers=2, persistent_workers=True
        )
        with tempfile.TemporaryDirectory() as scratch:
            loop = _ours(digits, labels, target, size, Path(scratch))

            def ours(loop: Loop = loop) -> None:
                for batch in loop.task.train.epoch(0):
                    loop.step(batch)
                    loop.state.step += 1

            peer = _Peer(loader)
            ours()
            peer.train()
            own, other = timing.interleaved(ours, peer.train, ROUNDS)
        print(f"PixelDA, batch {size}, seconds per {STEPS} steps [{timing.machine()}, {loop.engine.precision}]")
        print(
            f"  {timing.ratio(own, other)}; {statistics.median(own) / STEPS:.2f} s against "
            f"{statistics.median(other) / STEPS:.2f} s per step; 20 epochs of 54,000 images: "
            f"{20 * 54_000 / count * statistics.median(own) / 3600:.1f} h here"
        )


def _ours(digits: np.ndarray, labels: np.ndarray, target: np.ndarray, size: int, scratch: Path) -> Loop:
    """finesight's loop on the same arrays, through its own data path."""
    source_file, target_file = scratch / "source.npz", scratch / "target.npz"
    for file, images in ((source_file, digits), (target_file, target)):
        held_out = {f"{split}_{key}": array[:20] for split in ("valid", "test") for key, array in
                    (("images", images), ("labels", labels))}  # fmt: skip
        np.savez(file, train_images=images, train_labels=labels, **held_out)
    options = {
        "data.source": str(source_file), "data.target": str(target_file), "data.cache_dir": str(scratch / "cache"),
        "train.batch_size": size, "train.optimizer": "adam", "train.momentum": 0.5, "train.select": "adaptation_score",
    }  # fmt: skip
    settings = configuration.build(DomainAdaptationConfig, configuration.nest(options))
    data = DomainAdaptation.load(settings)
    task = DomainAdaptation(settings, [str(name) for name in range(10)], Engine("auto"), quiet)
    task.prepare(data)
    assert task.train.samples == len(labels), "both sides must see as many images"
    for module in task.modules.values():
        module.train()
    return Loop(task, settings.train, task.engine, RunFolder(scratch / "run"), 0, quiet)
