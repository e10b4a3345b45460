"""The one guarded way in for weights: files and Hugging Face folders, read without running their code.

Safetensors files hold numbers only. A torch file is a pickle, which can run anything when opened, so it
goes through `torch.load(weights_only=True)`; a model folder with own code (`auto_map`) is refused.
"""

import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesight.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

TORCH_SUFFIXES = (".pth", ".th", ".pt", ".bin")
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def read(path: Path) -> "dict[str, Tensor]":
    """Every tensor of a weight file by name, on the CPU; a `module.` prefix of parallel training is cut.

    Reads safetensors, and torch files that hold a state dict (or one under "state_dict" or "model").
    Raises `ModelError` for a missing, damaged, foreign or executable file.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such weight file; give a .safetensors file, or a .pth, .th or .pt state dict.")
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        state = _read_torch(path)
    else:
        raise ModelError(f"{path}: weights end in .safetensors, .pth, .th or .pt, not in {path.suffix!r}.")
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _read_safetensors(path: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({first_line(error)}); fetch it again.") from None


def _read_torch(path: Path) -> "dict[str, Tensor]":
    import pickle

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a foreign pickle is refused below, with the reason
            # Only the zip format of torch >= 1.6 can be memory-mapped; older files are read whole.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign is None:
            raise ModelError(f"{path}: not a torch file, or a damaged one; fetch it again.") from None
        raise ModelError(
            f"{path}: holds more than tensors ({foreign[1]}), and opening that could run code. Save only the "
            "state dict: torch.save(model.state_dict(), ...), or better a .safetensors file."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a readable torch file ({first_line(error)}); fetch it again.") from None
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> "dict[str, Tensor]":
    import torch

    if isinstance(content, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    named = isinstance(content, Mapping) and content
    if not named or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(f"{path}: holds no state dict (names to tensors); save it with model.state_dict().")
    return {str(name): tensor for name, tensor in content.items()}


def load_strict(
    model: "nn.Module",
    state: "Mapping[str, Tensor]",
    *,
    allow_missing: Collection[str] = (),
    source: str = "weights",
) -> None:
    """Copy `state` into `model`: every name present on both sides, with the same shape, without loss.

    Names in `allow_missing` may be absent from `state`; so may the second name of a tensor that the model
    holds under two names. Anything else raises `ModelError` that lists the names, and nothing is copied.
    """
    import torch

    own = model.state_dict(keep_vars=True)
    present = {id(own[name]) for name in state if name in own}
    missing = [
        n for n, tensor in own.items() if n not in state and n not in allow_missing and id(tensor) not in present
    ]
    unexpected = [name for name in state if name not in own]
    wrong = [
        f"{name} (has {list(state[name].shape)}, the model {list(tensor.shape)})"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    lossy = [
        f"{name} ({state[name].dtype} into {tensor.dtype})"
        for name, tensor in own.items()
        if name in state and torch.promote_types(state[name].dtype, tensor.dtype) != tensor.dtype
    ]
    found = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": wrong,
        "would lose digits": lossy,
    }
    found["tied in the model but different here"] = _untied(own, state)
    problems = [f"{source}: {len(names)} {what}: {listed(names)}." for what, names in found.items() if names]
    if problems:
        raise ModelError(
            *problems,
            f"{source}: do not fit this model; nothing was loaded. Use the weights it was saved with.",
        )
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def _untied(own: "Mapping[str, Tensor]", state: "Mapping[str, Tensor]") -> list[str]:
    """Pairs of names that are one tensor in the model, and two different ones in the state."""
    import torch

    first: dict[int, str] = {}
    pairs = []
    for name in (name for name in state if name in own):
        other = first.setdefault(id(own[name]), name)
        if other != name and not torch.equal(state[name], state[other]):
            pairs.append(f"{other} and {name}")
    return pairs


def listed(names: Iterable[str], limit: int = 8) -> str:
    """ "a, b, c and 12 more"."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def state_hash(model: "nn.Module | Mapping[str, Tensor]") -> str:
    """Hexadecimal blake2b (128 bit) over the names, types, shapes and bytes of a module or state dict."""
    import torch

    state = model.state_dict() if isinstance(model, torch.nn.Module) else model
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_folder(folder: Path, *, needs_weights: bool = True) -> dict[str, Any]:
    """The `config.json` of a Hugging Face model folder that is safe to load, else `ModelError`."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: holds no config.json; give a folder written by save_pretrained.")
    config = _read_json(path)
    for name in ("config.json", "preprocessor_config.json"):
        if (folder / name).is_file() and "auto_map" in _read_json(folder / name):
            raise ModelError(
                f"{folder}: {name} has auto_map: loading it would run Python code that came with the model. "
                "Use a model that transformers itself contains; where its model_type is one of those, remove "
                "auto_map from the file."
            )
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder}: holds an adapter (adapter_config.json) for another model; merge it into that model "
            "and give the folder of the result."
        )
    if needs_weights and not any(folder.glob("*.safetensors")):
        pickles = sorted(found.name for found in folder.glob("*") if found.suffix in (*TORCH_SUFFIXES, ".pkl"))
        raise ModelError(no_safetensors(str(folder), pickles))
    return config


def no_safetensors(name: str, pickles: list[str]) -> str:
    """Why a model without safetensors is refused, and what to do."""
    if not pickles:
        return f"{name}: holds no weights (*.safetensors); copy them there, or set model.pretrained false."
    return (
        f"{name}: its weights are pickle only ({listed(pickles)}), and opening a pickle can run code. "
        "Convert it once: finesight.models.weights.convert(FOLDER) writes model.safetensors from a local "
        "pytorch_model.bin; a Hub model often has a converted revision, model.revision refs/pr/N."
    )


def convert(folder: Path) -> Path:
    """Write `model.safetensors` from `pytorch_model.bin`, read with `weights_only`; returns its path."""
    from safetensors.torch import save_file

    target = folder / "model.safetensors"
    state = {name: tensor.contiguous().clone() for name, tensor in read(folder / "pytorch_model.bin").items()}
    save_file(state, target, metadata={"format": "pt"})
    return target


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: not readable as JSON ({first_line(error)}).") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds {type(content).__name__}, not an object.")
    return content


def first_line(error: Exception) -> str:
    """The first sentence of a library's message."""
    return " ".join(str(error).split())[:200].split(". ")[0]
