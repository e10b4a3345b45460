"""Several recipes on one data set, one after the other in one folder, and what came of them in one table."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finesight import comparison, experiment, recipes, stress
from finesight import config as configuration
from finesight.errors import ConfigError, RunError
from finesight.reopen import say
from finesight.run_folder import RunFolder

USAGE = """\
usage: finesight sweep RECIPE[:OPTION=VALUE;OPTION=VALUE] ... [--output DIR] [options]

Run several recipes with the same options, each into DIR/RECIPE, then compare them with the first one in
DIR/comparison.html. What stands behind a colon is for that recipe alone: 'clip-vpt:train.epochs=5;adapt.prompts=20'.
A sweep that was stopped is continued by the same command. The options are those of finesight run RECIPE, and go to
every recipe.
"""


@dataclass(frozen=True)
class Item:
    """One run of a sweep: its recipe, its own options as flags, and the name of its folder."""

    recipe: str
    flags: list[str]
    name: str


def parse(word: str) -> Item:
    """'clip-vpt:train.epochs=5' -> recipe, flags and folder name. Raises `ConfigError` for what is no such thing."""
    recipe, _, rest = word.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(";") if pair]
    wrong = [key for key, equals, _ in pairs if not equals]
    if wrong:
        raise ConfigError(f"{word}: {wrong[0]!r} has no value; write {recipe}:OPTION=VALUE.")
    flags = [f"--{key}={value}" for key, _, value in pairs]
    name = "-".join([Path(recipe).stem, *(f"{key.rpartition('.')[2]}-{value}" for key, _, value in pairs)])
    return Item(recipe, flags, re.sub(r"[^\w.=-]+", "_", name))


def execute(words: list[str], flags: list[str], output: Path) -> Path:
    """Run every recipe of `words` that has not finished in `output` yet, then write and print the comparison.

    Returns the path of the page. Options of every run are checked before the first one starts. Raises `ConfigError` for
    fewer than two runs, two of one name, and options that a recipe does not know; `RunError` where a folder holds a run
    with other options.
    """
    items = [parse(word) for word in words]
    names = [item.name for item in items]
    if len(items) < 2 or len(set(names)) < len(names):
        raise ConfigError(
            "sweep: give two or more recipes that differ, e.g. finesight sweep clip-zero-shot clip-tecoa."
        )
    plans = [(item, *_plan(item, flags)) for item in items]
    for item, _, base, options in plans:
        _refuse_another_run(RunFolder(output / item.name), base, options)
    for item, name, base, options in plans:
        folder = RunFolder(output / item.name)
        command = ["finesight", "run", item.recipe, *flags, *item.flags, "--output", str(folder.path)]
        if experiment.is_finished(folder):
            say(f"== {item.name}: has finished already")
        elif folder.exists() and folder.read_run().get("status") == "finished":
            say(f"== {item.name}: has finished already, all but its attack")
            config = experiment.with_whole_paths(configuration.build(recipes.task_class(base).Config, base, options))
            experiment.attack_finished(folder, config, command, verbose=True)
        else:
            say(f"== {item.name}")
            experiment.execute(name, base, options, folder.path, folder.exists(), command)
    result = comparison.compare([output / name for name in names])
    for line in comparison.lines(result):
        say(line)
    comparison.write_page(result, output / "comparison.html")
    say(f"Page: {output / 'comparison.html'}")
    return output / "comparison.html"


def _plan(item: Item, flags: list[str]) -> tuple[str, dict[str, Any], Mapping[str, Any]]:
    """Name and options of the recipe, and what is given beside them; checked."""
    name, base = recipes.read(item.recipe)
    kind = recipes.task_class(base).Config
    try:
        options = configuration.parse_flags([*flags, *item.flags], kind)
        config = configuration.build(kind, base, options)
        config.data.require()
        if hasattr(config, "attack"):
            stress.check(config.attack)
    except ConfigError as error:
        problems = [f"{item.name}: {problem}" for problem in error.problems]
        raise ConfigError(*problems, "An option for one recipe alone stands behind it: RECIPE:OPTION=VALUE.") from None
    return name, base, options


def _refuse_another_run(folder: RunFolder, base: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse to take a run, or its stress test, with other options for the one that is wanted."""
    if not folder.exists():
        return
    kind = recipes.task_class(base).Config
    wanted = experiment.with_whole_paths(configuration.build(kind, base, options))
    changed = experiment.changes(configuration.build(kind, configuration.read_yaml(folder.config)), wanted)
    if changed:
        raise RunError(
            *changed, f"{folder.path}: holds a run with other options (there -> here). Give the sweep those it began "
            "with, or another --output.",
        )  # fmt: skip
    if hasattr(wanted, "attack") and experiment.was_attacked(folder):
        experiment.refuse_another_attack(folder, wanted.attack, set(type(wanted.attack).model_fields))
