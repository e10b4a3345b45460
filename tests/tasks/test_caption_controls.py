"""What a captioner must beat, measured beside it image by image, and found without holding all similarities."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finesight import config
from finesight.engine import Engine
from finesight.evaluate import evaluate, predict
from finesight.metrics import bootstrap
from finesight.tasks import caption_controls
from finesight.tasks.caption_controls import FREQUENT, NEAREST, SHUFFLED
from finesight.tasks.captioning import Captioning, CaptioningConfig
from tests import pictures
from tests.models.test_captioner import pair

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "brown")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = pictures.folder(tmp_path_factory.mktemp("data") / "shapes", each=10)
    files = sorted(root.rglob("*.png"))
    rows = [
        f"{file.relative_to(root)},a {COLOURS[number % 7]} {file.parent.name} on a dark ground"
        for number, file in enumerate(files)
    ]
    (root / "table.csv").write_text("\n".join(["image,caption", *rows]))
    return root / "table.csv"


def prepared(table: Path, cache: Path, **options: Any) -> Captioning:
    flat = {
        "data.root": str(table), "data.cache_dir": str(cache), "precision": "fp32", "model.image_size": 24,
        "generation.max_tokens": 12, "evaluation.resamples": 200, "data.limit_test": 6, **options,
    }  # fmt: skip
    settings = config.build(CaptioningConfig, config.nest(flat))
    task = Captioning(settings, ["image"], Engine("fp32"), lambda _text: None)
    task.prepare(Captioning.load(settings))
    return task


class Sizes(TorchDispatchMode):
    """Notes the numbers in each product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.seen.append(found.numel())
        return found


def test_the_nearest_images_are_found_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    known, asked = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (50, 23))
    known[40] = known[7]  # of two that are alike the first
    asked[3] = known[7]
    whole = (asked @ known.T).argmax(1).tolist()
    monkeypatch.setattr(caption_controls, "BLOCK", 210)
    with Sizes() as sizes:
        assert caption_controls.nearest_rows(known, asked) == whole
    assert sizes.seen == [200, 200, 200, 200, 200, 150]
    assert whole[3] == 7
    monkeypatch.setattr(caption_controls, "BLOCK", 10)  # one row at least
    assert caption_controls.nearest_rows(known, asked) == whole


def test_features_are_those_of_the_encoder_and_a_long_way_is_shown(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[bool] = []

    class Bar:
        def __init__(self, _label: str, total: int, _unit: str, *, shown: bool) -> None:
            self.total, self.done = total, 0
            drawn.append(shown)

        def update(self, done: int) -> None:
            self.done = done

        def close(self) -> None:
            assert self.done == self.total

    monkeypatch.setattr(caption_controls, "Progress", Bar)
    options = {"model.name": pair(tmp_path).name, "model.image_size": None, "adapt.method": "decoder"}
    cached = prepared(table, tmp_path / "cache", **options)
    plain = prepared(table, tmp_path / "cache", **options, cache_encoder="off")
    plain.model.load_state_dict(cached.model.state_dict())
    features = [caption_controls.features(task, "train") for task in (cached, plain)]
    torch.testing.assert_close(features[0], features[1], rtol=0, atol=1e-5)
    images = plain.prepared(plain.pixels["train"])
    with torch.inference_mode():
        wanted = torch.nn.functional.normalize(plain.model.image_states(images).mean(1), dim=1)
    torch.testing.assert_close(features[1], wanted, rtol=0, atol=1e-5)
    assert drawn == [False, True]


def test_every_control_is_paired_with_the_model_image_by_image(table: Path, tmp_path: Path) -> None:
    task = prepared(table, tmp_path)
    rows = {split: predict(task, split, task.engine) for split in ("test", "validation")}
    groups = {split: list(task.held_out(split).ids) for split in rows}
    groups["test"][1] = groups["test"][0]  # two images of one origin are drawn together
    metrics = evaluate(task, rows, groups, task.config.evaluation, 0)
    assert set(metrics["improvement"]) == {FREQUENT, NEAREST, SHUFFLED} == set(metrics["baselines"])
    controls = caption_controls.controls(task)
    for name, pairs in metrics["improvement"].items():
        for score, entry in pairs.items():
            assert entry["b"] == metrics["test"][score]["value"]
            assert entry["a"] == metrics["baselines"][name]["test"][score]["value"]
        assert pairs["nll"]["a"] is None
        tables = [
            task.metric.statistics(found, task.references("test")) for found in (controls[name]["test"], rows["test"])
        ]
        expected = bootstrap.paired(task.metric, *tables, groups=groups["test"], resamples=200, seed=0)
        assert pairs == expected


def entry(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 20}


@pytest.mark.parametrize(("low", "said"), [(0.01, False), (-0.01, True)])
def test_alarms_follow_the_paired_difference(table: Path, tmp_path: Path, low: float, said: bool) -> None:
    """The model's own interval holds the control's bare number; the same images measured twice tell more."""
    task = prepared(table, tmp_path)
    metrics = {
        "test": {"cider": entry(0.5, 0.2, 0.8)},
        "baselines": {NEAREST: {"test": {"cider": entry(0.4, 0.1, 0.7)}}},
        "improvement": {NEAREST: {"cider": {"a": 0.4, "b": 0.5, "difference": 0.1, "low": low, "high": 0.2, "n": 20}}},
    }
    assert (
        any("Not clearly better than 'caption of the nearest image'" in alarm for alarm in task.alarms(metrics, []))
        == said
    )


def test_a_table_of_statistics_is_made_once(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = prepared(table, tmp_path)
    rows = {split: predict(task, split, task.engine) for split in ("test", "validation")}
    groups = {split: list(task.held_out(split).ids) for split in rows}
    made: list[Any] = []
    real = task.metric.scores.statistics
    monkeypatch.setattr(task.metric.scores, "statistics", lambda *given: (made.append(given), real(*given))[1])
    evaluate(task, rows, groups, task.config.evaluation, 0)
    task.table("test", rows["test"])
    assert len(made) == 5  # test, validation, three controls
    before = task.metric.statistics(rows["test"], task.references("test"))
    assert np.array_equal(task.metric.statistics(rows["test"].copy(), task.references("test")), before, equal_nan=True)
    assert len(made) == 6


@pytest.mark.parametrize(
    ("same", "said"), [(6, "All 6 test captions are the same"), (4, "4 of 6 test captions are the same"), (3, None)]
)
def test_captions_that_hardly_differ_raise_an_alarm(
    table: Path, tmp_path: Path, same: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = prepared(table, tmp_path)
    monkeypatch.setattr(task, "references", lambda _split: [[f"caption {place}"] for place in range(6)])
    end = task.model.ends.end
    for place, name in enumerate(task.held_out("test").ids):
        task.written[name] = np.array([0.0, 1.0, 7.0 if place < same else 8.0 + place, end])
    metrics = {"test": {"cider": entry(0.5, 0.2, 0.8)}, "baselines": {}, "improvement": {}}
    found = " ".join(task.alarms(metrics, []))
    assert said in found if said else "the same text" not in found
