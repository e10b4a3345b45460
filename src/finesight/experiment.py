"""One experiment from configuration to report, new or continued."""

import os
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from finesight import cache, checkpoint, recipes
from finesight import config as configuration
from finesight.data.fingerprint import fingerprint
from finesight.engine import Engine, hardware
from finesight.errors import RunError, Stopped
from finesight.evaluate import evaluate, finite, predict, read_start, scores, write_predictions, write_start
from finesight.files import read_json, sync, write_json, write_text
from finesight.reopen import Run, load_frozen, quiet, refuse_changed_conditions, refuse_changed_data, say
from finesight.run_folder import RunFolder, git_state, peak_memory, versions
from finesight.train import check_selection, fit

LOCAL_PATHS = (
    ("data", "root"),
    ("data", "source"),
    ("data", "target"),
    ("data", "backgrounds"),
    ("data", "anomalies"),
    ("model", "name"),
    ("model", "weights"),
    ("retention", "root"),
    ("attack", "surrogate"),
)

# Options that may differ when a run is continued: they do not change its numbers; nor does the attack that follows it.
FREE_SECTION = "attack."
FREE = {"train.workers", "train.save_every", "train.save_minutes", "data.cache_dir", "description"}


def run(
    recipe: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    verbose: bool = False,
) -> Run:
    """Run a recipe and return the finished run.

    `overrides` maps dotted options to values, e.g. {"data.root": "leaves.zip", "train.epochs": 1}; the
    keys "output", "resume" are understood too. Raises `UserError` subclasses for anything that the caller
    can mend, before the first step where possible.
    """
    options = {key: os.fspath(v) if isinstance(v, os.PathLike) else v for key, v in (overrides or {}).items()}
    output, resume = options.pop("output", output), options.pop("resume", resume)
    name, base = recipes.read(recipe)
    return execute(
        name, base, configuration.nest(options), Path(output) if output else None, resume, [], verbose=verbose
    )


def execute(
    name: str,
    base: Mapping[str, Any],
    overrides: Mapping[str, Any],
    output: Path | None,
    resume: bool,
    command: list[str],
    *,
    verbose: bool = True,
    attacked: bool = True,
) -> Run:
    """`run` with the parts already read; what the command line calls.

    A task with a section `attack` is attacked when it is done, unless `attacked` is false or it was attacked before.
    """
    kind = recipes.task_class(dict(base))
    config = with_whole_paths(configuration.build(kind.Config, base, overrides))
    engine = Engine(config.precision, config.train.compile)
    # Under torchrun all processes take the folder that the first one names.
    chosen = engine.gather([str(output or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")])[0]
    folder = RunFolder(Path(chosen))
    if resume and folder.exists():
        config = _same_run(kind, name, base, folder, overrides)
    elif folder.exists():
        raise RunError(
            f"{folder.path}: already holds a run. Continue it with --resume, or choose another folder with --output."
        )
    config.data.require()
    if hasattr(config, "attack") and overrides.get("attack") and was_attacked(folder):
        refuse_another_attack(folder, config.attack, set(overrides["attack"]))
    attacked = attacked and hasattr(config, "attack") and not was_attacked(folder)
    tell = say if verbose and engine.main else quiet
    if engine.main:
        folder.lock()
    try:
        _experiment(kind, Request(name, dict(base), command, resume, attacked), config, folder, engine, tell)
    except Stopped:
        if engine.main:
            folder.update_run(status="stopped")
        raise
    finally:
        if engine.main:
            folder.release()
        engine.close()
    if attacked and engine.world > 1:
        tell(f"Attacks work in one process: finesight attack {shlex.quote(str(folder.path))}")
    elif attacked:
        attack_finished(folder, config, command, verbose=verbose)
    return Run(folder.path)


def was_attacked(folder: RunFolder) -> bool:
    """Whether there are results of a stress test."""
    return (folder.path / "attack" / "attack.json").is_file()


def refuse_another_attack(folder: RunFolder, wanted: Any, names: set[str]) -> None:
    """Raise `RunError` where the stress test that is there had other values of the options in `names` than `wanted`."""
    was = read_json(folder.path / "attack" / "attack.json").get("options", {})
    path = Path(was.get("surrogate") or "").expanduser()
    if was.get("surrogate") and path.exists():
        was["surrogate"] = str(path.absolute())  # as `with_whole_paths` makes it
    now = wanted.model_dump(mode="json") | {"eps": wanted.wanted_eps}
    keys = [key for key in now if key in names and key in was]
    other = [f"attack.{key}: {was[key]!r} -> {now[key]!r}" for key in keys if was[key] != now[key]]
    if other:
        raise RunError(
            *other, f"{folder.path}: was attacked with other options (there -> here). Attack it anew with "
            "finesight attack RUN --overwrite and the options wanted here, or give those of before.",
        )  # fmt: skip


def is_finished(folder: RunFolder) -> bool:
    """Whether a run has come to its end, which for one with a section `attack` is its stress test."""
    if not folder.exists() or folder.read_run().get("status") != "finished":
        return False
    return "attack" not in configuration.read_yaml(folder.config) or was_attacked(folder)


def attack_finished(folder: RunFolder, config: Any, command: list[str], *, verbose: bool) -> None:
    """Stress-test a run that has just finished, as `finesight attack` does, with the options of `config`."""
    from finesight import stress

    options = config.attack.model_dump(mode="json")
    stress.attack(folder.path, options, overwrite=True, command=command, verbose=verbose)


def with_whole_paths(config: Any) -> Any:
    """Local paths made absolute, so that the run can be continued and replayed from any folder."""
    changed: dict[str, dict[str, str]] = {}
    for section, key in LOCAL_PATHS:
        value = getattr(getattr(config, section, None), key, None)
        named = getattr(getattr(config, section, None), "BUILT_IN", ())
        if value is not None and value not in named and Path(value).expanduser().exists():
            changed.setdefault(section, {})[key] = str(Path(value).expanduser().absolute())
    parts = {section: getattr(config, section).model_copy(update=update) for section, update in changed.items()}
    return config.model_copy(update=parts)


def _same_run(kind: Any, name: str, base: Mapping[str, Any], folder: RunFolder, overrides: Mapping[str, Any]) -> Any:
    """The stored configuration; refuses a recipe or overrides that would make it another run.

    Sets the number of threads of the run: sums in another order would give other bits.
    """
    stored = configuration.read_yaml(folder.config)
    if (name, dict(base)) not in ((folder.recorded("recipe"), folder.recorded("options")), (name, stored)):
        raise RunError(
            f"{folder.path}: holds a run of {folder.recorded('recipe')!r} with other options than {name!r} has now. "
            f"Continue it without naming a recipe: finesight run --resume --output {shlex.quote(str(folder.path))}"
        )
    torch.set_num_threads(folder.recorded("threads"))
    wanted = with_whole_paths(configuration.build(kind.Config, stored, overrides))
    changed = changes(configuration.build(kind.Config, stored), wanted)
    if changed:
        raise RunError(
            *changed, f"{folder.path}: --resume continues the same run, and these options would change it. "
            "Leave them out, or start a new run with another --output.",
        )  # fmt: skip
    return wanted


def changes(before: Any, after: Any) -> list[str]:
    """The options that would make `after` another run than `before`, in words."""
    was, now = configuration.flatten(before), configuration.flatten(after)
    kept = [key for key in now if key not in FREE and not key.startswith(FREE_SECTION)]
    return [f"{key}: {was[key]!r} -> {now[key]!r}" for key in kept if now[key] != was[key]]


@dataclass(frozen=True)
class Request:
    """What was asked for: the recipe, its own options, the command, whether to continue, whether to attack it after."""

    recipe: str
    options: dict[str, Any]
    command: list[str]
    resume: bool
    attacked: bool


def _experiment(kind: Any, request: Request, config: Any, folder: RunFolder, engine: Engine, say: Any) -> None:
    started = time.monotonic()
    data = kind.load(config)
    stamp = fingerprint(data, cache.folder(config.data.cache_dir))
    refuse_changed_data(folder, stamp)
    classes = list(data["train"].features["label"].names)
    if request.attacked:
        from finesight import stress

        stress.check(config.attack, folder, classes)
    # A run that never reached its first checkpoint starts from the original weights again.
    saved = folder.model if request.resume and any(folder.checkpoints.glob("step-*")) else None
    task = kind(config, classes, engine, say, saved)
    check_selection(task, config.train)
    if saved is not None:
        refuse_changed_conditions(folder, task)
        load_frozen(task, folder)
    for line in task.audit.lines():
        say(line)
    data = task.prepare(data)
    groups = {split: list(data[split]["group"]) for split in task.measured}
    start = predict(task, "test", engine, shown=True) if saved is None and task.measures_start else None
    if engine.main and saved is None:
        _start(folder, request, config, task, data, stamp, start)
    engine.wait()

    def validate() -> dict[str, float]:
        found = scores(task, "validation", predict(task, "validation", engine))
        kept = {"loss": found[task.metric.loss], **{name: value for name, value in found.items() if "/" not in name}}
        return finite(kept | task.validators(kept))

    def better(new: float, old: float) -> bool:
        return new > old if task.higher_is_better(config.train.select) else new < old

    before = time.monotonic()
    state = fit(
        task, config.train, engine, folder,
        seed=config.seed, validate=validate, better=better, say=say, resume=request.resume,
    )  # fmt: skip
    trained = time.monotonic()
    predictions = {split: predict(task, split, engine, shown=True) for split in task.measured}
    if engine.main:
        _finish(folder, task, predictions, groups, config, say)
        selection = {"metric": config.train.select, "split": "validation", "value": state.best}
        folder.update_run(
            status="finished", best_epoch=state.best_epoch, epochs=state.epoch, steps=state.step,
            selection=selection, peak_memory_bytes=peak_memory(),
            timing={"wall_s": round(state.seconds + time.monotonic() - trained + before - started, 3)},
        )  # fmt: skip
        _report(folder, say)
    engine.wait()


def _start(folder: RunFolder, request: Request, config: Any, task: Any, data: Any, stamp: str, start: Any) -> None:
    """Write what is known before the first step; config.yaml last, because it makes the folder a run."""
    if start is not None:
        write_start(folder, start)
    temporary = folder.path / ".tmp-model"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder.model, ignore_errors=True)
    temporary.mkdir()
    task.save_spec(temporary)
    frozen = {f"frozen.{module}": tensors for module, tensors in task.frozen_state().items() if tensors}
    checkpoint.write_folder(temporary, frozen, {"state.json": {"classes": task.classes}})
    os.rename(temporary, folder.model)
    sync(folder.path)
    directory = cache.folder(config.data.cache_dir)
    about_data = {
        "root": config.data.where,
        "fingerprint": stamp,
        "fingerprints": {split: fingerprint(data[split], directory) for split in data},
        "counts": {split: _counts(data[split], task.classes) for split in data},
        "notes": [*config.data.notes(data), *_balance(config)],
    }
    # A run killed before its first checkpoint comes here again, with the command that continued it.
    command = folder.read_run().get("command") or shlex.join(request.command)
    folder.update_run(
        recipe=request.recipe, options=request.options, task=config.task, status="running",
        classes=task.classes, command=command,
        versions=versions(), git=git_state(), seeds={"seed": config.seed}, threads=torch.get_num_threads(),
        processes=task.engine.world, device=str(task.engine.device), precision=task.engine.precision,
        hardware=hardware(), started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        data=about_data, conditions=task.conditions,
        model={"name": config.model.name, **asdict(task.audit), "audit": task.audit.lines(), "notes": task.model.notes},
    )  # fmt: skip
    write_text(folder.config, configuration.to_yaml(config))


def _counts(dataset: Any, classes: list[str]) -> dict[str, int]:
    import numpy as np

    labels = np.asarray(dataset["label"])
    return dict(zip(classes, np.bincount(labels[labels >= 0], minlength=len(classes)).tolist(), strict=True))


def _balance(config: Any) -> list[str]:
    if config.train.balance is None:
        return []
    return [
        f"Training shows {config.train.balance:,} images of every class per epoch, drawn on the fly; "
        "held-out splits are untouched."
    ]


def _finish(folder: RunFolder, task: Any, predictions: Any, groups: Any, config: Any, say: Any) -> dict[str, Any]:
    """Scores, intervals, baselines, per-sample table and figures."""
    say("Measuring with intervals, and the baselines ...")
    before = read_start(folder) if task.measures_start else None
    metrics = evaluate(task, predictions, groups, config.evaluation, config.seed, before=before)
    write_predictions(folder, task, predictions, groups)
    write_json(folder.metrics, metrics)
    folder.update_run(alarms=task.alarms(metrics, folder.read_history()))
    from finesight.report import figures

    figures.save(task.figures(predictions, folder.read_history(), metrics), folder.figures)
    return metrics


def _report(folder: RunFolder, say: Any) -> None:
    from finesight.report import html
    from finesight.report.summary import summary_lines

    html.write_report(folder.path)
    config, history = configuration.read_yaml(folder.config), folder.read_history()
    for line in summary_lines(folder.read_metrics(), folder.read_run(), config, history):
        say(line)
    say(f"Report: {folder.report}")
