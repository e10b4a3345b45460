"""The cache of a frozen image encoder: what makes another entry, and a disk without room for one."""

from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finesight import cache, config
from finesight.engine import Engine
from finesight.errors import DataError
from finesight.tasks import encoder_cache
from finesight.tasks.captioning import Captioning, CaptioningConfig
from tests import pictures
from tests.models.test_captioner import pair

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    root = pictures.folder(folder / "shapes", each=6)
    rows = [f"{file.relative_to(root)},a picture, {file.stem}" for file in sorted(root.rglob("*.png"))]
    (root / "table.csv").write_text("\n".join(["image;caption", *(row.replace(",", ";", 1) for row in rows)]))
    return {
        "data.root": str(root / "table.csv"), "model.name": pair(folder).name, "adapt.method": "decoder",
        "precision": "fp32", "generation.max_tokens": 8,
    }  # fmt: skip


def prepared(options: dict[str, Any], folder: Path, **more: Any) -> tuple[Captioning, list[str]]:
    """The task, and what it said."""
    said: list[str] = []
    settings = config.build(CaptioningConfig, config.nest({**options, "data.cache_dir": str(folder), **more}))
    task = Captioning(settings, ["image"], Engine("fp32"), said.append)
    task.prepare(Captioning.load(settings))
    return task, said


def computed(said: list[str]) -> bool:
    """Whether the encoder was run: its outputs were not there."""
    return any("Caching outputs" in line for line in said)


def test_other_libraries_and_another_attention_are_another_entry(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them may change the last bits of the states, or the pixels that they are made of."""
    eager = {"model.attention": "eager"}
    assert computed(prepared(options, tmp_path, **eager)[1])
    assert not computed(prepared(options, tmp_path, **eager)[1])
    assert computed(prepared(options, tmp_path, **{"model.attention": "sdpa"})[1])
    monkeypatch.setattr(encoder_cache, "pillow", "0.1")
    assert computed(prepared(options, tmp_path, **eager)[1])
    monkeypatch.setattr(encoder_cache, "version", lambda name: {"transformers": "0.1"}[name])
    assert computed(prepared(options, tmp_path, **eager)[1])
    assert not computed(prepared(options, tmp_path, **eager)[1])


def test_without_room_on_the_disk_the_run_goes_on_uncached(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(options, tmp_path, cache_encoder="off")  # the images themselves are held
    full = prepared(options, tmp_path / "other")[0]
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _place: Usage(10**9, 10**9, 100))
    task, said = prepared(options, tmp_path)
    assert set(task.train.columns) == {"image"}
    assert sum("are free. The encoder runs anew for each batch." in line for line in said) == 3
    task.model.load_state_dict(full.model.state_dict())
    batches = [one.held_out("test").take(np.arange(2)) for one in (task, full)]
    with torch.inference_mode():
        torch.testing.assert_close(task.states(batches[0]), full.states(batches[1]), rtol=1e-5, atol=1e-5)
    with pytest.raises(DataError, match=r"100 B are free\. Make room.*--cache_encoder off"):
        prepared(options, tmp_path, cache_encoder="on")
