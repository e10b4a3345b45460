"""How a run was trained and how to repeat it, as (term, text) for its report."""

import shlex
from collections.abc import Mapping
from typing import Any

from finesight.files import human_bytes
from finesight.report import numbers
from finesight.report.contents import Contents


def training(found: Contents) -> list[tuple[str, str]]:
    """How the model was trained and which epoch was kept, as (term, text)."""
    config, run = found.config, found.run
    train = config.get("train") or {}
    facts: list[tuple[str, Any]] = [
        ("epochs", _epochs(found)),
        ("kept epoch", _kept(found)),
        ("optimizer", train.get("optimizer")),
        ("learning rate", _rate(train)),
        ("weight decay", train.get("weight_decay")),
        ("batch size", _batch(train)),
        ("images per class and epoch", train.get("balance")),
        ("largest gradient norm", train.get("clip")),
        ("label smoothing", config.get("label_smoothing") or None),
        ("augmentation", _augmentation(config.get("augment") or {}) if config else None),
        ("precision", run.get("precision")),
    ]
    return [(term, str(text)) for term, text in facts if text is not None]


def _epochs(found: Contents) -> str | None:
    done = found.run.get("epochs") or len(found.history)
    planned = (found.config.get("train") or {}).get("epochs")
    steps = f", {found.run['steps']:,} optimiser steps" if found.run.get("steps") else ""
    return f"{done}{f' of {planned}' if planned else ''}{steps}" if done else None


def _kept(found: Contents) -> str | None:
    """The best epoch and by what it was chosen."""
    best, selection = found.run.get("best_epoch"), found.run.get("selection") or {}
    if best is None:
        return None
    name, value = selection.get("metric"), selection.get("value")
    if name is None or value is None:
        return str(best)
    return f"{best}, chosen by {numbers.label(name)} on {selection.get('split')}: {numbers.number(name, value)}"


def _rate(train: Mapping[str, Any]) -> str | None:
    if "lr" not in train:
        return None
    warm = f", {train['warmup_steps']:,} steps of warm-up" if train.get("warmup_steps") else ""
    return f"{train['lr']:g}, {train.get('schedule')} schedule{warm}"


def _batch(train: Mapping[str, Any]) -> str | None:
    if "batch_size" not in train:
        return None
    parts = train.get("accumulation") or 1
    return f"{train['batch_size']}" + (f", in {parts} parts" if parts > 1 else "")


def _augmentation(augment: Mapping[str, Any]) -> str:
    kinds = ("crop", "rotate", "flip", "jitter", "holes")
    used = [f"{name} with probability {augment[name]:g}" for name in kinds if augment.get(name)]
    return ", ".join(used) or "none"


def reproduce(found: Contents) -> list[tuple[str, str]]:
    """Seed, versions, hardware, time and memory, as (term, text)."""
    run = found.run
    hardware, git = run.get("hardware") or {}, run.get("git") or {}
    seconds, memory = (run.get("timing") or {}).get("wall_s"), run.get("peak_memory_bytes")
    ram = hardware.get("memory_bytes")
    machine = [
        hardware.get("processor"),
        f"{hardware['cores']} cores" if hardware.get("cores") else None,
        f"{human_bytes(ram)} memory" if ram else None,
        *(hardware.get("gpus") or []),
        hardware.get("platform"),
    ]
    facts: list[tuple[str, Any]] = [
        ("seed", (run.get("seeds") or {}).get("seed")),
        ("started", run.get("started")),
        ("wall time", None if seconds is None else duration(seconds)),
        ("peak memory", human_bytes(memory) if memory else None),
        ("hardware", ", ".join(part for part in machine if part) or None),
        ("device", run.get("device")),
        ("processes, threads", f"{run.get('processes', 1)}, {run['threads']}" if run.get("threads") else None),
        ("versions", ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items()) or None),
        ("code", f"{git['commit']}{', with local changes' if git.get('changed_files') else ''}" if git else None),
    ]
    return [(term, str(text)) for term, text in facts if text is not None]


def duration(seconds: float) -> str:
    """3,725 -> '1 h 2 min 5 s'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours} h ' if hours else ''}{minutes} min {rest} s"


def command(found: Contents) -> str:
    """The command that started the run; a run from Python has none, but its config.yaml serves."""
    return found.run.get("command") or f"finesight run {shlex.quote(str(found.folder.config))} --output NEW_FOLDER"
