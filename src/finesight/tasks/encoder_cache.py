"""The outputs of a captioner's frozen image encoder, computed once and kept on disk."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import __version__ as pillow
from torch import Tensor

from finesight import cache
from finesight.data import transforms
from finesight.data.transforms import AugmentConfig
from finesight.errors import ConfigError
from finesight.models.captioner import Captioner
from finesight.models.weights import state_hash
from finesight.progress import Progress

if TYPE_CHECKING:
    from finesight.tasks.captioning import Captioning, CaptioningConfig


def check(config: "CaptioningConfig", model: Captioner) -> None:
    """Raise `ConfigError` where the cache is asked for and would be wrong."""
    if config.cache_encoder != "on":
        return
    problems = []
    if not model.frozen_encoder:
        problems.append(
            "cache_encoder: the image encoder is trained, so its outputs change with each step. Set cache_encoder "
            "auto, or freeze the encoder with adapt.method decoder or lora."
        )
    if config.augment.active:
        problems.append(
            "cache_encoder: augmentation changes the images each epoch, and the cache would hold one view of them. Set "
            "cache_encoder auto, or leave augment out."
        )
    if not _has_states(model):
        problems.append(
            "cache_encoder: this model reads image and text together; there is nothing to keep of the image."
        )
    if problems:
        raise ConfigError(*problems)


def sound(config: "CaptioningConfig", model: Captioner, augment: AugmentConfig | None) -> bool:
    """Whether the encoder's outputs of a split are the same in every epoch, and may be kept."""
    return config.cache_encoder != "off" and model.frozen_encoder and augment is None and _has_states(model)


def _has_states(model: Captioner) -> bool:
    return model.spec.arguments["kind"] != "git"


def states(task: "Captioning", pixels: Tensor, hashes: list[str], split: str) -> Tensor | None:
    """States of held images uint8 [N, 3, H, H] in their order, [N, T, D].

    Float32, or bfloat16 where the run computes in it: what reads them rounds them to it anyway. None where
    `cache_encoder` is auto and the disk has no room for them.
    """
    model, engine, config = task.model, task.engine, task.config
    step = min(config.evaluation.batch_size, 8) if engine.device.type == "cpu" else config.evaluation.batch_size

    def compute(images: Tensor) -> Tensor:
        at_size = transforms.resize(images.to(engine.device), model.image_size)
        with torch.inference_mode(), engine.autocast():
            return model.encode(task.prepared(at_size)).float().cpu()

    def fill(array: NDArray[Any]) -> dict[str, Any]:
        progress = Progress(f"encoding {split}", len(pixels), "images")
        for start in range(0, len(pixels), step):
            block = compute(pixels[start : start + step])
            array[start : start + step] = (block.bfloat16().view(torch.int16) if half else block).numpy()
            progress.update(start + len(block))
        progress.close()
        return {"rows": len(pixels), "dtype": "bfloat16" if half else "float32"}

    model.eval()
    shape = tuple(compute(pixels[:1]).shape[1:])
    half = engine.bf16
    kind = np.int16 if half else np.float32
    each = int(np.prod(shape)) * np.dtype(kind).itemsize
    what = f"outputs of the frozen image encoder, {split} ({each:,} bytes an image)"
    directory, key = cache.folder(config.data.cache_dir), _key(task, int(pixels.shape[-1]), hashes)
    with engine.first_alone():
        try:
            array, _ = cache.stored(directory, key, (len(pixels), *shape), kind, fill, what, task.say)
        except cache.NoRoom as problem:
            if config.cache_encoder == "on":
                raise cache.NoRoom(f"{problem} Or run the encoder anew for each batch: --cache_encoder off.") from None
            task.say(f"{problem.cause} The encoder runs anew for each batch.")
            return None
    found = cache.as_tensor(array)
    return found.view(torch.bfloat16) if half else found


def _key(task: "Captioning", held: int, hashes: list[str]) -> str:
    """Equal exactly where the states are: `held` is the side at which the files `hashes` are held."""
    model, engine, settings = task.model, task.engine, task.model.backbone.config
    return cache.key_of(
        "states-2", state_hash(model.backbone), repr(settings.to_diff_dict()), str(settings._attn_implementation),  # type: ignore[union-attr,operator]
        str(model.mean), str(model.std), engine.precision, engine.device.type, torch.__version__,
        version("transformers"), pillow, str(held), str(model.image_size), task.fit, task.config.data.sixteen_bit,
        *hashes,
    )  # fmt: skip
