"""The networks of a domain adaptation run, as its report asks them: in this process alone, batch by batch.

Not `evaluate.predict`, which shares its work among processes: the report is made by the first one only.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from finesight.tasks.domain_adaptation import DomainAdaptation


@contextlib.contextmanager
def judging(task: "DomainAdaptation") -> Iterator[None]:
    """All networks in evaluation, without gradients, in the precision of the run; then as they were."""
    before = {name: module.training for name, module in task.modules.items()}
    try:
        for module in task.modules.values():
            module.eval()
        with torch.inference_mode(), task.engine.autocast():
            yield
    finally:
        for name, module in task.modules.items():
            module.train(before[name])


def probabilities(task: "DomainAdaptation", images: Tensor) -> NDArray[np.float64]:
    """uint8 [N, 3, S, S] -> class probabilities [N, C]."""
    with judging(task):
        parts = images.split(task.config.evaluation.batch_size)
        return np.concatenate([task.predict(task.engine.send({"image": part})) for part in parts])


def painted_probabilities(task: "DomainAdaptation", images: Tensor, noise: Tensor) -> NDArray[np.float64]:
    """Source images uint8 [N, 3, S, S] and noise [N, Z] -> class probabilities of the generated images [N, C]."""
    size = task.config.evaluation.batch_size
    with judging(task):
        pairs = zip(images.split(size), noise.split(size), strict=True)
        return np.concatenate([task.predict(task.engine.send({"image": i, "noise": z})) for i, z in pairs])


def penultimate(task: "DomainAdaptation", images: Tensor) -> NDArray[np.float32]:
    """uint8 [N, 3, S, S] -> what enters the last linear layer of the head, [N, D]."""
    last = [module for module in task.model.head.modules() if isinstance(module, nn.Linear)][-1]
    kept: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, given: kept.append(given[0].flatten(1).float().cpu()))
    try:
        with judging(task):
            for part in images.split(task.config.evaluation.batch_size):
                task.predict(task.engine.send({"image": part}))
    finally:
        hook.remove()
    return torch.cat(kept).numpy()


def painted(task: "DomainAdaptation", images: Tensor, noise: NDArray[np.float32]) -> Tensor:
    """Source images uint8 [N, 3, S, S] and noise [N, Z] -> generated images, float32 [N, 3, S, S] in [0, 1]."""
    size, parts = task.config.evaluation.batch_size, []
    with judging(task):
        for part, draws in zip(images.split(size), torch.from_numpy(noise).split(size), strict=True):
            batch = task.engine.send({"image": part, "noise": draws})
            parts.append(task.generator(task.prepared(batch["image"]), batch["noise"]).float().cpu())
    return ((torch.cat(parts) + 1) / 2).clamp(0, 1)


def seen(images: Tensor) -> list[NDArray[np.uint8]]:
    """float32 [N, 3, S, S] in [0, 1] -> N images uint8 [S, S, 3]."""
    return list((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
