"""Autoencoding: an explicit bound, anomalies apart, baselines that can win."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn import functional

from finesight import config
from finesight.data.batches import Batches
from finesight.engine import Engine
from finesight.evaluate import predict
from finesight.tasks.autoencoding import MEASURES, Autoencoding, AutoencodingConfig
from finesight.tasks.pictures import mean_image, principal_components
from tests import pictures


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder(tmp_path_factory.mktemp("data") / "shapes", each=12)


def prepared(images: Path, cache: Path, **options: Any) -> Autoencoding:
    flat = {
        "data.root": str(images), "data.cache_dir": str(cache), "precision": "fp32", "model.image_size": 32,
        "model.name": "endovae-light", **options,
    }  # fmt: skip
    settings = config.build(AutoencodingConfig, config.nest(flat))
    task = Autoencoding(settings, ["image"], Engine("fp32"), lambda _text: None)
    task.prepare(Autoencoding.load(settings))
    return task


def test_the_training_loss_is_the_bound_with_its_beta(images: Path, tmp_path: Path) -> None:
    losses = {}
    for beta in (0.0, 1.0, 4.0):
        task = prepared(images, tmp_path, beta=beta)
        batch = next(iter(task.train.epoch(0)))
        (given,) = task.train_step(batch)
        losses[beta] = given.loss.item()
        kl = given.observed["kl"].item()
        assert losses[beta] == pytest.approx(given.observed["reconstruction_nats"].item() + beta * kl, rel=1e-6)
    assert losses[4.0] - losses[0.0] == pytest.approx(4 * (losses[1.0] - losses[0.0]), abs=1e-3)


def test_the_measures_agree_with_each_other_and_do_not_change(images: Path, tmp_path: Path) -> None:
    task = prepared(images, tmp_path)
    first, again = (predict(task, "test", task.engine) for _ in range(2))
    assert (first == again).all()
    rows = dict(zip(MEASURES, first.T, strict=True))
    np.testing.assert_allclose(rows["negative_elbo"], rows["reconstruction_nats"] + rows["kl"], rtol=1e-6)
    np.testing.assert_allclose(rows["psnr"], -10 * np.log10(rows["mse"]), rtol=1e-9)


def test_the_noise_belongs_to_the_sample_and_epoch(images: Path, tmp_path: Path) -> None:
    task = prepared(images, tmp_path)
    ids = task.train.ids[:4]
    assert torch.equal(task.noise(ids, 1)[2], task.noise(ids[2:3], 1)[0])
    assert not torch.equal(task.noise(ids, 1), task.noise(ids, 2))
    # An evaluation has one draw for all: the score of an image cannot depend on its name.
    assert (task.noise(ids) == task.noise(["other"])).all()


def test_as_many_components_as_images_rebuild_the_training_images() -> None:
    pixels = (torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).byte()
    images, batches = pixels.float() / 255, Batches([str(n) for n in range(6)], {"image": pixels}, batch_size=2)
    whole, one = principal_components(batches, 6)(images), principal_components(batches, 1)(images)
    torch.testing.assert_close(whole, images, rtol=0, atol=1e-3)
    assert 0.01 < (one - images).square().mean() < images.var()


def test_the_components_are_those_of_scikit_learn_and_draw_nothing() -> None:
    pixels = (torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).byte()
    batches = Batches([str(n) for n in range(40)], {"image": pixels}, batch_size=2)
    images = pixels.float() / 255
    before = torch.get_rng_state()
    made = principal_components(batches, 5)(images)
    assert torch.equal(before, torch.get_rng_state())
    reference = PCA(5, svd_solver="full").fit(images.flatten(1).numpy())
    expected = reference.inverse_transform(reference.transform(images.flatten(1).numpy())).clip(0, 1)
    np.testing.assert_allclose(made.flatten(1).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("held", [92, 96, 52, 48])
def test_the_mean_of_white_images_stays_white(held: int) -> None:
    """The resize may leave [0, 1] by rounding, which the scores would refuse after the training."""
    for size in (32, 48, 64):
        assert mean_image(torch.full((2, 3, held, held), 255, dtype=torch.uint8), size).max() <= 1


def test_the_mean_image_is_the_mean() -> None:
    pixels = (torch.rand(300, 3, 16, 16) * 255).byte()
    torch.testing.assert_close(mean_image(pixels, 16), pixels.float().mean(0) / 255)


def test_the_mean_images_bound_is_its_cross_entropy(images: Path, tmp_path: Path) -> None:
    task = prepared(images, tmp_path)
    table = task.baselines()["mean image"]["test"]
    mean = mean_image(task.pixels["train"], 32).clamp(1 / 510, 1 - 1 / 510)
    test = task.pixels["test"].float() / 255
    expected = functional.binary_cross_entropy(mean.expand_as(test), test, reduction="none").flatten(1).sum(1)
    np.testing.assert_allclose(table[:, MEASURES.index("negative_elbo")], expected.numpy(), rtol=1e-5)


def test_anomalies_are_measured_and_never_trained_on(images: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    from PIL import Image

    other = tmp_path / "noise"
    other.mkdir()
    for number in range(6):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(other / f"{number}.png")
    task = prepared(images, tmp_path / "cache", **{"data.anomalies": str(other)})
    assert task.measured == ("validation", "test", "anomalies")
    assert not set(task.train.ids) & set(task.held_out("anomalies").ids)
    predictions = {split: predict(task, split, task.engine) for split in task.measured}
    groups = {split: list(task.held_out(split).ids) for split in task.measured}
    found = task.further(predictions, groups)["anomaly"]
    assert set(found) == {"reconstruction error", "negative ELBO"}
    # An untrained model answers grey to everything: noise is farther from grey than the flat pictures or nearer,
    # but AUROC is exactly what the ranks say.
    scores = [predictions[split][:, MEASURES.index("mse")] for split in ("test", "anomalies")]
    wins = (scores[1][:, None] > scores[0][None]).mean()
    assert found["reconstruction error"]["value"] == pytest.approx(wins)


def test_a_collapsed_posterior_raises_an_alarm(images: Path, tmp_path: Path) -> None:
    task = prepared(images, tmp_path)
    entry = {"value": 20.0, "low": 19.0, "high": 21.0, "n": 5}
    test = {"psnr": entry, "kl": {**entry, "value": 0.02}}
    assert any("collapsed" in alarm for alarm in task.alarms({"test": test, "baselines": {}}, []))
    test["kl"] = {**entry, "value": 9.0}
    assert not task.alarms({"test": test, "baselines": {}}, [])
