"""Models to make transferred attacks with: the CIFAR ResNet-20 of common weight files, or another finished run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finesight import config as configuration
from finesight.attacks import Normalized
from finesight.data import cifar10
from finesight.errors import ConfigError, ModelError
from finesight.models import resnet20, weights
from finesight.run_folder import RunFolder, open_run

ATTACKABLE = ("classification", "domain-adaptation", "robustness")
"""Tasks whose model maps images to the logits of classes."""

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation that the published CIFAR ResNets were trained with."""


class Picked(nn.Module):
    """The logits of some classes of a model, in another order: [B, all] -> [B, len(order)]."""

    def __init__(self, model: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("order", torch.tensor(order), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[:, self.order]


class Surrogate(NamedTuple):
    """A model of pixels, and the name of its file or folder."""

    model: nn.Module
    name: str


def check(path: str, victim: RunFolder | None = None, classes: Sequence[str] | None = None) -> None:
    """Raise where `path` can be no surrogate of a run, or of one with these classes; loads no run."""
    place = Path(path).expanduser()
    if not place.exists():
        raise ConfigError(f"surrogate: {path}: no such file or folder. Give a .th file of a CIFAR ResNet-20, or a run.")
    if place.is_dir():
        if victim is not None and place.resolve() == victim.path.resolve():
            raise ConfigError(
                f"surrogate: {path} is the attacked run itself; PGD attacks that one anyway. Give another run."
            )
        task = configuration.read_yaml(open_run(place).config).get("task")
        if task not in ATTACKABLE:
            raise ConfigError(f"surrogate: {path} is a {task} run, which has no classes; give a classifier's run.")
    if classes is not None:
        known = list(open_run(place).recorded("classes")) if place.is_dir() else _resnet(place)[1]
        _refuse_unknown(path, classes, known)


def _refuse_unknown(path: str, classes: Sequence[str], known: Sequence[str]) -> None:
    missing = [name for name in classes if name not in known]
    if missing:
        raise ConfigError(
            f"surrogate: {path} does not know the class{'es' if len(missing) > 1 else ''} {weights.listed(missing)}; "
            f"it knows {weights.listed(known, 12)}. Classes are matched by name: give a surrogate for the same ones."
        )


def load(path: str, classes: Sequence[str], device: torch.device) -> Surrogate:
    """A model of pixels with its own resize and normaliser and the logits of `classes` in their order.

    Raises `ConfigError` where the surrogate does not know one of the classes by its name, and `ModelError` for
    weights that are none of a CIFAR ResNet-20.
    """
    place = Path(path).expanduser()
    model, known = _of_run(place) if place.is_dir() else _resnet(place)
    _refuse_unknown(path, classes, known)
    # Inside of the normaliser, so that `prepared` finds that and folds the batch norms of what stands behind it.
    model.model = Picked(model.model, [known.index(name) for name in classes])
    return Surrogate(model.to(device).eval(), place.name)


def pixel_model(task: Any) -> Normalized:
    """The classifier of a task as a model of pixels at any resolution, which it resizes and normalises inside."""
    own = getattr(task, "pixels_to_logits", None)
    model = task.model
    return own if own is not None else Normalized(model, model.mean, model.std, model.image_size)


def _of_run(path: Path) -> tuple[Normalized, list[str]]:
    from finesight.reopen import quiet, restored

    task = restored(open_run(path), quiet)
    return pixel_model(task), list(task.classes)


def _resnet(path: Path) -> tuple[Normalized, list[str]]:
    state = weights.read(path)
    last = state.get("linear.weight")
    if last is None or list(last.shape) != [len(cifar10.CLASSES), 64]:
        raise ModelError(
            f"{path}: no weights of a ResNet-20 for CIFAR-10 (its last layer would be linear.weight, 10 x 64). Give "
            "such a file, or the folder of another run."
        )
    model = resnet20(len(cifar10.CLASSES))
    weights.load_strict(model, state, source=str(path))
    return Normalized(model, *IMAGENET, size=32), list(cifar10.CLASSES)
