"""Finished runs: open one, predict with it, measure it again, run it again."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from finesight import cache, checkpoint, recipes
from finesight import config as configuration
from finesight.data.fingerprint import fingerprint
from finesight.data.loading import load
from finesight.engine import Engine
from finesight.errors import RunError
from finesight.evaluate import evaluate, predict
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

    def predict(self, inputs: str | Path | Sequence[Any]) -> list[dict[str, Any]]:
        """Predictions for image files, or uint8 arrays [H, W, 3]: input, prediction, confidence, scores."""
        if self._task is None:
            self._task = restored(open_run(self.path), quiet)
        return self._task.predict_images([inputs] if isinstance(inputs, str | Path) else list(inputs))


def load_run(path: str | Path) -> Run:
    """Open a run folder."""
    return Run(open_run(path).path)


def evaluate_again(path: Path, split: str = "test", overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Evaluate the stored weights of a run on its data once more, or on other data by overrides.

    Writes nothing. Returns {metric: {value, low, high, n}} of the split.
    """
    folder = open_run(path)
    stored = configuration.read_yaml(folder.config)
    kind = recipes.task_class(stored)
    config = configuration.build(kind.Config, stored, overrides or {})
    engine = Engine(config.precision)
    try:
        task = restored(folder, say if engine.main else quiet, engine)
        data = load(config.data, config.seed)
        names = list(data["train"].features["label"].names)
        if names != task.classes:
            raise RunError(
                f"{path}: trained on the classes {', '.join(task.classes)}; the data has {', '.join(names)}."
            )
        if not overrides:
            refuse_changed_data(folder, fingerprint(data, cache.folder(config.data.cache_dir)))
        data = task.prepare(data)
        groups = {split: list(data[split]["group"])}
        predictions = {split: predict(task, split, engine, shown=True)}
        return evaluate(task, predictions, groups, config.evaluation, config.seed, baselines=False)[split]
    finally:
        engine.close()


def replay(path: Path, command: list[str], output: Path | None = None) -> list[str]:
    """Run the same configuration again in a new folder; returns what differs (nothing, on the same CPU)."""
    folder = open_run(path)
    before = folder.read_run()
    folder.read_metrics()
    torch.set_num_threads(before["threads"])
    stored = configuration.read_yaml(folder.config)
    with tempfile.TemporaryDirectory() as scratch:
        from finesight.experiment import execute

        again = execute(before["recipe"], stored, {}, output or Path(scratch) / "replay", False, command)
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


def restored(folder: RunFolder, say: Any, engine: Engine | None = None) -> Any:
    """The task of a run with its best weights, without data; in the precision of the run."""
    stored = configuration.read_yaml(folder.config)
    kind = recipes.task_class(stored)
    config = configuration.build(kind.Config, stored)
    found = checkpoint.newest(folder.checkpoints, say)
    if found is None:
        raise RunError(f"{folder.path}: no epoch is finished yet, so there are no weights. Continue it with --resume.")
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


def say(text: str) -> None:
    print(text, flush=True)


def quiet(text: str) -> None:
    pass
