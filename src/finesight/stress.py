"""From a finished run to the results of its stress test: `finesight attack RUN`.

What is measured stands in `finesight.attacks.protocol`; here are the run's model and test images, and RUN/attack.
"""

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from numpy.typing import NDArray
from torch import Tensor, nn

from finesight import cache, recipes, stress_results, stress_stored, surrogates
from finesight import config as configuration
from finesight.attacks import protocol, stored
from finesight.attacks.config import AttackConfig
from finesight.data import draws
from finesight.data.fingerprint import fingerprint
from finesight.engine import Engine
from finesight.errors import ConfigError, RunError
from finesight.reopen import quiet, refuse_changed_data, restored, say
from finesight.run_folder import RunFolder, open_run

CHOICE = 12  # the stream of random numbers that chooses images


@dataclass(frozen=True)
class Subject:
    """A run's model of pixels, and the test images to attack it with.

    images: uint8 [N, 3, H, W]; labels: int64 [N]; ids, groups: N names; expected: the class probabilities the
    run itself gave them, [N, C], or None where its predictions are gone.
    """

    task: Any
    model: nn.Module
    images: Tensor
    labels: NDArray[np.int64]
    ids: list[str]
    groups: list[str]
    expected: NDArray[np.float64] | None


def attack(
    path: str | Path,
    options: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    command: Sequence[str] = (),
    verbose: bool = False,
) -> dict[str, Any]:
    """Stress-test a finished run of a classifier, write RUN/attack and the report anew, and return attack.json.

    `options` are those of `finesight attack` (`AttackConfig`), e.g. {"eps": ["4/255"], "auto": 0}. A run whose
    configuration has a section `attack` brings its own defaults. Raises `UserError` subclasses before work starts.
    """
    folder = open_run(path)
    folder.read_metrics()
    run_options = attackable(folder)
    config = _options(run_options.get("attack") or {}, dict(options or {}))
    check(config, folder)
    place = folder.path / "attack"
    if place.exists() and not overwrite:
        raise RunError(f"{place}: there are results already. Replace them with --overwrite.")
    since, started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    tell = say if verbose else quiet
    with _held(folder), _opened(folder) as subject:
        subject = _chosen(subject, config)
        surrogate = None
        if config.surrogate is not None:
            surrogate = surrogates.load(config.surrogate, subject.task.classes, subject.task.engine.device)
        found = _measured(subject, config, surrogate, tell, verbose)
        summary = stress_results.summary(folder, subject, config, found, surrogate) | {
            "command": shlex.join(command), "started": started, "seconds": round(time.monotonic() - since, 2),
        }  # fmt: skip
        stress_results.write(folder, subject, config, found, summary)
        for alarm in found.alarms:
            tell(f"ALARM: {alarm}")
        _report(folder, folder.path / "attack", tell)
    return summary


def _measured(
    subject: Subject, config: AttackConfig, surrogate: surrogates.Surrogate | None, tell: Any, shown: bool
) -> protocol.Measured:
    size, engine, evaluation = subject.images.shape[-1], subject.task.engine, subject.task.config.evaluation
    tell(f"Attacking {len(subject.ids):,} test images of {size} x {size} pixels; right afterwards:")
    return protocol.measure(
        subject.model, subject.images, subject.labels, subject.ids, subject.groups, config,
        surrogate=surrogate and surrogate.model, expected=subject.expected, bf16=engine.bf16,
        resamples=evaluation.resamples, level=evaluation.level, say=tell, shown=shown,
    )  # fmt: skip


def on_stored(
    path: str | Path, file: str | Path, *, command: Sequence[str] = (), verbose: bool = False
) -> dict[str, Any]:
    """Measure a finished run on the adversarial images that another run's stress test stored.

    Writes RUN/stored/HASH.json and the report anew; returns {"source", "accuracy", "clean", "alarms", ...}: accuracies
    as {value, low, high, n}, that on the clean images from the run's own test predictions, or None where these
    images were not all in its test split. Raises `DataError` for a file that changed, or with other classes.
    """
    folder, tell = open_run(path), say if verbose else quiet
    folder.read_metrics()
    options = attackable(folder)
    found = stored.read(Path(file))
    with _held(folder):
        config = configuration.build(recipes.task_class(options).Config, options)
        engine = Engine(config.precision)
        try:
            task = restored(folder, quiet, engine, config)
            summary, rows = stress_stored.measured_on(folder, task, found, str(file))
        finally:
            engine.close()
        summary["command"] = shlex.join(command)
        place = stress_results.write_stored(folder, found.about["sha256"][:12], summary, rows)
        for line in stress_stored.lines(summary):
            tell(line)
        _report(folder, place, tell)
    return summary


def main(
    run: Path, words: list[str], *, stored_file: str | None, overwrite: bool, as_json: bool, command: list[str]
) -> int:
    """The command: options in `words`; returns the exit code."""
    if stored_file is not None:
        if words or overwrite:
            raise ConfigError(f"{words[0] if words else '--overwrite'}: --stored only measures, and takes no options.")
        result = on_stored(run, stored_file, command=command, verbose=not as_json)
    else:
        options = configuration.parse_flags(words, AttackConfig)
        result = attack(run, options, overwrite=overwrite, command=command, verbose=not as_json)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    return 0


def attackable(folder: RunFolder) -> dict[str, Any]:
    """The stored configuration of a run that can be attacked; else `ConfigError`."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("attack: works in one process; start it without torchrun.")
    stored_options = configuration.read_yaml(folder.config)
    if stored_options.get("task") == "contrastive":
        raise ConfigError(
            f"{folder.path}: a contrastive run learns images and texts, and gives no classes by itself. Write its CLIP "
            f"out, finesight export {shlex.quote(str(folder.path))} FOLDER, and attack that as a classifier: "
            "finesight run clip-zero-shot --model.name FOLDER."
        )
    if stored_options.get("task") not in surrogates.ATTACKABLE:
        raise ConfigError(
            f"{folder.path}: a {stored_options.get('task')} run gives images no classes, so there is nothing to "
            f"attack; finesight attack is for {', '.join(surrogates.ATTACKABLE)}."
        )
    return stored_options


@contextmanager
def _held(folder: RunFolder) -> Iterator[None]:
    folder.lock()
    try:
        yield
    finally:
        folder.unlock()


@contextmanager
def _opened(folder: RunFolder) -> Iterator[Subject]:
    """The run's task with its best weights and its own test split, which must not have changed."""
    options = configuration.read_yaml(folder.config)
    kind = recipes.task_class(options)
    config = configuration.build(kind.Config, options)
    engine = Engine(config.precision)
    try:
        task = restored(folder, quiet, engine, config)
        data = kind.load(config)
        refuse_changed_data(folder, fingerprint(data, cache.folder(config.data.cache_dir)))
        part = task.prepare(DatasetDict({"test": data["test"]}))["test"]
        task.model.eval()
        ids, groups = list(part["id"]), list(part["group"])
        expected = stress_stored.own_probabilities(folder, ids)
        yield Subject(
            task, surrogates.pixel_model(task), task.pixels["test"], task.labels["test"], ids, groups, expected
        )
    finally:
        engine.close()


def check(config: AttackConfig, victim: RunFolder | None = None, classes: Sequence[str] | None = None) -> None:
    """Raise `UserError` subclasses for options that no stress test could follow, so that no training is in vain."""
    protocol.chosen_corruptions(config)
    if config.surrogate is not None:
        surrogates.check(config.surrogate, victim, classes)


def _options(stored_options: Mapping[str, Any], given: Mapping[str, Any]) -> AttackConfig:
    """The run's own options with those given over them; its lengths belong to its own norm."""
    norm = stored_options.get("norm", "linf")
    kept = stored_options
    if given.get("norm", norm) != norm:
        kept = {key: value for key, value in stored_options.items() if key not in ("eps", "step", "auto_eps")}
    return configuration.build(AttackConfig, kept, given)


def _chosen(subject: Subject, config: AttackConfig) -> Subject:
    rows = chosen_rows(subject.ids, subject.labels, config.images, config.seed)
    return Subject(
        subject.task,
        subject.model,
        subject.images[torch.from_numpy(rows)],
        subject.labels[rows],
        [subject.ids[row] for row in rows],
        [subject.groups[row] for row in rows],
        None if subject.expected is None else subject.expected[rows],
    )


def chosen_rows(ids: Sequence[str], labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Rows of `count` images (all if there are fewer), each class in its own proportion, int64.

    Drawn by seed and id. Any beginning of the result is such a choice too, and a smaller `count` gives a beginning of
    a larger one.
    """
    drawn = draws.uniform(ids, 1, seed, CHOICE)[:, 0]
    place = np.empty(len(ids))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        # The images of a class lie evenly spaced in (0, 1), in the order of their draws.
        place[rows[np.argsort(drawn[rows])]] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.lexsort((drawn, place))[:count].astype(np.int64)


def _report(folder: RunFolder, results: Path, tell: Any) -> None:
    from finesight.report import html

    html.write_report(folder.path)
    tell(f"Results: {results}\nReport: {folder.report}")
