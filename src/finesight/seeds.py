"""The same run with several seeds, one after another, and how much its numbers vary."""

import json
import os
import shlex
import signal
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from finesight import cache, experiment, recipes
from finesight import config as configuration
from finesight.data.fingerprint import fingerprint
from finesight.errors import ConfigError, RunError, Stopped
from finesight.files import read_json, write_json
from finesight.reopen import Run, quiet, refuse_changed_data, say
from finesight.report import numbers
from finesight.run_folder import RunFolder

SUMMARY = "seeds.json"


@dataclass(frozen=True)
class SeedRuns:
    """Finished runs that differ in their seed alone. `summary` is the content of seeds.json."""

    path: Path
    summary: dict[str, Any]

    @property
    def runs(self) -> list[Run]:
        return [Run(folder_of(self.path, seed)) for seed in self.summary["seeds"]]


def run_seeds(
    recipe: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    count: int | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    verbose: bool = False,
) -> SeedRuns:
    """Run a recipe with `count` seeds, from its `seed` on; each is a run folder OUTPUT/seed-N.

    `overrides` as in `finesight.run`. With `resume`, finished seeds are kept, a started one is continued and
    missing ones are run; a larger `count` adds seeds. Raises `UserError` subclasses, and `Stopped`.
    """
    options = {key: os.fspath(v) if isinstance(v, os.PathLike) else v for key, v in (overrides or {}).items()}
    name, base = recipes.read(recipe)
    place = Path(output) if output else None
    return execute(name, base, configuration.nest(options), place, count, resume, [], verbose=verbose)


def execute(
    name: str,
    base: dict[str, Any],
    overrides: Mapping[str, Any],
    output: Path | None,
    count: int | None,
    resume: bool,
    command: list[str],
    *,
    verbose: bool = True,
) -> SeedRuns:
    """`run_seeds` with the parts already read; what the command line calls."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("--seeds: for one process; with several, start the seeds one by one, each with --seed S.")
    if resume and output and (holds_seeds(output) or RunFolder(output).exists()):
        plan = _continued(name, base, overrides, output, count)
    else:
        plan, output = _begun(name, base, overrides, output, count, command)
        overrides = {}
    _run_all(plan, overrides, output, say if verbose else quiet, verbose)
    summary = plan | {"status": "finished"} | summarise(output, plan["seeds"])
    _write(output, summary, say if verbose else quiet)
    return SeedRuns(output, summary)


def holds_seeds(path: Path | str | None) -> bool:
    """Whether a folder was begun with --seeds."""
    return path is not None and (Path(path) / SUMMARY).is_file()


def folder_of(output: Path, seed: int) -> Path:
    return output / f"seed-{seed}"


def read_plan(output: Path) -> dict[str, Any]:
    """What `output` was begun with; raises `RunError` where seeds.json is damaged."""
    path = output / SUMMARY
    try:
        found = read_json(path)
        return {key: found[key] for key in ("recipe", "options", "config", "command", "threads", "seeds")}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: damaged ({error!r}); restore it from a backup, or choose a new --output.") from None


# ---- what is to be run ------------------------------------------------------------------------


def _begun(
    name: str,
    base: dict[str, Any],
    overrides: Mapping[str, Any],
    output: Path | None,
    count: int | None,
    command: list[str],
) -> tuple[dict[str, Any], Path]:
    """A new plan, and its folder, which must not hold anything yet."""
    if count is None or count < 2:
        raise ConfigError(f"seeds: {count} is not enough to see a spread; give 2 or more.")
    kind = recipes.task_class(base).Config
    config = experiment.with_whole_paths(configuration.build(kind, base, overrides))
    config.data.require()
    output = output or Path("runs") / f"{name}-seeds-{time.strftime('%Y%m%d-%H%M%S')}"
    _refuse_used(output)
    plan = {
        "status": "unfinished",
        "recipe": name,
        "options": base,
        "config": config.model_dump(mode="json"),
        "command": shlex.join(command) or None,
        "threads": torch.get_num_threads(),
        "seeds": list(range(config.seed, config.seed + count)),
    }
    _write_plan(output, plan)
    return plan, output


def _refuse_used(output: Path) -> None:
    if holds_seeds(output) or RunFolder(output).exists():
        what = "runs with several seeds" if holds_seeds(output) else "a run of one seed"
        raise RunError(f"{output}: already holds {what}. {_remedy(output)}, or choose another folder with --output.")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise RunError(f"{output}: not empty, and not begun with --seeds. Choose a new folder with --output.")


def _write_plan(output: Path, plan: dict[str, Any]) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / SUMMARY, plan)
    except OSError as error:
        raise RunError(f"{output}: cannot be written: {error.strerror}. Choose another --output.") from None


def _continued(
    name: str, base: dict[str, Any], overrides: Mapping[str, Any], output: Path, count: int | None
) -> dict[str, Any]:
    """The plan that `output` was begun with, with more seeds where `count` asks for them."""
    if RunFolder(output).exists():
        raise RunError(f"--seeds: {output} holds a run of one seed. {_remedy(output)}, or choose another --output.")
    plan = {"status": "unfinished", **read_plan(output)}
    if (name, base) != (plan["recipe"], plan["options"]):
        raise RunError(
            f"{output}: holds runs of {plan['recipe']!r} with other options than {name!r} has now. {_remedy(output)}"
        )
    before = len(plan["seeds"])
    if count is not None and count < before:
        raise RunError(f"--seeds: {output} was begun with {before} seeds, and --resume takes none away.")
    first = plan["seeds"][0]
    plan["seeds"] = list(range(first, first + (count or before)))
    torch.set_num_threads(plan["threads"])  # sums in another order would give other bits
    _refuse_other_options(plan, overrides, output)
    if any(not _finished(output, seed) for seed in plan["seeds"]):
        _refuse_other_data(plan, output)
        write_json(output / SUMMARY, plan)
    return plan


def _finished(output: Path, seed: int) -> bool:
    folder = RunFolder(folder_of(output, seed))
    return experiment.is_finished(folder) and folder.report.is_file()


def _refuse_other_options(plan: Mapping[str, Any], overrides: Mapping[str, Any], output: Path) -> None:
    """Refuse overrides, or a folder of one seed, that would make it another run."""
    kind = recipes.task_class(plan["options"]).Config
    planned = configuration.build(kind, plan["config"])
    wanted = experiment.with_whole_paths(configuration.build(kind, plan["config"], overrides))
    changed = experiment.changes(planned, wanted)
    if changed:
        raise RunError(
            *changed, f"{output}: --resume continues the same runs, and these options would change them. "
            "Leave them out, or begin with another --output.",
        )  # fmt: skip
    for seed in plan["seeds"]:
        folder = RunFolder(folder_of(output, seed))
        if folder.exists():
            stored = configuration.build(kind, configuration.read_yaml(folder.config))
            if experiment.changes(planned.model_copy(update={"seed": seed}), stored):
                raise RunError(f"{folder.path}: holds another run than {output / SUMMARY} says. Move it away.")


def _refuse_other_data(plan: Mapping[str, Any], output: Path) -> None:
    """Refuse to put seeds on changed data beside finished ones. A started run checks its own data."""
    seed = next((seed for seed in plan["seeds"] if _finished(output, seed)), None)
    if seed is not None:
        kind = recipes.task_class(plan["options"])
        config = configuration.build(kind.Config, plan["config"], {"seed": seed})
        stamp = fingerprint(kind.load(config), cache.folder(config.data.cache_dir))
        refuse_changed_data(RunFolder(folder_of(output, seed)), stamp)


# ---- running them -----------------------------------------------------------------------------


def _run_all(plan: Mapping[str, Any], overrides: Mapping[str, Any], output: Path, tell: Any, verbose: bool) -> None:
    base = plan["options"]
    config = configuration.merge(plan["config"], overrides)
    for number, seed in enumerate(plan["seeds"], start=1):
        folder = RunFolder(folder_of(output, seed))
        where = f"Seed {seed} ({number} of {len(plan['seeds'])})"
        if _finished(output, seed):
            tell(f"{where}: finished before, kept.")
            continue
        tell(f"{where}: {folder.path}")
        command = _command_of_one(plan["command"], seed, folder.path)
        try:
            experiment.execute(
                plan["recipe"], base, config | {"seed": seed}, folder.path, True, command, verbose=verbose
            )
        except Stopped as stopped:
            _stop(stopped.exit_code - 128, str(stopped).partition(" Continue with:")[0], output)
        except KeyboardInterrupt:
            _stop(signal.SIGINT, "Stopped.", output)
        except SystemExit as left:
            if left.code != 128 + signal.SIGTERM:
                raise
            _stop(signal.SIGTERM, "Stopped.", output)
        except Exception:
            _forget(plan, output)
            raise


def _stop(number: int, said: str, output: Path) -> NoReturn:
    raise Stopped(number, f"{said} {_remedy(output)}") from None


def _remedy(output: Path) -> str:
    return f"Continue with: finesight run --resume --output {shlex.quote(str(output))}"


def _forget(plan: Mapping[str, Any], output: Path) -> None:
    """Leave nothing behind where the first run was refused before it began."""
    if not any(folder_of(output, seed).exists() for seed in plan["seeds"]):
        (output / SUMMARY).unlink(missing_ok=True)
        if not any(output.iterdir()):
            output.rmdir()


def _command_of_one(command: str | None, seed: int, path: Path) -> list[str]:
    """The command that gives the run of one seed alone."""
    words: list[str] = []
    skip = False
    for word in shlex.split(command or ""):
        if not skip and word.partition("=")[0] not in ("--seeds", "--seed", "--output", "--resume"):
            words.append(word)
        skip = not skip and word in ("--seeds", "--seed", "--output")
    return [*words, "--seed", str(seed), "--output", str(path)] if words else []


# ---- what came out ----------------------------------------------------------------------------


def summarise(output: Path, seeds: Iterable[int]) -> dict[str, Any]:
    """How every metric varies over the finished runs of `seeds` in `output`.

    Returns {"metrics": {split: {metric: spread}} with "baselines": {name: {split: ...}} as in metrics.json,
    "runs": per seed its folder, best epoch and wall time, "differing": the splits that hold other samples in
    another seed}. A spread is {"mean", "sd", "min", "max", "values", "n"}, `values` and `n` (samples) in the order
    of the seeds, `sd` with n - 1. A metric that is undefined in some seed counts in the others.
    """
    folders = [RunFolder(folder_of(output, seed)) for seed in seeds]
    found = [folder.read_metrics() for folder in folders]
    stamps = [folder.recorded("data").get("fingerprints", {}) for folder in folders]
    runs = [folder.read_run() for folder in folders]
    baselines = [metrics.pop("baselines", {}) for metrics in found]
    for metrics in found:
        metrics.pop("improvement", None)
        if "anomaly" in metrics:
            metrics["AUROC of anomaly scores"] = metrics.pop("anomaly")
    names = list(dict.fromkeys(name for each in baselines for name in each))
    return {
        "metrics": _spreads(found)
        | {"baselines": {name: _spreads([each.get(name, {}) for each in baselines]) for name in names}},
        "runs": [
            {
                "seed": seed,
                "folder": folder.path.name,
                "best_epoch": run.get("best_epoch"),
                "wall_s": (run.get("timing") or {}).get("wall_s"),
            }
            for seed, folder, run in zip(seeds, folders, runs, strict=True)
        ],
        "differing": [split for split in stamps[0] if len({json.dumps(each.get(split)) for each in stamps}) > 1],
    }


def _spreads(found: list[dict[str, Any]]) -> dict[str, Any]:
    splits = dict.fromkeys(split for metrics in found for split in metrics)
    return {
        split: {
            name: spread([metrics.get(split, {}).get(name) for metrics in found])
            for name in dict.fromkeys(name for metrics in found for name in metrics.get(split, {}))
        }
        for split in splits
    }


def spread(entries: list[dict[str, Any] | None]) -> dict[str, Any]:
    """Mean, sample standard deviation, and range of one metric over seeds; entries are {"value", ..., "n"} or None."""
    values = [None if entry is None else entry["value"] for entry in entries]
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "sd": statistics.stdev(known) if len(known) > 1 else None,
        "min": min(known, default=None),
        "max": max(known, default=None),
        "values": values,
        "n": [None if entry is None else entry["n"] for entry in entries],
    }


def _write(output: Path, summary: dict[str, Any], tell: Any) -> None:
    from finesight.report.seeds import spread_text, write_seeds

    write_seeds(summary, output / "report.html")
    write_json(output / SUMMARY, summary)
    test = summary["metrics"].get("test", {})
    name = numbers.main_metric(test)
    if name is not None:
        low, high = (numbers.number(name, test[name][end]) for end in ("min", "max"))
        tell(
            f"Test {numbers.label(name)} over {len(summary['seeds'])} seeds: {spread_text(name, test[name])} "
            f"(mean ± standard deviation; {low} to {high})"
        )
    if "test" in summary["differing"]:
        tell("The seed also decided which samples are in the test split, so the spread includes that.")
    tell(f"Report: {output / 'report.html'}")
