"""Checkpoints that survive a kill at any moment: safetensors and JSON, hashed, renamed into place.

`checkpoints/step-00001234/` holds one or more `NAME.safetensors`, `state.json` and `manifest.json`
with the size and SHA-256 of each. It is written to a temporary folder, fsynced and renamed, so a
folder with the final name is complete; the hashes catch what the disk does to it later.
"""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finesight.errors import CheckpointError
from finesight.files import human_bytes, read_json, remove_leftovers, sha256, share, sync, write_json

Tensors = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint folder."""

    path: Path
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.path / f"{name}.safetensors")


def path_of(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}"


def save(directory: Path, step: int, tensors: Tensors, state: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` and return its folder.

    Raises `CheckpointError` when the disk is full, stating the bytes needed; earlier checkpoints stay.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = path_of(directory, step)
    temporary = directory / f".tmp-{os.getpid()}-{final.name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write_folder(temporary, tensors, {"state.json": state})
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
        sync(directory)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            needed = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
            free = shutil.disk_usage(directory).free
            raise CheckpointError(
                f"{directory}: the disk is full: a checkpoint needs {human_bytes(needed)} ({needed} bytes), "
                f"{human_bytes(free)} are free. The earlier checkpoints are kept; make room and run again "
                "with --resume."
            ) from None
        raise
    return final


def write_folder(folder: Path, tensors: Tensors, documents: dict[str, Any]) -> None:
    """Tensors, JSON documents and the manifest of both, all fsynced."""
    for name, group in tensors.items():
        path = folder / f"{name}.safetensors"
        # Cloned: two names of one tensor (tied weights) are stored as two.
        save_file(
            {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in group.items()},
            path,
        )
        share(path)
        sync(path)
    for name, content in documents.items():
        write_json(folder / name, content)
    names = [f"{name}.safetensors" for name in tensors] + list(documents)
    manifest = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names}
    write_json(folder / "manifest.json", manifest)


def verify(path: Path) -> str | None:
    """None when every file has its recorded size and hash, else what is wrong."""
    try:
        manifest = read_json(path / "manifest.json")
        for name, expected in manifest.items():
            file = path / name
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, {expected['bytes']} were written"
            if sha256(file) != expected["sha256"]:
                return f"{name} does not have the hash it was written with"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read ({error})"
    return None


def newest(directory: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest valid checkpoint, or None where there is none yet.

    A damaged one is said and passed over; when all are damaged, raises `CheckpointError`.
    """
    if not directory.is_dir():
        return None
    folders = sorted(directory.glob("step-*"), reverse=True)
    damaged: list[str] = []
    for folder in folders:
        fault = verify(folder)
        if fault is None:
            if damaged:
                say(f"Using {folder.name} instead.")
            return Checkpoint(folder, read_json(folder / "state.json"))
        damaged.append(f"{folder}: damaged: {fault}.")
        say(damaged[-1])
    if damaged:
        raise CheckpointError(*damaged, f"{directory}: no valid checkpoint is left; start again with a new --output.")
    return None


def opened(path: Path) -> Checkpoint:
    """One particular checkpoint, verified."""
    fault = verify(path)
    if fault is not None:
        raise CheckpointError(f"{path}: damaged: {fault}. Train again, or restore the folder from a backup.")
    return Checkpoint(path, read_json(path / "state.json"))


def prune(directory: Path, keep: set[int]) -> None:
    """Delete the checkpoints whose step is not in `keep`, and what killed saves left."""
    names = {path_of(directory, step).name for step in keep}
    for folder in directory.glob("step-*"):
        if folder.name not in names:
            shutil.rmtree(folder)
    remove_leftovers(directory)


def drop_after(directory: Path, step: int) -> None:
    """Delete the checkpoints of later steps: damaged ones, in whose place the run is done again."""
    for folder in directory.glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's per-parameter state as flat tensors `INDEX.NAME`."""
    flat = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if value is not None:
                flat[f"{index}.{name}"] = torch.as_tensor(value)
    return flat


def restore_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`; hyper-parameters stay those of the configuration."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    known = {index for group in groups for index in group["params"]}
    if not set(state) <= known:
        raise CheckpointError(
            f"optimiser: the checkpoint has state for {len(state)} parameters, the model trains {len(known)}. "
            "The code or configuration changed since; use the version that wrote the run, or a new --output."
        )
    parameters: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, entries in state.items():
        parameter = parameters[place]
        for name, value in entries.items():
            if value.shape == parameter.shape and value.dim():
                # Fused optimisers walk the memory of both side by side: the layout must be the parameter's.
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def restore_module(module: torch.nn.Module, tensors: dict[str, Tensor], expected: set[str], what: str) -> None:
    """Copy `tensors` into the module; the keys must be exactly `expected` and the shapes equal."""
    missing, unexpected = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
    current = module.state_dict()
    wrong = [key for key in expected & set(tensors) if current[key].shape != tensors[key].shape]
    if missing or unexpected or wrong:
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", wrong)]
        faults = "; ".join(f"{len(keys)} {name} (such as {keys[0]})" for name, keys in parts if keys)
        raise CheckpointError(f"{what}: the weights do not fit the model: {faults}. Nothing was loaded.")
    with torch.no_grad():
        for key, value in tensors.items():
            current[key].copy_(value)
