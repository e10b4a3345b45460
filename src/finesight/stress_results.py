"""The files of a stress test: RUN/attack as a whole, and RUN/stored/NAME.json for another run's images."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from finesight.attacks import stored
from finesight.attacks.config import AttackConfig, written
from finesight.attacks.protocol import Measured
from finesight.files import replacing, sync, write_json
from finesight.models.weights import state_hash
from finesight.run_folder import RunFolder, versions
from finesight.surrogates import Surrogate

if TYPE_CHECKING:
    from finesight.stress import Subject


def summary(
    folder: RunFolder, subject: "Subject", config: AttackConfig, found: Measured, surrogate: Surrogate | None
) -> dict[str, Any]:
    """The content of attack.json."""
    facts = dict(found.facts)
    about_surrogate = surrogate and {
        "name": surrogate.name, "weights": state_hash(surrogate.model), **facts.pop("surrogate"),
    }  # fmt: skip
    return {
        "format": stored.FORMAT,
        "versions": versions(),
        "options": config.model_dump(mode="json") | {"eps": config.wanted_eps},
        "classes": subject.task.classes,
        "images": len(subject.ids),
        "of": len(subject.task.labels["test"]),
        "resolution": {"attacked": subject.images.shape[-1], "model": subject.task.model.image_size},
        "precision": {
            "verdicts": "bf16" if facts["verdicts_in_bf16"] else "fp32",
            "steps": "bf16" if facts["steps_in_bf16"] else "fp32",
        },
        "data": {
            "fingerprint": folder.recorded("data").get("fingerprint"),
            "test": folder.recorded("data").get("fingerprints", {}).get("test"),
        },
        "model": {"name": _public(folder.recorded("model")["name"]), "weights": state_hash(subject.task.model)},
        "batch_size": facts["batch_size"],
        "alone": facts["alone"],
        "surrogate": about_surrogate,
        "conditions": {
            name: {
                "kind": condition.kind,
                **condition.about,
                **found.entries[name],
                "seconds": round(condition.seconds, 3),
            }
            for name, condition in found.conditions.items()
        },
        "corruption": found.corruption,
        "alarms": found.alarms,
    }


def _public(name: str) -> str:
    """A model's name; of a local folder the last part of its path, because adversarial.json is passed on."""
    return Path(name).name if Path(name).expanduser().is_absolute() else name


def write(folder: RunFolder, subject: "Subject", config: AttackConfig, found: Measured, about: dict[str, Any]) -> None:
    """RUN/attack as a whole: complete, or as it was before."""
    from finesight.report import figures, robustness_figures

    with _replacing_folder(folder.path / "attack") as temporary:
        classes = subject.task.classes
        eps = config.budgets[-1]
        kept = stored.StoredSet(
            found.adversarial, subject.labels, subject.ids, subject.groups, classes,
            {
                "eps": eps, "norm": config.norm, "attack": f"pgd, eps {written(eps, config.norm)} {config.norm}, "
                f"{config.iters} steps, {config.restarts} start{'s' if config.restarts > 1 else ''}, white-box",
                "model": about["model"], "data": about["data"], "resolution": about["resolution"],
            },
        )  # fmt: skip
        stored.write(temporary, kept)
        pq.write_table(_table(subject, found, classes), temporary / "predictions.parquet")
        write_json(temporary / "attack.json", about)
        drawn = robustness_figures.drawn(about, subject.images, found, subject.labels)
        figures.save(drawn, temporary / "figures")


def _table(subject: "Subject", found: Measured, classes: list[str]) -> pa.Table:
    """id, group, reference and a column for each condition; null where an image took no part in it."""
    columns: dict[str, Any] = {
        "id": subject.ids, "group": subject.groups, "reference": [classes[label] for label in subject.labels],
    }  # fmt: skip
    for name, condition in found.conditions.items():
        said: list[str | None] = [None] * len(subject.ids)
        for row, label in zip(condition.rows.tolist(), condition.predictions.tolist(), strict=True):
            said[row] = classes[label]
        columns[name] = pa.array(said, pa.string())
    return pa.table(columns)


@contextmanager
def _replacing_folder(place: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `place`; on success it takes the place of what is there."""
    temporary, old = place.with_name(f".tmp-{place.name}"), place.with_name(f".tmp-old-{place.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            sync(path)
        if place.exists():
            os.rename(place, old)
        os.rename(temporary, place)
        sync(place.parent)
    finally:
        if old.exists() and not place.exists():
            os.rename(old, place)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


def write_stored(folder: RunFolder, name: str, about: Mapping[str, Any], rows: Mapping[str, Any]) -> Path:
    """What this run made of another run's stored images; measured again it is the same file."""
    place = folder.path / "stored"
    place.mkdir(exist_ok=True)
    with replacing(place / f"{name}.parquet") as temporary:
        pq.write_table(pa.table(dict(rows)), temporary)
    write_json(place / f"{name}.json", dict(about))
    return place / f"{name}.json"
