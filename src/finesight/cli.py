"""The command line: thin and lazy. Exit codes: 0 done, 2 the user's input, 130/143 stopped, 1 ours."""

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from finesight import signals
from finesight.errors import ConfigError, FinesightError

USAGE = """\
usage: finesight COMMAND ...

Adapt vision models to your own images, and know how far to trust the result.

  demo                        train on real digits, in about a minute, and write a report
      --domains               adapt to digits over photographs without their labels, in about three minutes
  list [--json]               the recipes
  run RECIPE [options]        train, evaluate, report; finesight run RECIPE --help shows every option
      --output DIR            the run folder (default runs/RECIPE-TIME)
      --resume                continue the run in DIR, bit for bit
      --seeds N               the same run with N seeds, and how much its numbers vary
      --data.root PATH        your images: a folder, zip, CSV/JSONL/parquet, npz, or hub:OWNER/NAME
  sweep RECIPE RECIPE...      several recipes on one data set, and what came of them in one table
  eval RUN [--json]           measure a run's stored weights again
  predict RUN FILE... [--json]
                              what a run's model makes of new images
  export RUN FOLDER           its best weights as a Hugging Face folder
  compare RUN RUN... [--json] [--output FILE.html]
                              paired comparison on one test set
  attack RUN [options]        accuracy under attacks and corruptions; finesight attack --help shows every option
  replay RUN                  run it again and compare every loss bit for bit
  data check PATH [--json] [--output DIR] [--group RULE]
                              corrupt files, duplicates, leaks between splits; exit code 1 when it finds
                              corrupt files or a leak

Exit codes: 0 done, 2 something you gave cannot be used, 130/143 stopped by a signal, 1 a fault of ours.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    commands: dict[str, Callable[[list[str]], int]] = {
        "demo": _demo, "list": _list, "run": _run, "eval": _eval, "predict": _predict,
        "sweep": _sweep, "export": _export, "compare": _compare, "attack": _attack, "replay": _replay, "data": _data,
    }  # fmt: skip
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if words[0] == "--version":
        from finesight import __version__

        print(f"finesight {__version__}")
        return 0
    try:
        if words[0] not in commands:
            from finesight.config import nearest

            raise ConfigError(f"{words[0]}: unknown command{nearest(words[0], list(commands))}. See finesight --help.")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        with signals.termination():
            return commands[words[0]](words[1:])
    except FinesightError as error:
        sys.stdout.flush()
        prefix = "" if error.exit_code > 2 else "error: "
        print("\n".join(f"{prefix}{line}" for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except SystemExit as left:
        if left.code not in (0, None):
            raise
        return 0  # argparse printed its help
    except BrokenPipeError:
        # The reader of our output went away (finesight list | head): no fault of anybody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _program() -> str:
    """How this program can be called from here: by name, or by its path where it is not on the search path."""
    if shutil.which("finesight"):
        return "finesight"
    return os.path.relpath(sys.argv[0]) if Path(sys.argv[0]).name == "finesight" else "python -m finesight"


class _Parser(argparse.ArgumentParser):
    def __init__(self, command: str, about: str, more: str | None = None) -> None:
        keep = argparse.RawDescriptionHelpFormatter
        super().__init__(
            prog=f"finesight {command}", allow_abbrev=False, description=about, epilog=more, formatter_class=keep
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}. See finesight --help.")


def _list(words: list[str]) -> int:
    parser = _Parser("list", "The recipes.")
    parser.add_argument("--json", action="store_true", help="as JSON")
    chosen = parser.parse_args(words)
    from finesight import recipes

    found = [{"name": name, "description": recipes.read(name)[1].get("description", "")} for name in recipes.names()]
    if chosen.json:
        print(json.dumps(found, indent=2))
    else:
        width = max(len(recipe["name"]) for recipe in found)
        for recipe in found:
            print(f"{recipe['name']:<{width}}  {recipe['description']}")
    return 0


def _run(words: list[str]) -> int:
    from finesight import config, recipes

    recipe = words[0] if words and not words[0].startswith("-") else None
    rest = words[1:] if recipe else list(words)
    if "--help" in rest or "-h" in rest or (recipe is None and "--resume" not in rest):
        return _run_help(recipe)
    output, rest = _taken(rest, "--output")
    given, rest = _taken(rest, "--seeds")
    count = None if given is None else _seed_count(given)
    resume = "--resume" in rest
    rest = [word for word in rest if word != "--resume"]
    if resume and output is None:
        raise ConfigError("--resume: say which run to continue: finesight run --resume --output DIR.")
    place = Path(output) if output else None
    named = recipes.read(recipe) if recipe else None
    from finesight import experiment, seeds

    several = count is not None or (resume and seeds.holds_seeds(place))
    name, base = named or _recipe_of(str(output))
    kind = recipes.task_class(base).Config
    try:
        options = config.parse_flags(rest, kind)
    except ConfigError as error:
        raise _with_all_problems(error, kind, base) from None
    command = ["finesight", "run", *words]
    if several:
        seeds.execute(name, base, options, place, count, resume, command)
    else:
        experiment.execute(name, base, options, place, resume, command)
    return 0


def _sweep(words: list[str]) -> int:
    from finesight import sweep

    if not words or not {"-h", "--help"}.isdisjoint(words):
        print(sweep.USAGE, end="")
        return 0
    output, rest = _taken(words, "--output")
    count = next((place for place, word in enumerate(rest) if word.startswith("--")), len(rest))
    place = Path(output) if output else Path("runs") / f"sweep-{time.strftime('%Y%m%d-%H%M%S')}"
    sweep.execute(rest[:count], rest[count:], place)
    return 0


def _seed_count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 2:
        raise ConfigError(f"--seeds: {text!r} is not a number of seeds; give a whole number from 2 on.")
    return int(text)


def _recipe_of(output: str) -> tuple[str, dict[str, Any]]:
    """Name and options of what is to be continued."""
    from finesight import config, seeds
    from finesight.run_folder import open_run

    if seeds.holds_seeds(Path(output)):
        plan = seeds.read_plan(Path(output))
        return plan["recipe"], plan["options"]
    return open_run(output).recorded("recipe"), config.read_yaml(Path(output) / "config.yaml")


def _with_all_problems(error: ConfigError, kind: Any, base: dict[str, Any]) -> ConfigError:
    """What is wrong with the flags, and with the values of those that could be read."""
    from finesight import config

    problems = [_with_nearest_flag(problem) for problem in error.problems]
    try:
        config.build(kind, base, error.understood)
    except ConfigError as more:
        problems += more.problems
    return ConfigError(*problems)


def _with_nearest_flag(problem: str) -> str:
    """`--out: unknown option.` with the nearest flag of `run` that is no option of the recipe."""
    from finesight.config import nearest

    found = re.fullmatch(r"--(\S+): unknown option\.", problem)
    return f"{problem[:-1]}{nearest(found[1], ['output', 'resume', 'seeds'])}." if found else problem


def _run_help(recipe: str | None) -> int:
    if recipe is None:
        from finesight import recipes

        print(f"usage: finesight run RECIPE [options]\n\nRecipes: {', '.join(recipes.names())}\n")
        print("finesight run RECIPE --help shows every option of a recipe, with its default and meaning.")
        return 0
    from finesight import config, recipes

    name, base = recipes.read(recipe)
    kind = recipes.task_class(base).Config
    print(f"usage: finesight run {name} [options]\n\n{base.get('description', '')}\n")
    print("  --output DIR\n        The run folder [default: runs/RECIPE-TIME]")
    print("  --resume\n        Continue the run in --output, bit for bit [default: false]")
    print("  --seeds INTEGER\n        Run with this many seeds, from --seed on, and show how much the numbers vary")
    print(config.describe(kind, config.build(kind, base)))
    return 0


def _demo(words: list[str]) -> int:
    parser = _Parser("demo", "Train on scikit-learn's handwritten digits and write a report.")
    parser.add_argument("--domains", action="store_true", help="adapt to digits over photographs, without their labels")
    parser.add_argument("--output", type=Path, help="the folder (default runs/demo-TIME)")
    chosen = parser.parse_args(words)
    from finesight import demo

    run = demo.domains if chosen.domains else demo.digits
    run(chosen.output, ["finesight", "demo", *words], _program())
    return 0


def _eval(words: list[str]) -> int:
    if not {"-h", "--help"}.isdisjoint(words):
        return _eval_help()
    run, json_wanted, rest = _run_and_json("eval", words)
    split, rest = _taken(rest, "--split")
    from finesight import config, recipes, reopen
    from finesight.run_folder import open_run

    stored = config.read_yaml(open_run(run).config)
    overrides = config.parse_flags(rest, recipes.task_class(stored).Config)
    metrics = reopen.evaluate_again(run, split or "test", overrides)
    if os.environ.get("RANK", "0") != "0":
        return 0  # under torchrun the first process speaks for all
    if json_wanted:
        print(json.dumps(metrics, indent=2))
    else:
        for name, entry in metrics.items():
            print(f"{name:<36} {_interval(entry)}")
    return 0


def _eval_help() -> int:
    print("""\
usage: finesight eval RUN [--json] [--split SPLIT] [options]

Measure a run's stored weights again, on its own data or on another test set; writes nothing.

  --json              as JSON
  --split SPLIT       test or validation [default: test]
  --data.root PATH    another test set with the same classes, measured whole or its test split
  --data.target PATH  the same for a domain adaptation: other target images than those adapted to
  --evaluation.*, --data.cache_dir
                      as in finesight run RECIPE --help""")
    return 0


def _predict(words: list[str]) -> int:
    parser = _Parser("predict", "What a run's model makes of new images.")
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("files", nargs="+", help="image files")
    parser.add_argument("--json", action="store_true", help="as JSON, with every score")
    chosen = parser.parse_args(words)
    from finesight import reopen

    run = reopen.load_run(chosen.run)
    rows = run.predict(chosen.files)
    if chosen.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        for row in rows:
            print(f"{row['input']}: {run.task.line(row)}")
    return 0


def _export(words: list[str]) -> int:
    parser = _Parser(
        "export", "Write the best weights of a run as a Hugging Face folder: config, safetensors, processor."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    chosen = parser.parse_args(words)
    from finesight.export import export

    notes = export(chosen.run, chosen.folder)
    print("\n".join([f"Exported: {chosen.folder}", *notes]))
    return 0


def _compare(words: list[str]) -> int:
    parser = _Parser("compare", "Paired comparison of runs on one test set; every run with the first one.")
    parser.add_argument("runs", nargs="+", type=Path, help="two run folders or more")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--output", type=Path, help="also write it as an HTML page into this file")
    chosen = parser.parse_args(words)
    if len(chosen.runs) < 2:
        raise ConfigError("compare: needs two runs or more, e.g. finesight compare runs/a runs/b.")
    from finesight import comparison

    result = comparison.compare(chosen.runs)
    if chosen.output:
        comparison.write_page(result, chosen.output)
    if chosen.json:
        print(json.dumps(result, indent=2))
    else:
        for line in comparison.lines(result):
            print(line)
        if chosen.output:
            print(f"Page: {chosen.output}")
    return 0


def _attack(words: list[str]) -> int:
    if not {"-h", "--help"}.isdisjoint(words):
        from finesight.attacks.config import usage

        print(usage(), end="")
        return 0
    run, as_json, rest = _run_and_json("attack", words)
    stored, rest = _taken(rest, "--stored")
    options = [word for word in rest if word != "--overwrite"]
    from finesight import stress

    replaces, command = len(options) < len(rest), ["finesight", "attack", *words]
    return stress.main(run, options, stored_file=stored, overwrite=replaces, as_json=as_json, command=command)


def _replay(words: list[str]) -> int:
    parser = _Parser("replay", "Train a run again and compare every loss and metric bit for bit.")
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--output", type=Path, help="keep the new run in this folder")
    chosen = parser.parse_args(words)
    from finesight import reopen

    different = reopen.replay(chosen.run, ["finesight", "replay", *words], chosen.output)
    if not different:
        print("Replayed: every loss and every metric is the same, bit for bit.")
        return 0
    print("Replayed, and it is not the same run:")
    for line in different:
        print(f"  {line}")
    print("Losses agree bit for bit only with the same processor, library versions and thread count; see run.json.")
    return 1


def _data(words: list[str]) -> int:
    wants_help = not {"-h", "--help"}.isdisjoint(words)
    if not wants_help and (not words or words[0] != "check"):
        given = words[0] if words else "nothing"
        raise ConfigError(f"data: {given!r} is not a data command; there is: finesight data check PATH.")
    from finesight import config
    from finesight.data.config import DataConfig

    about = "Corrupt files, duplicates and leaks between splits; exit code 1 when it finds corrupt files or a leak."
    more = None
    if wants_help:
        # The first option is the data's place, which PATH gives here.
        described = config.describe(DataConfig).partition("  --revision ")
        more = "how the data is read, as in finesight run:\n" + "".join(described[1:])
    parser = _Parser("data check", about, more)
    parser.add_argument("path", help="a folder, zip, CSV/JSONL/parquet, npz, or hub:OWNER/NAME")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--output", help="also write a page and tables into this folder")
    chosen, rest = parser.parse_known_args(words if wants_help else words[1:])
    from finesight.data import check

    options = config.parse_flags(rest, DataConfig)
    return check.main(chosen.path, as_json=chosen.json, output=chosen.output, options=options)


def _run_and_json(command: str, words: list[str]) -> tuple[Path, bool, list[str]]:
    if not words or words[0].startswith("-"):
        raise ConfigError(f"{command}: name the run folder first: finesight {command} RUN.")
    rest = [word for word in words[1:] if word != "--json"]
    return Path(words[0]), len(rest) < len(words) - 1, rest


def _taken(words: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Take `flag VALUE` or `flag=VALUE` out of the words."""
    for position, word in enumerate(words):
        if word == flag:
            if position + 1 == len(words) or words[position + 1].startswith("--"):
                raise ConfigError(f"{flag}: a value is missing.")
            return words[position + 1], words[:position] + words[position + 2 :]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2], words[:position] + words[position + 1 :]
    return None, words


def _interval(entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return "not defined"
    if entry["low"] is None:
        return f"{entry['value']:.4f}  (n = {entry['n']:,})"
    return f"{entry['value']:.4f}  [{entry['low']:.4f}, {entry['high']:.4f}]  (n = {entry['n']:,})"
