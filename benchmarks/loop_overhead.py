"""What the loop costs over bare PyTorch for a large model: ViT-base, batch 8, 224 px, forward to step."""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks import timing
from finesight.data.batches import Batches
from finesight.engine import Engine
from finesight.optimization import TrainConfig, make_optimizer
from finesight.run_folder import RunFolder
from finesight.tasks.base import Loss
from finesight.train import Loop

STEPS = 12


def main() -> None:
    from torchvision.models import vit_b_16

    torch.manual_seed(0)
    model = vit_b_16(num_classes=10)
    engine = Engine("auto")
    image, label = torch.rand(8, 3, 224, 224), torch.arange(8)
    batches = Batches([str(row) for row in range(8)], {"image": image, "label": label}, batch_size=8)
    config = TrainConfig(epochs=1, batch_size=8, lr=1e-5)
    optimizer = make_optimizer(list(model.parameters()), config)

    class Task:
        train, modules = batches, {"model": model}

        def optimizers(self) -> dict[str, torch.optim.Optimizer]:
            return {"model": optimizer}

        def train_step(self, batch: dict):
            yield Loss("model", functional.cross_entropy(model(batch["image"]).float(), batch["label"]))

    def bare() -> None:
        with engine.autocast():
            loss = functional.cross_entropy(model(image).float(), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with tempfile.TemporaryDirectory() as scratch:
        loop = Loop(Task(), config, engine, RunFolder(Path(scratch)), 0, print)  # type: ignore[arg-type]

        def ours() -> None:
            loop.step(batches.take(np.arange(8)))

        timing.interleaved(ours, bare, 2)
        own, other = timing.interleaved(ours, bare, STEPS)
    extra = statistics.median(own) / statistics.median(other) - 1
    print(f"loop overhead, ViT-base, batch 8, 224 px, {engine.precision} [{timing.machine()}]")
    print(
        f"  {extra:+.1%} over bare PyTorch (median of {STEPS} interleaved steps, {statistics.median(other):.2f} s each)"
    )
    # The same step with a model that costs nothing leaves the loop's own time.
    print(f"  the loop's own work: {1000 * _own_seconds(engine):.2f} ms per step")


def _own_seconds(engine: Engine) -> float:
    """Seconds of a loop step minus a bare step, for a tiny model."""
    layer = torch.nn.Linear(4, 2)
    values, label = torch.rand(8, 4), torch.arange(8) % 2
    batches = Batches([str(row) for row in range(8)], {"x": values, "label": label}, batch_size=8)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)

    class Task:
        train, modules = batches, {"model": layer}

        def optimizers(self) -> dict[str, torch.optim.Optimizer]:
            return {"model": optimizer}

        def train_step(self, batch: dict):
            yield Loss("model", functional.cross_entropy(layer(batch["x"]), batch["label"]))

    def bare() -> None:
        loss = functional.cross_entropy(layer(values), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with tempfile.TemporaryDirectory() as scratch:
        loop = Loop(Task(), TrainConfig(), engine, RunFolder(Path(scratch)), 0, print)  # type: ignore[arg-type]
        own, other = timing.interleaved(lambda: loop.step(batches.take(np.arange(8))), bare, 300)
    return statistics.median(own) - statistics.median(other)
