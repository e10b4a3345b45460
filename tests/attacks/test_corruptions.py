"""Common corruptions against the published definitions, and seeded by the sample."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from skimage import color

from finesight.attacks import CORRUPTIONS, corrupt
from finesight.errors import ConfigError, DataError


def photos(count: int = 4, side: int = 32) -> torch.Tensor:
    """Smooth coloured 8-bit images as float32 [count, 3, side, side] in [0, 1]."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    return fine.mul(255).round() / 255


def names(count: int) -> list[str]:
    return [f"image {number}" for number in range(count)]


def eight_bit(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.mul(255).round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("side", [32, 112])
def test_each_gets_worse_with_the_severity_and_stays_an_image(kind: str, side: int) -> None:
    images = photos(2, side)
    before = images.clone()
    errors = []
    for severity in range(1, 6):
        result = corrupt(images, names(2), kind, severity)
        assert result.shape == images.shape
        assert result.dtype == torch.float32
        assert result.min() >= 0
        assert result.max() <= 1
        errors.append((result - images).square().mean().item())
    assert errors[0] > 1e-7
    # CIFAR-10-C's motion blurs of severity 3 and 4 differ only in the reach of a tail that is nearly 0.
    growth = 0.999 if (kind, side) == ("motion_blur", 32) else 1.02
    assert all(later > earlier * growth for earlier, later in itertools.pairwise(errors))
    assert errors[-1] > 1.5 * errors[0]
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_sample_keeps_its_corruption_in_any_batch(kind: str) -> None:
    images = photos(5)
    together = corrupt(images, names(5), kind, 3, seed=4)
    alone = [corrupt(images[i : i + 1], [f"image {i}"], kind, 3, seed=4) for i in (3, 1)]
    torch.testing.assert_close(together[[3, 1]], torch.cat(alone), atol=1e-6, rtol=0)
    drawn = kind.endswith("noise") or kind == "motion_blur"
    other = corrupt(images, names(5), kind, 3, seed=5)
    assert torch.equal(other, together) != drawn
    if drawn:
        twins = corrupt(images[[0, 0]], ["a", "b"], kind, 3)
        assert not torch.equal(twins[0], twins[1])


def test_noises_have_their_distributions() -> None:
    grey = torch.full((1, 3, 90, 90), 0.5)
    for severity, strength in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), start=1):
        noise = corrupt(grey, ["a"], "gaussian_noise", severity) - 0.5
        assert noise.std().item() == pytest.approx(strength, rel=0.03)
        assert stats.kstest(noise.flatten().numpy() / strength, "norm").pvalue > 0.001
    for severity, photons in enumerate((500, 250, 100, 75, 50), start=1):
        counts = corrupt(grey, ["a"], "shot_noise", severity) * photons
        assert (counts - counts.round()).abs().max() < 1e-3
        assert counts.mean().item() == pytest.approx(photons / 2, rel=0.01)
        assert counts.var().item() == pytest.approx(photons / 2, rel=0.05)
    for severity, share in enumerate((0.01, 0.02, 0.03, 0.05, 0.07), start=1):
        result = corrupt(grey, ["a"], "impulse_noise", severity)
        for value in (0, 1):
            assert (result == value).double().mean().item() == pytest.approx(share / 2, rel=0.25)
        assert ((result == 0) | (result == 1) | (result == 0.5)).all()


def test_shot_noise_is_poisson_and_black_stays_black() -> None:
    images = torch.zeros(1, 1, 120, 120)
    images[..., 60:] = 0.5
    counts = (corrupt(images, ["a"], "shot_noise", 5) * 3).round().long()  # 3 photons for white in large images
    assert (counts[..., :60] == 0).all()
    seen = counts[..., 60:].flatten().bincount(minlength=4)[:3] / counts[..., 60:].numel()
    np.testing.assert_allclose(seen, stats.poisson(1.5).pmf(range(3)), atol=0.015)


def test_contrast_and_brightness_are_the_published_formulas() -> None:
    images = photos(3)
    images[0, :, :4] = 0
    strengths = zip((0.75, 0.5, 0.4, 0.3, 0.15), (0.05, 0.1, 0.15, 0.2, 0.3), strict=True)
    for severity, (share, amount) in enumerate(strengths, start=1):
        flat, bright = (corrupt(images, names(3), kind, severity) for kind in ("contrast", "brightness"))
        for image, low, high in zip(images, flat, bright, strict=True):
            pixels = image.permute(1, 2, 0).double().numpy()
            means = pixels.mean((0, 1))
            np.testing.assert_allclose(low.permute(1, 2, 0), (pixels - means) * share + means, atol=1e-6)
            hsv = color.rgb2hsv(pixels)
            hsv[..., 2] = np.clip(hsv[..., 2] + amount, 0, 1)
            np.testing.assert_allclose(high.permute(1, 2, 0), color.hsv2rgb(hsv), atol=1e-6)


@pytest.mark.parametrize("side", [32, 112])
def test_pixelate_and_jpeg_are_pillows(side: int) -> None:
    images = photos(2, side)
    shares = (0.95, 0.9, 0.85, 0.75, 0.65) if side == 32 else (0.6, 0.5, 0.4, 0.3, 0.25)
    qualities = (80, 65, 58, 50, 40) if side == 32 else (25, 18, 15, 10, 7)
    for severity, (share, quality) in enumerate(zip(shares, qualities, strict=True), start=1):
        blocks, files = (corrupt(images, names(2), kind, severity) for kind in ("pixelate", "jpeg"))
        for image, block, file in zip(images, blocks, files, strict=True):
            few = int(side * share)
            peer = eight_bit(image).resize((few, few), Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX)
            # Pillow rounds to 8 bits after each of its two directions.
            np.testing.assert_allclose(block.permute(1, 2, 0) * 255, np.asarray(peer), atol=1.01)
            written = io.BytesIO()
            eight_bit(image).save(written, "JPEG", quality=quality)
            np.testing.assert_allclose(file.permute(1, 2, 0) * 255, np.asarray(Image.open(written)), atol=1e-3)


def test_blurs_keep_flat_images_and_spread_a_point() -> None:
    flat = torch.full((1, 3, 40, 40), 0.3)
    point = torch.zeros(1, 3, 128, 128)
    point[..., 64, 64] = 1
    for kind in ("defocus_blur", "motion_blur"):
        for severity in (1, 5):
            torch.testing.assert_close(corrupt(flat, ["a"], kind, severity), flat)
            assert corrupt(point, ["a"], kind, severity).sum().item() == pytest.approx(3, rel=1e-4)
    disk = corrupt(point, ["a"], "defocus_blur", 5)[0, 0]
    torch.testing.assert_close(disk[1:, 1:], disk[1:, 1:].flip(0))
    torch.testing.assert_close(disk, disk.T)
    # Radius 10 at 224 pixels is 10 * 128 / 224 = 5.7 here: 101 pixels, and its softened edge.
    assert 101 <= (disk > 1e-6).sum() <= 145
    assert disk.max().item() == pytest.approx(1 / 101, rel=0.001)
    # A point is smeared along a straight line that ends in it, within 45 degrees of the horizontal.
    for name in names(6):
        streak = corrupt(point, [name], "motion_blur", 3)[0, 0]
        rows, columns = (streak > 1e-7).nonzero().T
        assert columns.max() == 64
        slope = (rows - 64).double() / (64 - columns).clamp(min=1)
        steep = slope[columns < 56]
        assert steep.abs().max() < 1.1
        assert steep.max() - steep.min() < 0.2
        assert streak[64, 64] == streak.max()


def test_what_is_no_corruption_is_refused() -> None:
    images = photos(2)
    with pytest.raises(ConfigError, match=r"'snow' is unknown; choose from gaussian_noise"):
        corrupt(images, names(2), "snow", 1)
    with pytest.raises(ConfigError, match="severity 6"):
        corrupt(images, names(2), "jpeg", 6)
    with pytest.raises(ConfigError, match="3 ids for 2 images"):
        corrupt(images, names(3), "jpeg", 1)
    with pytest.raises(DataError, match="not within"):
        corrupt(images * 2 - 1, names(2), "jpeg", 1)
    with pytest.raises(ConfigError, match="not 4 channels"):
        corrupt(torch.rand(1, 4, 8, 8), ["a"], "jpeg", 1)
