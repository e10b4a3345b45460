"""cifar10-mlp at batch 64 against the same model in a plain torchvision DataLoader loop.

The peer is what tutorials show: a map-style dataset that makes a PIL image of each row (as
torchvision.datasets.CIFAR10 does), ToTensor and Normalize per sample, a DataLoader with two workers.
"""

import statistics

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torchvision import transforms as T

from benchmarks import timing
from finesight.data.batches import Batches
from finesight.data.transforms import normalise
from finesight.models import MLP
from finesight.optimization import TrainConfig, make_optimizer
from finesight.run_folder import RunFolder
from finesight.tasks.base import Loss
from finesight.train import Loop

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
ROWS, ROUNDS = 50_000, 3


class _Rows(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.transform = T.Compose([T.ToTensor(), T.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class _Task:
    """The classification task without its data loading."""

    def __init__(self, batches: Batches) -> None:
        self.model, self.train = MLP(), batches
        self.modules = {"model": self.model}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"model": make_optimizer(list(self.model.parameters()), _config())}

    def train_step(self, batch: dict):
        logits = self.model(normalise(batch["image"], MEAN, STD))
        correct = (logits.detach().argmax(1) == batch["label"]).float().mean()
        yield Loss("model", functional.cross_entropy(logits, batch["label"]), {"accuracy": correct})


def _config() -> TrainConfig:
    return TrainConfig(epochs=1, batch_size=64, optimizer="sgd", lr=1e-3)


def main() -> None:
    import tempfile
    from pathlib import Path

    from finesight.engine import Engine

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(0, 10, ROWS)
    tensors = {
        "image": torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        "label": torch.from_numpy(labels),
    }
    batches = Batches([str(row) for row in range(ROWS)], tensors, batch_size=64, shuffle=True)
    loader = torch.utils.data.DataLoader(_Rows(images, labels), batch_size=64, shuffle=True, num_workers=2)
    peer = MLP()
    descent = torch.optim.SGD(peer.parameters(), 1e-3, momentum=0.9)

    def theirs() -> None:
        total, correct = 0.0, 0
        for image, label in loader:
            logits = peer(image)
            loss = functional.cross_entropy(logits, label)
            descent.zero_grad()
            loss.backward()
            descent.step()
            total += loss.item()
            correct += (logits.argmax(1) == label).sum().item()

    with tempfile.TemporaryDirectory() as scratch:
        loop = Loop(_Task(batches), _config(), Engine(), RunFolder(Path(scratch)), 0, print)  # type: ignore[arg-type]

        def ours() -> None:
            for batch in batches.epoch(0):
                loop.step(batch)
                loop.state.step += 1

        own, other = timing.interleaved(ours, theirs, ROUNDS)
    print(
        f"cifar10-mlp, {ROWS:,} images, batch 64, seconds per epoch [{timing.machine()}, ours {loop.engine.precision}]"
    )
    print(f"  whole epoch: {timing.ratio(own, other)}; {_medians(own, other)}")

    def our_loading() -> None:
        for batch in batches.epoch(0):
            normalise(batch["image"], MEAN, STD)

    def their_loading() -> None:
        for _ in loader:
            pass

    own, other = timing.interleaved(our_loading, their_loading, ROUNDS)
    print(f"  loading alone: {timing.ratio(own, other)}; {_medians(own, other)}")


def _medians(own: list[float], other: list[float]) -> str:
    return f"{statistics.median(own):.2f} s against {statistics.median(other):.2f} s"
