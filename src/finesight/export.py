"""A finished run's best weights as a Hugging Face folder, for any program that reads those."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finesight import config as configuration
from finesight.errors import ModelError, RunError
from finesight.files import sync
from finesight.reopen import quiet, restored
from finesight.run_folder import open_run


def export(path: str | Path, folder: str | Path) -> list[str]:
    """Write the best weights of the run at `path` into `folder`, which must be new or empty.

    A contrastive run becomes a CLIP folder (`AutoModel`, `AutoProcessor`), a Hugging Face classifier one of
    `AutoModelForImageClassification` with its class names, LoRA merged, a captioner of two halves a
    VisionEncoderDecoder. The folder appears whole or not at all. Returns sentences on what its user must know. Raises
    `RunError` for a folder that holds something, `ModelError` for a model that transformers does not know.
    """
    run, place = open_run(path), Path(folder).expanduser().absolute()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise RunError(f"{folder}: exists and is not an empty folder. Name a new one.")
    write = _writer(configuration.read_yaml(run.config), run.model)
    task = restored(run, quiet)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".tmp-{os.getpid()}-{place.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        notes = write(task, temporary)
        readable = (temporary / "config.json").stat().st_mode
        for file in temporary.iterdir():
            file.chmod(readable)  # some libraries write weights for nobody but their owner
            sync(file)
        os.rename(temporary, place)
        sync(place.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return notes


def _writer(stored: dict[str, Any], saved: Path) -> Callable[[Any, Path], list[str]]:
    """What writes the model of a run with these options and this stored architecture."""
    from finesight.models.classifier import Spec

    kind = stored["task"]
    if kind == "contrastive":
        return _clip
    if kind == "captioning" and Spec.read(saved).arguments["kind"] == "vision-encoder-decoder":
        return _captioner
    if kind == "classification" and Spec.read(saved).family == "huggingface":
        return _classifier
    if kind == "robustness":
        raise ModelError(
            "The vision tower of a robustness run is not exported: a CLIP folder needs the text tower of the model it "
            f"began with ({stored['model']['name']}), which the run does not hold. Use the run itself (finesight "
            "predict, finesight attack); its own weights are in its folder checkpoints, as safetensors."
        )
    name = stored.get("model", {}).get("name", kind)
    raise ModelError(
        f"{name!r} of a {kind} run: no architecture of Hugging Face's transformers that could be exported. Exported: "
        "contrastive runs, classifiers from Hugging Face folders, and captioners of an image encoder and a language "
        "model; any run's own weights are in its folder checkpoints, as safetensors."
    )


def _clip(task: Any, folder: Path) -> list[str]:
    notes = _save_image_processor(task, folder, clip=True)
    _save(task.model.net, folder)
    task.model.tokenizer.save_pretrained(folder)
    return notes


def _captioner(task: Any, folder: Path) -> list[str]:
    from finesight.adaptation import merge

    net: Any = merge(task.model.net)
    ends = task.model.ends
    for settings in (net.config, net.generation_config):
        settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id = ends
    notes = _save_image_processor(task, folder)
    _save(net, folder)
    task.model.tokenizer.save_pretrained(folder)
    return notes


def _classifier(task: Any, folder: Path) -> list[str]:
    """A new model of the architecture with the trained weights and head in it; names the classes."""
    from finesight.adaptation import merge

    model: Any = merge(task.model)
    notes = _save_image_processor(task, folder)
    _save(_with_head(model), folder)
    if model.backbone._options:
        notes.append(
            f"It was trained on images of {model.image_size} pixels, another size than its architecture's own: call it "
            "with interpolate_pos_encoding=True."
        )
    return notes


def _with_head(model: Any) -> Any:
    """The transformers classifier of a finesight `Classifier`, whose own has the identity for its head."""
    import torch
    from torch import nn
    from transformers import AutoModelForImageClassification

    from finesight.models import huggingface, pretrained

    trained = model.backbone.model
    settings = type(trained.config).from_dict(trained.config.to_dict())
    settings.id2label = dict(enumerate(model.classes))
    settings.label2id = {name: label for label, name in enumerate(model.classes)}
    with pretrained.quiet():
        net = AutoModelForImageClassification.from_config(settings, dtype=torch.float32, trust_remote_code=False)
    name, made = huggingface._take_head(net, Path(model.spec.name))
    found = net.load_state_dict(trained.state_dict(), strict=False)
    # Mask tokens take part in masked pretraining only; a finesight classifier has none.
    lost = [key for key in found.missing_keys if not key.endswith("mask_token")]
    if lost or found.unexpected_keys or made is None:
        raise ModelError(f"{model.spec.name}: its weights do not fit its architecture: {lost + found.unexpected_keys}.")
    head = next(module for module in model.head.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        made.weight.copy_(head.weight)
        if made.bias is None and head.bias is not None:
            raise ModelError(f"{model.spec.name}: its architecture has no bias in the head, and the run trained one.")
        if made.bias is not None:
            made.bias.zero_() if head.bias is None else made.bias.copy_(head.bias)
    net.set_submodule(name, made)
    return net.eval()


def _save(net: Any, folder: Path) -> None:
    """config.json and model.safetensors."""
    from finesight.models import pretrained

    for tensor in [*net.parameters(), *net.buffers()]:
        tensor.data = tensor.data.contiguous()  # safetensors holds no channels_last
    with pretrained.quiet():
        net.cpu().save_pretrained(folder)


def _save_image_processor(task: Any, folder: Path, clip: bool = False) -> list[str]:
    """preprocessor_config.json: what makes a file the model's input, as near as transformers' processors come to it."""
    from transformers import CLIPImageProcessor, ViTImageProcessor

    model, fit, size, bilinear = task.model, task.fit, task.model.image_size, 2
    square = {"height": size, "width": size}
    scale: dict[str, Any] = {"image_mean": list(model.mean), "image_std": list(model.std), "resample": bilinear}
    processor: Any
    if clip or fit == "crop":
        cropped: dict[str, Any] = {"size": {"shortest_edge": size}, "do_center_crop": True, "crop_size": square}
        whole: dict[str, Any] = {"size": square, "do_center_crop": False}
        processor = CLIPImageProcessor(**scale, **(cropped if fit == "crop" else whole))
    else:
        processor = ViTImageProcessor(**scale, size=square)
    processor.save_pretrained(folder)
    if fit in ("squash", "crop"):
        return []
    return [f"Images were made square by {fit!r}, which its processor does not do: give it square images."]
