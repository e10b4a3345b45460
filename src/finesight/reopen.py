"""Finished runs: open one, predict with it, measure it again, run it again."""

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict

from finesight import cache, checkpoint, recipes
from finesight import config as configuration
from finesight.data.fingerprint import content_hashes, fingerprint
from finesight.engine import Engine
from finesight.errors import ConfigError, RunError, UserError
from finesight.evaluate import NO_SPLIT, evaluate, predict
from finesight.run_folder import RunFolder, open_run
from finesight.train import load_weights


class Run:
    """A finished run: its folder, its numbers, and its model ready for new images."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._task: Any = None

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: {split: {metric: {value, low, high, n}}, "baselines": {name: ...}}."""
        return open_run(self.path).read_metrics()

    def predict(self, inputs: Any) -> list[dict[str, Any]]:
        """What the model makes of one or more image files, PIL images or uint8 arrays [H, W, 3].

        Returns one dict for each: a classifier gives {"input", "prediction", "confidence", "scores"}.
        """
        single = isinstance(inputs, str | Path) or hasattr(inputs, "__array_interface__")
        return self.task.predict_images([inputs] if single else list(inputs))

    def attack(self, options: Mapping[str, Any] | None = None, *, overwrite: bool = False) -> dict[str, Any]:
        """Stress-test the run, as `finesight attack` does; the content of RUN/attack/attack.json (`stress.attack`)."""
        from finesight import stress

        return stress.attack(self.path, options, overwrite=overwrite)

    @property
    def task(self) -> Any:
        """The task with its best weights, without data."""
        if self._task is None:
            self._task = restored(open_run(self.path), quiet)
        return self._task


def load_run(path: str | Path) -> Run:
    """Open a run folder."""
    return Run(open_run(path).path)


def evaluate_again(path: Path, split: str = "test", overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Measure the stored weights of a run once more: on its own data, or on a test set of its own.

    That is named by `data.root`, or by `data.target` for a domain adaptation.

    Other data is measured whole, or its test split where it has one. Options that would split the run's own
    data anew are refused: training samples would become test samples. Writes nothing. Returns
    {metric: {value, low, high, n}}.
    """
    folder = open_run(path)
    known = [name for name in folder.read_metrics() if name not in NO_SPLIT] or ["test", "validation"]
    if split not in known:
        raise ConfigError(f"split: {split!r} cannot be measured; give one of {', '.join(sorted(known))}.")
    stored = configuration.read_yaml(folder.config)
    given = dict(overrides or {})
    kind = recipes.task_class(stored)
    key = kind.test_set
    foreign = key in given.get("data", {})
    _refuse_new_splits(given, foreign, key)
    config = configuration.build(kind.Config, stored, given)
    engine = Engine(config.precision)
    try:
        task = restored(folder, quiet, engine, config)
        for change in changed_conditions(folder, task):
            logging.getLogger("finesight").warning("%s: measured otherwise than the run was: %s.", folder.path, change)
        if foreign:
            split, part = "test", kind.load_test(config, task.classes)
            _warn_of_known_images(folder, kind.load, configuration.build(kind.Config, stored), part)
        else:
            data = kind.load(config)
            refuse_changed_data(folder, fingerprint(data, cache.folder(config.data.cache_dir)))
            part = data[split]
        part = task.prepare(DatasetDict({split: part}))[split]
        predictions = {split: predict(task, split, engine, shown=True)}
        groups = {split: list(part["group"])}
        return evaluate(task, predictions, groups, config.evaluation, config.seed, baselines=False)[split]
    finally:
        engine.close()


def _warn_of_known_images(folder: RunFolder, load: Any, config: Any, part: Any) -> None:
    """Say how many images of another test set the run was trained on or chosen by; nothing where its data is gone."""
    try:
        data = load(config)
        directory = cache.folder(config.data.cache_dir)
        known = {each for split in data if split != "test" for each in content_hashes(data[split], directory)}
    except UserError:
        return
    found = sum(each in known for each in content_hashes(part, directory))
    if found:
        logging.getLogger("finesight").warning(
            "%s: %s of %s images are among those it was trained on or chosen by, so the numbers are too good. Leave "
            "them out; its own test images are measured without naming any data.",
            folder.path, f"{found:,}", f"{len(part):,}",
        )  # fmt: skip


def _refuse_new_splits(given: Mapping[str, Any], foreign: bool, key: str) -> None:
    """Only how to measure may change, and, for other data, where it is and how it is read."""
    allowed = {"cache_dir"}
    if foreign:
        allowed |= {key, "revision", "image_column", "label_column", "group", "skip_bad", "sixteen_bit"}
        allowed |= {"caption_column", "image_folder"}
    flat = {f"data.{key}" for key in given.get("data", {}) if key not in allowed}
    flat |= {key for key in given if key not in ("data", "evaluation")}
    if flat:
        raise ConfigError(
            f"{', '.join(sorted(flat))}: a finished run is measured as it is; these options cannot change any more. "
            "Options of eval: --split, --evaluation.*, --data.cache_dir, and "
            f"--data.{key} for another test set."
        )


def replay(path: Path, command: list[str], output: Path | None = None) -> list[str]:
    """Run the same configuration again in a new folder; returns what differs (nothing, on the same CPU)."""
    folder = open_run(path)
    folder.read_metrics()
    torch.set_num_threads(folder.recorded("threads"))
    stored = configuration.read_yaml(folder.config)
    with tempfile.TemporaryDirectory() as scratch:
        from finesight.experiment import execute

        place = output or Path(scratch) / "replay"
        again = execute(
            folder.recorded("recipe"), stored, {}, place, False, command, verbose=output is not None, attacked=False
        )
        return differences(folder, RunFolder(again.path))


def differences(a: RunFolder, b: RunFolder) -> list[str]:
    """Where two runs differ: epoch losses and scores, then final metrics; compared bit for bit."""
    found = []
    rows_a, rows_b = a.read_history(), b.read_history()
    if len(rows_a) != len(rows_b):
        found.append(f"history: {len(rows_a)} epochs and {len(rows_b)}")
    for x, y in zip(rows_a, rows_b, strict=False):
        if x != y:
            losses = [row["validation"].get("loss") for row in (x, y)]
            found.append(f"epoch {x['epoch']}: train {x['train']} and {y['train']}; validation loss {losses}")
    if a.read_metrics() != b.read_metrics():
        found.append("metrics.json differs")
    return found


def load_frozen(task: Any, folder: RunFolder) -> None:
    stored = checkpoint.opened(folder.model)
    for name, expected in task.frozen_state().items():
        if expected:
            tensors = stored.tensors(f"frozen.{name}")
            checkpoint.restore_module(task.modules[name], tensors, set(expected), str(folder.model))


def restored(folder: RunFolder, say: Any, engine: Engine | None = None, config: Any = None) -> Any:
    """The task of a run with its best weights, without data; in the precision of the run.

    `config` stands in for the stored configuration, where only the measuring differs.
    """
    stored = configuration.read_yaml(folder.config)
    kind = recipes.task_class(stored)
    config = config or configuration.build(kind.Config, stored)
    found = checkpoint.newest(folder.checkpoints, say)
    if found is None:
        raise RunError(
            f"{folder.path}: there is no checkpoint in it, so no weights. Continue or repeat it with --resume."
        )
    engine = engine or Engine(config.precision)
    task = kind(config, checkpoint.opened(folder.model).state["classes"], engine, say, folder.model)
    load_frozen(task, folder)
    best = found.state["best_step"]
    load_weights(task, found if best is None else checkpoint.opened(checkpoint.path_of(folder.checkpoints, best)))
    return task


def refuse_changed_data(folder: RunFolder, stamp: str) -> None:
    before = folder.read_run().get("data", {}).get("fingerprint") if folder.exists() else None
    if before is not None and before != stamp:
        raise RunError(
            f"{folder.path}: the data changed since the run began (fingerprint {before[:12]}, now {stamp[:12]}). "
            "Restore the data, or start a new run with another --output."
        )


def changed_conditions(folder: RunFolder, task: Any) -> list[str]:
    """What of `task.conditions` is no longer as the run had it, "name: was -> is", only the parts that differ.

    A part is what stands between semicolons. What is only there in addition (a score asked for now) is no change, and
    the version of finesight alone is none.
    """
    before, now = folder.read_run().get("conditions") or {}, json.loads(json.dumps(task.conditions))
    found = []
    for name in before:
        was, has = (str(conditions.get(name, "")).split("; ") for conditions in (before, now))
        lost = [part for part in was if part not in has and not part.startswith("finesight ")]
        instead = [part for part in has if part not in was and not part.startswith("finesight ")]
        if lost:
            found.append(f"{name}: {'; '.join(lost)} -> {'; '.join(instead) or 'nothing'}")
    return found


def refuse_changed_conditions(folder: RunFolder, task: Any) -> None:
    """Raise `RunError` where a continued run would be measured otherwise than it was so far."""
    changed = changed_conditions(folder, task)
    if changed:
        raise RunError(
            f"{folder.path}: the run would be measured otherwise than it was so far ({', '.join(changed)}). Restore "
            "what it was measured with, or start a new run with another --output."
        )


def say(text: str) -> None:
    print(text, flush=True)


def quiet(text: str) -> None:
    pass
