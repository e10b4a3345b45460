"""Masked reconstruction: fixed masks, honest scores, baselines that can win."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finesight import config
from finesight.engine import Engine
from finesight.errors import DataError
from finesight.evaluate import predict
from finesight.tasks import inpainting
from finesight.tasks.reconstruction import MEASURES, Reconstruction, ReconstructionConfig, measured
from tests import pictures


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder(tmp_path_factory.mktemp("data") / "shapes", each=12)


def prepared(images: Path, cache: Path, **options: Any) -> Reconstruction:
    flat = {
        "data.root": str(images), "data.cache_dir": str(cache), "precision": "fp32",
        "model.image_size": 32, "model.patch_size": 8, **options,
    }  # fmt: skip
    settings = config.build(ReconstructionConfig, config.nest(flat))
    task = Reconstruction(settings, ["image"], Engine("fp32"), lambda _text: None)
    task.prepare(Reconstruction.load(settings))
    return task


def test_the_masks_of_an_evaluation_belong_to_the_sample(images: Path, tmp_path: Path) -> None:
    """Report 000 drew new masks before and after training: a difference said nothing."""
    task = prepared(images, tmp_path)
    first, again = (predict(task, "test", task.engine) for _ in range(2))
    assert (first == again).all()
    alone = prepared(images, tmp_path, **{"evaluation.batch_size": 1})
    alone.model.load_state_dict(task.model.state_dict())
    np.testing.assert_allclose(predict(alone, "test", alone.engine), first, rtol=1e-4)
    seeded, masked = prepared(images, tmp_path, seed=1), prepared(images, tmp_path, mask_seed=1)
    ids = task.train.ids[:3]
    assert torch.equal(seeded.noise(ids), task.noise(ids))
    assert not torch.equal(seeded.noise(ids, 1), task.noise(ids, 1))
    assert not torch.equal(masked.noise(ids), task.noise(ids))
    assert masked.conditions != task.conditions == seeded.conditions


def test_the_baselines_have_the_masks_of_the_model(images: Path, tmp_path: Path) -> None:
    task = prepared(images, tmp_path)
    batch = task.held_out("test").take(np.arange(task.held_out("test").samples))
    ours = task.reconstruct(batch)
    hidden = torch.cat([hidden for _, hidden in task._masked("test")])
    assert torch.equal(ours.hidden, hidden)
    assert ours.hidden.float().mean().item() == pytest.approx(0.75)


def test_training_masks_change_with_the_epoch_and_not_with_the_batch(images: Path, tmp_path: Path) -> None:
    task = prepared(images, tmp_path)
    ids = task.train.ids[:4]
    assert torch.equal(task.noise(ids, 1)[2], task.noise(ids[2:3], 1)[0])
    assert not torch.equal(task.noise(ids, 1), task.noise(ids, 2))
    assert not torch.equal(task.noise(ids, 0), task.noise(ids, 1))


def test_visible_pixels_are_the_true_ones(images: Path, tmp_path: Path) -> None:
    task = prepared(images, tmp_path)
    shown = task.reconstruct(task.held_out("test").take(np.arange(3)))
    visible = ~shown.hidden[:, None].expand_as(shown.original)
    assert torch.equal(shown.pasted[visible], shown.original[visible])
    assert torch.equal(shown.pasted[~visible], shown.predicted[~visible])


def test_whole_image_errors_are_the_hidden_share_of_the_masked_ones(images: Path, tmp_path: Path) -> None:
    task = prepared(images, tmp_path)
    rows = dict(zip(MEASURES, predict(task, "test", task.engine).T, strict=True))
    np.testing.assert_allclose(rows["mse"], 0.75 * rows["masked_mse"], rtol=1e-6)


def test_normalised_images_never_reach_the_scores() -> None:
    """Report 000 compared a normalised image with one in [0, 1]: MSE 2.7, PSNR -4.3 dB for a perfect one."""
    original = torch.zeros(1, 3, 32, 32)
    normalised = (original - 0.485) / 0.229
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        measured(original, normalised, torch.ones(1, 32, 32, dtype=torch.bool))


def test_norm_pix_is_undone_and_said(images: Path, tmp_path: Path) -> None:
    task = prepared(images, tmp_path, norm_pix_loss=True)
    batch = task.engine.send(task.held_out("test").take(np.arange(2)))
    normal = task.prepared(batch["image"])
    perfect = task.model.targets(normal, True)
    shown = task._shown(batch["image"], perfect, normal, torch.ones(2, task.model.patches))
    assert (shown.predicted - shown.original).abs().max() < 1e-5
    metrics = {"test": {"masked_psnr": {"value": 20.0, "low": 19.0, "high": 21.0, "n": 9}}, "baselines": {}}
    assert any("norm_pix_loss" in alarm for alarm in task.alarms(metrics, []))


def test_an_interpolation_beats_a_mean_on_a_smooth_image() -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    hidden = torch.zeros(1, 64, 64, dtype=torch.bool)
    hidden[0, 16:48, 24:40] = True
    error = {
        name: (inpainting.paste(ramp, fill(ramp, hidden), hidden) - ramp).abs().max().item()
        for name, fill in (("interpolated", inpainting.interpolated), ("mean", inpainting.mean_of_visible))
    }
    assert error["interpolated"] < 0.05 < 0.1 < error["mean"]


@pytest.mark.parametrize(("size", "patch"), [(48, 8), (64, 16)])
def test_the_interpolation_is_the_harmonic_function(size: int, patch: int) -> None:
    """Against an exact solution of the discrete Laplace equation in the holes."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import spsolve

    generator = np.random.default_rng(0)
    coarse = torch.from_numpy(generator.random((1, 3, 6, 6), dtype=np.float32))
    image = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    side = size // patch
    mask = torch.from_numpy(generator.permutation(side * side) < 0.75 * side * side).view(1, side, side)
    hidden = mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    holes = hidden[0].numpy()
    number = np.full((size, size), -1)
    number[holes] = np.arange(holes.sum())
    rows, columns, values, known = [], [], [], np.zeros((holes.sum(), 3))
    for y, x in zip(*np.nonzero(holes), strict=True):
        row = number[y, x]
        around = [(y + dy, x + dx) for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))]
        around = [(min(max(b, 0), size - 1), min(max(a, 0), size - 1)) for b, a in around]
        rows.append(row), columns.append(row), values.append(4.0)
        for b, a in around:
            if holes[b, a]:
                rows.append(row), columns.append(number[b, a]), values.append(-1.0)
            else:
                known[row] += image[0, :, b, a].numpy()
    exact = image[0].numpy().copy()
    solved = spsolve(coo_matrix((values, (rows, columns))).tocsr(), known)
    exact[:, holes] = solved.T
    made = inpainting.interpolated(image, hidden)[0].numpy()
    assert np.abs(made - exact)[:, holes].mean() < 1 / 255
    assert np.abs(made - exact).max() < 8 / 255
    visible_mean = inpainting.mean_of_visible(image, hidden)[0].numpy()
    assert np.abs(visible_mean - exact).max() > 10 / 255


def test_baselines_never_see_hidden_pixels() -> None:
    image = torch.rand(1, 3, 32, 32)
    hidden = torch.rand(1, 32, 32) < 0.75
    changed = torch.where(hidden[:, None], torch.rand(1, 3, 32, 32), image)
    for fill in (inpainting.interpolated, inpainting.mean_of_visible):
        torch.testing.assert_close(
            inpainting.paste(image, fill(image, hidden), hidden)[hidden[:, None].expand(1, 3, 32, 32)],
            inpainting.paste(changed, fill(changed, hidden), hidden)[hidden[:, None].expand(1, 3, 32, 32)],
        )
