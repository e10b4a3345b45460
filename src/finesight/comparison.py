"""Comparison of runs on one test set: paired, so that what is hard for both cancels out."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from finesight import config as configuration
from finesight import recipes, stress_table
from finesight.errors import RunError
from finesight.metrics import bootstrap
from finesight.metrics.kinds import higher_is_better
from finesight.report.comparison import ROUNDING
from finesight.run_folder import open_run


def compare(paths: list[Path], *, resamples: int = 1000, level: float = 0.95) -> dict[str, Any]:
    """Compare every run with the first one.

    Returns {"runs": [{name, path, metrics}], "pairs": [{a, b, metrics}], "stress": …} with the test split's
    metrics, the differences b - a of `bootstrap.paired`, and `stress_table.table`. The same resampling weights go
    on the statistics of both. Raises `RunError` when the runs were not tested on the same samples, with the
    same labels and classes.
    """
    runs: list[dict[str, Any]] = []
    tests, stamps, tasks = [], [], []
    for path in paths:
        folder = open_run(path)
        metrics = folder.read_metrics()["test"]
        name = path.name if [other.name for other in paths].count(path.name) == 1 else str(path)
        runs.append({"name": name, "path": str(path), "metrics": metrics})
        stamps.append(folder.recorded("data").get("fingerprints", {}).get("test"))
        tests.append((path, folder.recorded("classes"), _test_rows(folder.predictions)))
        tasks.append((configuration.read_yaml(folder.config)["task"], folder.read_run().get("conditions") or {}))
    reference = tests[0]
    kind = recipes.task_class({"task": tasks[0][0]})
    pairs = []
    for number, other in enumerate(tests[1:], start=1):
        _same_conditions((reference[0], *tasks[0]), (other[0], *tasks[number]))
        _same_test(reference, other)
        if stamps[number] != stamps[0]:
            raise RunError(f"{reference[0]} and {other[0]}: the test images have the same names but other content.")
        read = [kind.compared(reference[1], own, rows) for _, own, rows in (reference, other)]
        metric, tables = read[0][0], [table for _, table in read]
        groups = reference[2]["group"] if len(set(reference[2]["group"])) < len(reference[2]["group"]) else None
        found = bootstrap.paired(metric, *tables, groups=groups, resamples=resamples, level=level)
        pairs.append({"a": runs[0]["name"], "b": runs[number]["name"], "metrics": found})
    stress = stress_table.table(paths, [run["name"] for run in runs], resamples=resamples, level=level)
    return {"runs": runs, "pairs": pairs, "stress": stress}


def lines(result: dict[str, Any]) -> list[str]:
    """The comparison as text: a table of the runs, then what differs and how surely."""
    names = [name for name in result["runs"][0]["metrics"] if "/" not in name]
    width = max(len(run["name"]) for run in result["runs"])
    text = []
    for name in names:
        text.append(f"{name} ({'higher' if higher_is_better(name) else 'lower'} is better)")
        for run in result["runs"]:
            entry = run["metrics"][name]
            interval = "" if entry["low"] is None else f"  [{entry['low']:.4f}, {entry['high']:.4f}]"
            text.append(f"  {run['name']:<{width}}  {entry['value']:.4f}{interval}  n = {entry['n']:,}")
        text += [f"    {_verdict(name, pair)}" for pair in result["pairs"]]
    return text + stress_table.lines(result["stress"])


def write_page(result: dict[str, Any], path: Path) -> None:
    """The comparison as one self-contained HTML page."""
    from finesight.report.comparison import write_comparison

    write_comparison("Comparison on one test set", result["runs"], result["pairs"], path, result["stress"])


def _verdict(name: str, pair: dict[str, Any]) -> str:
    entry = pair["metrics"][name]
    if entry["low"] is None:
        return f"{pair['b']} - {pair['a']}: {entry['difference']:+.4f} (too few samples for an interval)"
    clear = (entry["low"] > 0 or entry["high"] < 0) and abs(entry["difference"]) >= ROUNDING
    better = (entry["difference"] > 0) == higher_is_better(name)
    word = f"{pair['b'] if better else pair['a']} is better" if clear else "no clear difference"
    interval = f"[{entry['low']:+.4f}, {entry['high']:+.4f}], p = {entry['p']:.3f}"
    return f"{pair['b']} - {pair['a']}: {entry['difference']:+.4f} {interval}: {word}"


def _test_rows(path: Path) -> dict[str, list[Any]]:
    """The test rows of predictions.parquet in the order of their ids."""
    if not path.is_file():
        raise RunError(f"{path}: missing; finish the run first: finesight run --resume --output {path.parent}.")
    rows = pq.read_table(path, filters=[("split", "==", "test")]).sort_by("id")
    return {name: rows.column(name).to_pylist() for name in rows.column_names}


def _same_conditions(a: tuple[Path, str, dict[str, Any]], b: tuple[Path, str, dict[str, Any]]) -> None:
    (path_a, task_a, conditions_a), (path_b, task_b, conditions_b) = a, b
    comparable = {"classification", "domain-adaptation", "robustness"}
    if task_a != task_b and not {task_a, task_b} <= comparable:
        raise RunError(f"{path_a} and {path_b}: a {task_a} and a {task_b} run have no common metric.")
    different = [
        f"{name} {conditions_a.get(name)} and {conditions_b.get(name)}"
        for name in {**conditions_a, **conditions_b}
        if conditions_a.get(name) != conditions_b.get(name)
    ]
    if different:
        raise RunError(
            f"{path_a} and {path_b}: tested under different conditions ({'; '.join(different)}), so their numbers "
            "cannot be compared. Run one of them again with the settings of the other."
        )


def _same_test(
    a: tuple[Path, list[str], dict[str, list[Any]]], b: tuple[Path, list[str], dict[str, list[Any]]]
) -> None:
    (path_a, classes_a, rows_a), (path_b, classes_b, rows_b) = a, b
    if rows_a["id"] != rows_b["id"]:
        shared = len(set(rows_a["id"]) & set(rows_b["id"]))
        raise RunError(
            f"{path_a} and {path_b}: tested on different samples ({len(rows_a['id'])} and {len(rows_b['id'])}, "
            f"{shared} shared), so their numbers cannot be compared. "
            "Train both on the same --data.root, --data.splits, --data.group and --seed."
        )
    if sorted(classes_a) != sorted(classes_b):
        raise RunError(f"{path_a} and {path_b}: different classes ({', '.join(classes_a)} and {', '.join(classes_b)}).")
    references = (rows_a.get("reference", []), rows_b.get("reference", []))
    different = sum(x != y for x, y in zip(*references, strict=True))
    if different:
        raise RunError(
            f"{path_a} and {path_b}: {different} test samples have another label in the second run; mend the data."
        )
