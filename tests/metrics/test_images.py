"""Pixel metrics: closed forms, three other implementations, wrong ones that differ, and what is refused."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.datasets import load_sample_image
from torchmetrics.functional.image import structural_similarity_index_measure

from finesight.errors import DataError
from finesight.metrics import images
from finesight.metrics.images import PSNR_LIMIT, mse, psnr, scores, ssim
from finesight.metrics.kinds import kind

Floats = NDArray[np.float64]
MEAN, STD = (np.array(values).reshape(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def random_pair(*shape: int, noise: float = 0.1, seed: int = 0) -> tuple[Floats, Floats]:
    generator = np.random.default_rng(seed)
    target = generator.random(shape)
    return np.clip(target + noise * generator.normal(size=shape), 0, 1), target


@pytest.fixture(scope="module")
def photographs() -> tuple[Floats, Floats]:
    """Crops of two photographs, blurred and as they are, [2, 3, 96, 120]."""
    whole = [load_sample_image(name)[100:196, 200:320] / 255 for name in ("china.jpg", "flower.jpg")]
    target = np.stack(whole).transpose(0, 3, 1, 2)
    return (target + np.roll(target, 1, axis=2) + np.roll(target, 1, axis=3)) / 3, target


def by_skimage(prediction: Floats, target: Floats, **options: Any) -> Floats:
    given = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 1,
        "channel_axis": 0,
    } | options
    return np.array([structural_similarity(x, y, **given) for x, y in zip(prediction, target, strict=True)])


def by_torchmetrics(prediction: Floats, target: Floats) -> Floats:
    """Its map [N, C, H, W]: the score of torchmetrics 1.9.0 is the mean over windows on the reflected border too."""
    _, full = structural_similarity_index_measure(
        torch.from_numpy(prediction), torch.from_numpy(target), data_range=1.0, return_full_image=True
    )
    return full.numpy()


def by_definition(x: Floats, y: Floats, centres: NDArray[np.bool_]) -> float:
    """SSIM of one image [C, H, W] over the windows [11, 11] with these centres [H, W], one by one."""
    distance = np.arange(-5, 6)
    window = np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * 1.5**2))
    window /= window.sum()
    found = []
    for row, column in zip(*np.nonzero(centres), strict=True):
        if not (5 <= row < x.shape[1] - 5 and 5 <= column < x.shape[2] - 5):
            continue
        for a, b in zip(x, y, strict=True):
            p, q = (values[row - 5 : row + 6, column - 5 : column + 6] for values in (a, b))
            mean_p, mean_q = (window * p).sum(), (window * q).sum()
            variances = (window * (p - mean_p) ** 2).sum() + (window * (q - mean_q) ** 2).sum()
            covariance = (window * (p - mean_p) * (q - mean_q)).sum()
            found.append(
                (2 * mean_p * mean_q + 1e-4)
                * (2 * covariance + 9e-4)
                / ((mean_p**2 + mean_q**2 + 1e-4) * (variances + 9e-4))
            )
    return float(np.mean(found))


def test_constant_images_have_closed_forms() -> None:
    a, b = 0.2, 0.7
    found = scores(np.full((1, 3, 16, 20), a), np.full((1, 3, 16, 20), b))
    assert list(found) == ["mse", "psnr", "ssim"]
    assert found["mse"] == pytest.approx([(a - b) ** 2], abs=1e-15)
    assert found["psnr"] == pytest.approx([-20 * np.log10(b - a)], abs=1e-12)
    assert found["ssim"] == pytest.approx([(2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)], abs=1e-12)
    assert all(values.dtype == np.float64 and kind(name) for name, values in found.items())


def test_identical_images_are_perfect_and_finite() -> None:
    _, target = random_pair(3, 3, 24, 24)
    found = scores(target, target)
    assert found["mse"].tolist() == [0, 0, 0]
    assert found["psnr"].tolist() == [PSNR_LIMIT] * 3 == [100] * 3
    assert found["ssim"].tolist() == [1, 1, 1]
    almost = np.array([np.full((1, 4, 4), 0.5 + step) for step in (1e-6, 1e-5, 1e-4)])
    assert psnr(almost, np.full((3, 1, 4, 4), 0.5)) == pytest.approx([100, 100, 80], abs=1e-6)


def test_black_against_white_is_zero_decibels() -> None:
    found = scores(np.zeros((1, 1, 11, 11)), np.ones((1, 1, 11, 11)))
    assert (found["mse"][0], found["psnr"][0]) == (1, 0)
    assert not np.signbit(found["psnr"][0])


@pytest.mark.parametrize("shape", [(3, 1, 11, 11), (2, 3, 40, 57), (1, 2, 75, 43), (1, 3, 224, 224)])
def test_ssim_equals_scikit_image_and_torchmetrics_on_noise(shape: tuple[int, ...]) -> None:
    check_parity(*random_pair(*shape))


def test_ssim_equals_scikit_image_and_torchmetrics_on_photographs(photographs: tuple[Floats, Floats]) -> None:
    prediction, target = photographs
    found = check_parity(prediction, target)
    assert (found < 0.95).all()
    whole = np.ones(target.shape[2:], dtype=bool)
    assert found[0] == pytest.approx(by_definition(prediction[0], target[0], whole), abs=1e-9)


def check_parity(prediction: Floats, target: Floats) -> Floats:
    found = ssim(prediction, target)
    assert np.abs(found - by_skimage(prediction, target)).max() < 1e-10
    valid = by_torchmetrics(prediction, target)[..., 5:-5, 5:-5]
    assert np.abs(found - valid.mean(axis=(1, 2, 3))).max() < 1e-10
    decibels = [peak_signal_noise_ratio(y, x, data_range=1) for x, y in zip(prediction, target, strict=True)]
    assert psnr(prediction, target) == pytest.approx(decibels, abs=1e-10)
    return found


@pytest.mark.parametrize(
    "wrong",
    [
        {"gaussian_weights": False, "win_size": 7},
        {"data_range": 255},
        {"data_range": 2},
        {"use_sample_covariance": True},
        {"sigma": 1.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_common_mistakes_of_ssim_give_other_numbers(photographs: tuple[Floats, Floats], wrong: Any) -> None:
    prediction, target = photographs
    assert np.abs(by_skimage(prediction, target, **wrong) - ssim(prediction, target)).max() > 1e-4


def test_ssim_leaves_out_windows_over_the_border(photographs: tuple[Floats, Floats]) -> None:
    prediction, target = photographs
    _, padded = structural_similarity(
        prediction[0],
        target[0],
        gaussian_weights=True,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=0,
        full=True,
    )
    found = ssim(prediction, target)[0]
    assert abs(padded.mean() - found) > 1e-4
    assert padded[:, 5:-5, 5:-5].mean() == pytest.approx(found, abs=1e-10)
    # At 96 x 120 pixels a fifth of the windows reaches over the border.
    assert np.abs(by_torchmetrics(prediction, target).mean(axis=(1, 2, 3)) - ssim(prediction, target)).max() > 0.01


def test_ssim_is_symmetric_and_blind_to_the_order_of_channels() -> None:
    prediction, target = random_pair(2, 3, 20, 20, noise=0.3)
    assert ssim(prediction, target) == pytest.approx(ssim(target, prediction), abs=1e-14)
    assert ssim(prediction[:, ::-1], target[:, ::-1]) == pytest.approx(ssim(prediction, target), abs=1e-14)
    assert ssim(1 - target, target)[0] < 0


def test_report_000_scored_a_perfect_reconstruction_of_a_dark_ct_with_2_7() -> None:
    # A slice in black air: a disc of one third of the picture at half intensity.
    y, x = np.mgrid[:224, :224] - 111.5
    picture = np.where(x**2 + y**2 < 224**2 / (3 * np.pi), 0.5, 0.0)
    perfect = np.broadcast_to(picture, (1, 3, 224, 224)).astype(np.float32)
    normalised = ((perfect - MEAN) / STD).astype(np.float32)
    plain = float(((normalised - perfect) ** 2).mean())
    assert plain == pytest.approx(2.68, abs=0.02)
    assert -10 * np.log10(plain) == pytest.approx(-4.3, abs=0.05)
    for metric in (mse, psnr, ssim, scores):
        for pair in ((normalised, perfect), (perfect, normalised)):
            with pytest.raises(DataError, match=r"values from -2.1179 to 0.4.*x \* std \+ mean"):
                metric(*pair)
    undone = np.clip(normalised * STD + MEAN, 0, 1)
    found = scores(undone, perfect)
    assert found["mse"][0] < 1e-12
    assert found["psnr"][0] == PSNR_LIMIT
    assert found["ssim"][0] == pytest.approx(1, abs=1e-9)


IMAGE = np.full((2, 3, 16, 16), 0.5, dtype=np.float32)


def changed(value: float) -> NDArray[np.float32]:
    images = IMAGE.copy()
    images[1, 2, 3, 4] = value
    return images


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (np.full((2, 3, 16, 16), 200, dtype=np.uint8), "type uint8, from 200 to 200.*divide by 255"),
        (torch.full((2, 3, 16, 16), 7), "type int64, from 7 to 7: floats"),
        (np.ones((2, 3, 16, 16), dtype=bool), "values of type bool: floats"),
        (255 * IMAGE, "2 of 2 images of the prediction.*image 0, with values from 127.5 to 127.5.*divide by 255"),
        (changed(-0.01), r"1 of 2 images.*image 1, with values from -0.01 to 0.5\. .*and clamp"),
        (changed(np.nextafter(np.float32(1), np.float32(2))), "from 0.5 to 1.0000001192092896"),
        (changed(-1e-30), "from -1e-30 to 0.5"),
        (changed(np.nan), "image 1, with values from nan to nan"),
        (changed(np.inf), "image 1, with values from 0.5 to inf"),
        (torch.full((2, 3, 16, 16), 1.5, dtype=torch.bfloat16), "from 1.5 to 1.5"),
        (IMAGE[0], r"prediction has shape \(3, 16, 16\).*image\[None\]"),
        (IMAGE[:0], r"prediction has shape \(0, 3, 16, 16\): at least one image"),
        (IMAGE[:1], r"shape \(1, 3, 16, 16\), the target \(2, 3, 16, 16\)"),
        (IMAGE[:, :1], r"shape \(2, 1, 16, 16\).*repeat the channel of grey images"),
    ],
)
def test_what_is_no_image_in_0_to_1_is_refused(prediction: Any, message: str) -> None:
    for metric in (mse, psnr, ssim, scores):
        with pytest.raises(DataError, match=message):
            metric(prediction, IMAGE)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((2, 16, 16)), "type float64: bool is needed.*mask > 0.5"),
        (np.ones((2, 1, 16, 16), dtype=bool), r"shape \(2, 1, 16, 16\) for images.*\[N, H, W\]"),
        (np.arange(2 * 16 * 16).reshape(2, 16, 16) < 256, "1 of 2 masks are empty; the first is mask 1: no pixel"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: Any, message: str) -> None:
    for metric in (mse, psnr, ssim, scores):
        with pytest.raises(DataError, match=message):
            metric(IMAGE, IMAGE, mask)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(DataError) as raised:
        mse(255 * IMAGE, np.zeros((2, 3, 8, 8), dtype=np.uint8), np.ones((2, 16, 16)))
    assert len(raised.value.problems) == 4


def test_ssim_needs_room_for_its_window() -> None:
    small = np.full((1, 1, 10, 32), 0.5)
    assert mse(small, small).tolist() == [0]
    for metric in (ssim, scores):
        with pytest.raises(DataError, match="10 x 32 pixels: its window of 11 x 11 does not fit. Use mse and psnr"):
            metric(small, small)
    border = np.zeros((2, 16, 16), dtype=bool)
    border[0, 5, 10] = border[1, :5] = border[1, :, 11:] = True
    assert ssim(IMAGE, IMAGE, border | border[:1]).tolist() == [1, 1]
    with pytest.raises(DataError, match="1 of 2 masks are empty; the first is mask 1: no window of 11 x 11"):
        ssim(IMAGE, IMAGE, border)


def test_mask_equals_a_plain_loop_over_its_pixels() -> None:
    prediction, target = random_pair(3, 2, 15, 17, noise=0.3)
    mask = np.random.default_rng(5).random((3, 15, 17)) < 0.25
    found = scores(prediction, target, mask)
    for index in range(3):
        pixels = [
            (prediction[index, channel, row, column] - target[index, channel, row, column]) ** 2
            for channel in range(2)
            for row, column in zip(*np.nonzero(mask[index]), strict=True)
        ]
        assert found["mse"][index] == pytest.approx(np.mean(pixels), abs=1e-14)
        assert found["psnr"][index] == pytest.approx(-10 * np.log10(np.mean(pixels)), abs=1e-10)
        expected = by_definition(prediction[index], target[index], mask[index])
        assert found["ssim"][index] == pytest.approx(expected, abs=1e-10)
    # A mistake often made: the error outside set to zero, and averaged over the whole picture.
    assert found["mse"][0] > 3 * np.square((prediction - target) * mask[:, None])[0].mean()


def test_a_mask_and_its_complement_add_up() -> None:
    prediction, target = random_pair(2, 3, 32, 32)
    mask = np.random.default_rng(1).random((2, 32, 32)) < 0.75
    inside, outside = mse(prediction, target, mask), mse(prediction, target, ~mask)
    share = mask.mean(axis=(1, 2))
    assert share * inside + (1 - share) * outside == pytest.approx(mse(prediction, target), abs=1e-14)


def test_a_mask_of_everything_changes_nothing() -> None:
    prediction, target = random_pair(2, 3, 21, 30)
    whole = scores(prediction, target)
    masked = scores(prediction, target, np.ones((2, 21, 30), dtype=bool))
    for name in whole:
        assert (masked[name] == whole[name]).all(), name


def test_one_call_equals_three_and_a_batch_equals_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, target = random_pair(7, 3, 32, 45)
    mask = np.random.default_rng(2).random((7, 32, 45)) < 0.5
    together = scores(prediction, target, mask)
    for name, metric in (("mse", mse), ("psnr", psnr), ("ssim", ssim)):
        assert (metric(prediction, target, mask) == together[name]).all(), name
    for index in range(7):
        part = slice(index, index + 1)
        for name, values in scores(prediction[part], target[part], mask[part]).items():
            assert values[0] == together[name][index], name
    monkeypatch.setattr(images, "_CHUNK_VALUES", 3 * 3 * 32 * 45)
    for name, values in scores(prediction, target, mask).items():
        assert (values == together[name]).all(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_equal_arrays_of_the_same_values(dtype: torch.dtype) -> None:
    prediction, target = (torch.from_numpy(values).to(dtype) for values in random_pair(2, 3, 16, 16))
    mask = torch.arange(2 * 16 * 16).reshape(2, 16, 16) % 3 == 0
    expected = scores(prediction.double().numpy(), target.double().numpy(), mask.numpy())
    strided = prediction.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    found = scores(strided.requires_grad_(), target, mask)
    for name in expected:
        assert (found[name] == expected[name]).all(), name


def test_float32_is_computed_in_float64() -> None:
    prediction = np.full((1, 1, 300, 300), 1 / 3, dtype=np.float32)
    target = prediction + np.float32(1e-4)
    exact = (float(target[0, 0, 0, 0]) - float(prediction[0, 0, 0, 0])) ** 2
    assert mse(prediction, target)[0] == pytest.approx(exact, rel=1e-12)


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    prediction, target = (values.astype(np.float32) for values in random_pair(64, 3, 64, 64))
    tracemalloc.start()
    scores(prediction, target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The five maps of all images in float64 would take 31 MB, and their products as much again.
    assert peak < 20e6
