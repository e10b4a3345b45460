"""The classification task: frozen features are cached where that is sound, and nowhere else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finesight import config
from finesight.data import histograms
from finesight.data.loading import load
from finesight.engine import Engine
from finesight.evaluate import predict
from finesight.models.classifier import Classifier
from finesight.tasks.classification import Classification, ClassificationConfig
from tests import pictures
from tests.models import folders


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder(tmp_path_factory.mktemp("data") / "shapes", each=20)


@pytest.fixture(scope="module")
def beit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "beit"
    folders.save("beit", path, ["x", "y"])
    return path


def prepared(images: Path, cache: Path, **options: Any) -> tuple[Classification, list[str]]:
    said: list[str] = []
    flat = {"data.root": str(images), "data.cache_dir": str(cache), "precision": "fp32", **options}
    settings = config.build(ClassificationConfig, config.nest(flat))
    data = load(settings.data, 0)
    task = Classification(settings, data["train"].features["label"].names, Engine("fp32"), said.append)
    task.prepare(data)
    return task, said


def test_cached_features_are_those_of_the_backbone(images: Path, beit: Path, tmp_path: Path) -> None:
    task, _ = prepared(images, tmp_path, **{"model.name": str(beit), "adapt.method": "head"})
    assert set(task.train.columns) == {"features", "label"}
    task.model.eval()
    with torch.inference_mode():
        direct = task.model.features(task.prepared({"image": task.pixels["train"]}))
    torch.testing.assert_close(task.train.columns["features"], direct, rtol=0, atol=1e-5)


def test_the_cache_is_used_the_second_time_and_not_for_other_weights(
    images: Path, beit: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    options = {"model.name": str(beit), "adapt.method": "head"}
    first, said = prepared(images, tmp_path / "cache", **options)
    assert any("features of train" in line for line in said)

    def forbidden(*_: Any) -> None:
        raise AssertionError("the frozen backbone ran again")

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "features", forbidden)
        again, said = prepared(images, tmp_path / "cache", **options)
    assert torch.equal(first.train.columns["features"], again.train.columns["features"])
    assert not any("Caching" in line for line in said)
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    folders.save("beit", other, ["x", "y"])
    state = load_file(other / "model.safetensors")
    name = next(key for key in state if key.endswith("cls_token"))
    state[name] += 1e-3
    save_file(state, other / "model.safetensors", {"format": "pt"})
    changed, said = prepared(images, tmp_path / "cache", **{**options, "model.name": str(other)})
    assert not torch.equal(first.train.columns["features"], changed.train.columns["features"])


def test_augmentation_refuses_the_cache_and_says_so(images: Path, beit: Path, tmp_path: Path) -> None:
    options = {"model.name": str(beit), "adapt.method": "head", "augment.flip": 0.5}
    task, said = prepared(images, tmp_path, **options)
    assert "image" in task.train.columns
    assert "features" in task.held_out("test").columns
    assert any("augmentation changes its input" in line for line in said)


def test_held_out_images_are_never_augmented(images: Path, tmp_path: Path) -> None:
    task, _ = prepared(images, tmp_path, **{"model.image_size": 32, "augment.flip": 1.0, "augment.holes": 1.0})
    held = task.held_out("test").take(np.arange(3))
    assert torch.equal(held["image"], task.pixels["test"][:3])
    batch = next(iter(task.train.epoch(0)))
    rows = [task.train.ids.index(name) for name in batch["id"]]
    assert not torch.equal(batch["image"], task.pixels["train"][rows])


def test_predictions_do_not_depend_on_the_batch_size_of_the_evaluation(images: Path, tmp_path: Path) -> None:
    few, many = (
        predict(prepared(images, tmp_path, **{"model.image_size": 32, "evaluation.batch_size": n})[0], "test", Engine())
        for n in (3, 256)
    )
    np.testing.assert_allclose(few, many, atol=1e-6)


def test_changed_pixels_change_the_cache_key(tmp_path: Path) -> None:
    root = pictures.folder(tmp_path / "data", each=12)
    first, _ = prepared(root, tmp_path / "cache", **{"model.image_size": 32})
    victim = root / first.held_out("test").ids[0]
    victim.write_bytes((root / "disc" / "001.png").read_bytes() if "disc/001" not in str(victim) else b"")
    second, _ = prepared(root, tmp_path / "cache", **{"model.image_size": 32, "data.skip_bad": 1})
    assert not torch.equal(first.pixels["test"], second.pixels["test"])


def test_an_unreadable_image_is_named_or_left_out_when_allowed(tmp_path: Path) -> None:
    from finesight.errors import DataError

    root = pictures.folder(tmp_path / "data", each=12)
    (root / "disc" / "005.png").write_bytes((root / "disc" / "005.png").read_bytes()[:200])
    with pytest.raises(DataError, match="disc/005.png") as caught:
        prepared(root, tmp_path / "cache")
    assert "--data.skip_bad 1" in str(caught.value)
    (root / "square" / "001.png").write_bytes(b"")
    (root / "square" / "002.png").write_bytes(b"")
    with pytest.raises(DataError, match="3 unreadable images"):  # over all splits together
        prepared(root, tmp_path / "cache", **{"data.skip_bad": 2})
    for name in ("001", "002"):
        (root / "square" / f"{name}.png").write_bytes((root / "square" / "003.png").read_bytes())
    task, said = prepared(root, tmp_path / "cache2", **{"data.skip_bad": 1})
    assert sum(len(labels) for labels in task.labels.values()) == 35
    assert any("left out 1" in line for line in said)


def test_colour_histograms_by_hand() -> None:
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, 0] = torch.tensor([[0, 7], [8, 255]])
    found = histograms.colour_histograms(image).reshape(3, 32)
    assert found[0, [0, 1, 31]].tolist() == [0.5, 0.25, 0.25]
    assert found[1, 0] == found[2, 0] == 1.0
    assert found.sum() == 3.0


def test_the_baseline_sees_colours_and_not_shapes() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 2
    colours = generator.integers(0, 100, (60, 3, 8, 8)) + 100 * labels[:, None, None, None]
    images = torch.from_numpy(colours.astype(np.uint8))
    predict_colours = histograms.linear_classifier(images[:40], labels[:40], 3)
    found = predict_colours(images[40:])
    assert found.shape == (20, 3)
    assert (found.argmax(1) == labels[40:]).all()
    np.testing.assert_allclose(found.sum(1), 1)
