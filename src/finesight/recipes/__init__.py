"""Recipes: one YAML file per experiment, found by its name."""

from importlib import import_module
from pathlib import Path
from typing import Any

from finesight.config import nearest, read_yaml
from finesight.errors import ConfigError

FOLDER = Path(__file__).parent


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(recipe: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a recipe: a name from `finesight list`, or the path of a YAML file."""
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe)
        if not path.is_file():
            raise ConfigError(f"{recipe}: there is no such file. Recipes by name: {', '.join(names())}.")
        return path.stem, read_yaml(path)
    if recipe not in names():
        raise ConfigError(
            f"{recipe}: unknown recipe{nearest(recipe, names())}. Known: {', '.join(names())}; "
            "or give the path of a YAML file."
        )
    return recipe, read_yaml(FOLDER / f"{recipe}.yaml")


def task_class(options: dict[str, Any]) -> Any:
    """The task class a recipe names. Imports torch."""
    from finesight.tasks.base import TASKS

    name = options.get("task", "classification")
    if name not in TASKS:
        raise ConfigError(f"task: unknown value {name!r}{nearest(str(name), list(TASKS))}. Known: {', '.join(TASKS)}.")
    module, _, attribute = TASKS[name].partition(":")
    return getattr(import_module(module), attribute)
