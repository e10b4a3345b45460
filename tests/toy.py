"""A tiny task on random numbers, to test the loop without images, models or downloads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from finesight.data.batches import Batches
from finesight.engine import Engine
from finesight.evaluate import predict, scores
from finesight.metrics.classification import ClassificationMetric
from finesight.optimization import TrainConfig, make_optimizer
from finesight.run_folder import RunFolder
from finesight.tasks.base import Loss
from finesight.train import State, fit


class Toy:
    """Two noisy clusters of 6 numbers, a small network with dropout."""

    def __init__(self, config: TrainConfig, *, samples: int = 40, dropout: float = 0.5, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(7)
        labels = torch.arange(samples) % 2
        values = torch.randn(samples, 6, generator=generator) + labels[:, None]
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 2))
        self.modules = {"model": self.net}
        self.metric = ClassificationMetric(["a", "b"])
        self.selectable = ("loss", *self.metric.names)
        self.config = config
        columns = {"x": values, "label": labels}
        ids = [f"sample-{index}" for index in range(samples)]
        self.train = Batches(
            ids,
            columns,
            batch_size=config.batch_size,
            seed=seed,
            shuffle=True,
            workers=config.workers,
            balance=config.balance,
        )
        self._held_out = Batches(ids, columns, batch_size=16)
        self.steps: list[list[str]] = []

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"model": make_optimizer(list(self.net.parameters()), self.config)}

    def train_step(self, batch: dict[str, Any]) -> Iterator[Loss]:
        self.steps.append(batch["id"])
        logits = self.net(batch["x"])
        accuracy = (logits.argmax(1) == batch["label"]).float().mean()
        yield Loss("model", functional.cross_entropy(logits, batch["label"]), {"accuracy": accuracy})

    def held_out(self, split: str) -> Batches:
        return self._held_out

    def predict(self, batch: dict[str, Any]) -> np.ndarray:
        return self.net(batch["x"]).double().softmax(1).numpy()

    def references(self, split: str) -> np.ndarray:
        return self._held_out.columns["label"].numpy()

    def trainable_state(self) -> dict[str, dict[str, torch.Tensor]]:
        return {"model": self.net.state_dict()}


def train(task: Any, folder: RunFolder, *, seed: int = 0, resume: bool = False, say: Any = lambda _: None) -> State:
    """`fit` with the toy's validation."""
    engine = Engine("fp32")
    folder.path.mkdir(exist_ok=True, parents=True)

    def validate() -> dict[str, float]:
        found = scores(task, "validation", predict(task, "validation", engine))
        return {"loss": found["nll"], "accuracy": found["accuracy"]}

    return fit(
        task, task.config, engine, folder,
        seed=seed, validate=validate, better=lambda new, old: new > old, say=say, resume=resume,
    )  # fmt: skip


def weights(task: Any) -> torch.Tensor:
    """All parameters in one vector."""
    return torch.cat(
        [parameter.detach().flatten() for module in task.modules.values() for parameter in module.parameters()]
    )
