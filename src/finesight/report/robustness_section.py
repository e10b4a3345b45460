"""What the report says of a stress test: read from RUN/attack/attack.json and RUN/stored, tolerant of damage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finesight.files import read_json
from finesight.report import numbers
from finesight.report.contents import Contents

WHAT = {
    "clean": "no attack",
    "noise": "random change of the full budget: what an attack must beat",
    "transfer": "made on the surrogate, shown to this model",
    "auto": "ensemble",
    "worst": "what withstands both PGD and the ensemble: the accuracy to quote",
    "huge": "PGD with a budget that nothing may withstand, as a check of the attack",
    "stored": "the 8-bit images in attack/adversarial.npz",
}
"""The conditions that have a row of their own, in its order, with what they are."""

STAGES = {"apgd-ce": "APGD on the cross-entropy", "apgd-t": "targeted APGD", "square": "Square"}

OPTIONAL = {
    "steps": ("PGD with more steps", "more steps of PGD (--steps)"),
    "auto": ("PGD with the ensemble of attacks", "the ensemble of attacks (--auto)"),
    "transfer": ("PGD with a transferred attack", "a transferred attack (--surrogate)"),
}
"""Checks that a user may switch off, by the condition they need: what is compared, and what was not."""


def section(found: Contents) -> dict[str, Any] | None:
    """Everything the template shows; None where the run was never attacked."""
    folder = found.folder.path
    stored = [entry for path in sorted((folder / "stored").glob("*.json")) if (entry := _stored(path))]
    path = folder / "attack" / "attack.json"
    if not path.is_file():
        return {"problem": None, "rows": [], "stored": stored, "alarms": []} if stored else None
    try:
        about = read_json(path)
        return _shown(about) | {"stored": stored}
    except (OSError, ValueError, KeyError, TypeError, StopIteration, AttributeError) as error:
        problem = f"attack/attack.json cannot be read ({error!r}), so this part of the report is empty."
        return {"problem": problem, "rows": [], "stored": stored, "alarms": []}


def figures(folder: Path) -> list[dict[str, Any]]:
    """The entries of attack/figures/figures.json."""
    index = folder / "attack" / "figures" / "figures.json"
    try:
        return list(read_json(index)) if index.is_file() else []
    except (OSError, ValueError, TypeError):
        return []


def _shown(about: Mapping[str, Any]) -> dict[str, Any]:
    conditions = about["conditions"]
    rows = [
        {"name": name, "what": _what(c, about), "entry": c["accuracy"]}
        for kind in WHAT
        for name, c in conditions.items()
        if c["kind"] == kind
    ]
    return {
        "problem": None,
        "sentence": sentence(about),
        "facts": _facts(about),
        "rows": rows,
        "budgets": _budgets(conditions, about["alone"]),
        "steps": _steps(conditions),
        "alarms": list(about["alarms"]),
        "checks": _checks(conditions),
        "corruption": _corruption(about),
        "command": about.get("command") or "",
    }


def _checks(conditions: Mapping[str, Any]) -> str:
    """Which comparisons could have raised an alarm, and which could not, because what they need was switched off."""
    kinds = {c["kind"] for c in conditions.values()}
    ran = ["the attacked model with the run's own predictions"]
    ran += [f"PGD with {what}" for kind, what in (("noise", "random noise"), ("fgsm", "FGSM")) if kind in kinds]
    if "huge" in kinds:
        ran.append("PGD at a budget that nothing may withstand")
    ran += [done for kind, (done, _) in OPTIONAL.items() if kind in kinds]
    text = f"No alarm. Compared were {', '.join(ran[:-1])} and {ran[-1]}."
    off = [missing for kind, (_, missing) in OPTIONAL.items() if kind not in kinds]
    if off:
        text += f" Not tried, so that an attack that is too weak for this model may go unseen: {', '.join(off)}."
    return text


def _budgets(conditions: Mapping[str, Any], alone: Mapping[str, float]) -> list[dict[str, Any]]:
    """FGSM and PGD by budget, and for the largest what PGD came to by itself."""
    single = {c["eps"]: c["accuracy"] for c in conditions.values() if c["kind"] == "fgsm"}
    many = sorted(
        ((c["eps"], name, c["accuracy"]) for name, c in conditions.items() if c["kind"] == "pgd"),
        key=lambda row: row[0],
    )
    return [
        {"name": name.removeprefix("pgd "), "fgsm": single[eps], "pgd": entry, "alone": alone.get(name)}
        for eps, name, entry in many
    ]


def _steps(conditions: Mapping[str, Any]) -> dict[str, Any] | None:
    curve = [(name, c) for name, c in conditions.items() if c["kind"] == "steps"]
    if not curve:
        return None
    return {
        "name": curve[0][0].partition(",")[0].removeprefix("pgd "),
        "counts": [c["iters"] for _, c in curve],
        "entries": [c["accuracy"] for _, c in curve],
    }


def sentence(about: Mapping[str, Any]) -> str:
    """'Right on 98.9 % of the images without an attack, on 12.0 % under PGD with eps 8/255 (…).'"""
    conditions = about["conditions"]
    clean = next(c for c in conditions.values() if c["kind"] == "clean")["accuracy"]
    name, largest = max(
        ((name, c) for name, c in conditions.items() if c["kind"] == "pgd"), key=lambda pair: pair[1]["eps"]
    )
    text = (
        f"Right on {_percent(clean)} of {about['images']:,} test images without an attack, on "
        f"{_percent(largest['accuracy'])} under PGD ({name.removeprefix('pgd ')}, {about['options']['norm']})"
    )
    last = [(name, c) for name, c in conditions.items() if c["kind"] == "auto" and c["last"]]
    worst = [(name, c) for name, c in conditions.items() if c["kind"] == "worst"]
    if worst:
        name, both = worst[0]
        text += (
            f", on {_percent(both['accuracy'])} of {both['accuracy']['n']:,} under the worst of PGD and the ensemble "
            f"({name.removeprefix('worst ')})"
        )
    elif last:
        name, ensemble = last[0]
        text += (
            f", on {_percent(ensemble['accuracy'])} of {ensemble['accuracy']['n']:,} under the ensemble "
            f"({name.removeprefix('auto ')})"
        )
    if about["corruption"]:
        text += f", and on {_percent(about['corruption']['accuracy'])} under corruptions on average"
    return f"{text}."


def _what(condition: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    text = WHAT[condition["kind"]]
    if condition["kind"] == "auto" and not condition["last"]:
        return f"the ensemble after {STAGES.get(condition['stage'], condition['stage'])}"
    if condition["kind"] == "auto":
        stages = [STAGES.get(c["stage"], c["stage"]) for c in about["conditions"].values() if c["kind"] == "auto"]
        text += f": {', then '.join(stages)}, each on what is left"
    if condition["kind"] == "transfer":
        own = about["surrogate"]
        text += (
            f"; the surrogate {own['name']} itself: {numbers.percent(own['clean'])} without the attack, "
            f"{numbers.percent(own['attacked'])} under it"
        )
    return text


def _facts(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    options, size, precision = about["options"], about["resolution"], about["precision"]
    resized = "" if size["attacked"] == size["model"] else f", which the model resizes to {size['model']} inside"
    step = options["step"] or "2.5 eps / steps"
    starts = "one random start" if options["restarts"] == 1 else f"{options['restarts']} random starts"
    chosen = f"{about['images']:,} of {about['of']:,} test images, chosen by seed {options['seed']} and id"
    return [
        ("images", f"all {about['of']:,} test images" if about["images"] == about["of"] else chosen),
        ("pixels", f"{size['attacked']} × {size['attacked']} in [0, 1]{resized}"),
        ("PGD", f"{options['norm']}, {options['iters']} steps of {step}, {starts}"),
        ("precision", f"steps in {precision['steps']}, verdicts in {precision['verdicts']}"),
        ("time", f"{about.get('seconds', 0):,.0f} s"),
    ]


def _corruption(about: Mapping[str, Any]) -> dict[str, Any] | None:
    means = about["corruption"]
    if not means:
        return None
    of = {
        (c["corruption"], c["severity"]): c["accuracy"]
        for c in about["conditions"].values()
        if c["kind"] == "corruption"
    }
    levels = sorted({level for _, level in of})
    return {
        "levels": levels,
        "rows": [
            {"name": kind.replace("_", " "), "entries": [of[kind, level] for level in levels], "mean": mean}
            for kind, mean in means["by_kind"].items()
        ],
        "by_severity": [means["by_severity"][str(level)] for level in levels],
        "accuracy": means["accuracy"],
        "error": means["mean_corruption_error"],
        "relative": numbers.difference("accuracy", means["relative"]["value"]),
        "relative_interval": _points(means["relative"]),
    }


def _points(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return "—"
    return " to ".join(numbers.difference("accuracy", entry[end]) for end in ("low", "high"))


def _percent(entry: Mapping[str, Any]) -> str:
    return numbers.percent(entry["value"], entry["n"])


def _stored(path: Path) -> dict[str, Any] | None:
    """One measurement on another run's images; None for a damaged file."""
    try:
        about = read_json(path)
        source = about["source"]
        return {
            "model": source["model"]["name"],
            "attack": source["attack"],
            "hash": source["sha256"][:12],
            "accuracy": {key: about["accuracy"][key] for key in ("value", "low", "high", "n")},
            "clean": about["clean"],
            "alarms": list(about["alarms"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None
