"""Pictures with detail of every size, as photographs have, and what happens to copies of them."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

Change = Callable[[Image.Image], Image.Image]


def scene(seed: int, size: int = 64) -> Image.Image:
    """An RGB picture whose amplitudes fall as 1/f; another seed is another picture."""
    generator = np.random.default_rng(seed)
    across = np.fft.fftfreq(2 * size)
    fall = 1 / np.maximum(np.hypot(across[:, None], across), 1 / (2 * size))
    # Cut from twice the size: a spectrum alone would make the opposite edges meet.
    waves = np.fft.fft2(generator.standard_normal((3, 2 * size, 2 * size))) * fall
    grey = np.fft.ifft2(waves).real[:, :size, :size]
    grey += 1.5 * grey[:1]
    grey = (grey - grey.mean()) / grey.std()
    return Image.fromarray(np.clip(128 + 45 * grey, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def thumb(image: Image.Image) -> np.ndarray:
    """uint8 [32, 32], grey."""
    return np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR).convert("L"))


def thumbs(images: list[Image.Image]) -> np.ndarray:
    return np.stack([thumb(image) for image in images])


def as_jpeg(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        target = io.BytesIO()
        image.save(target, "JPEG", quality=quality)
        return Image.open(target).convert("RGB")

    return change


def moved(angle: float = 0, zoom: float = 1, shift: tuple[float, float] = (0, 0)) -> Change:
    """Turned by an angle in degrees, magnified and shifted (as shares of the size): a second photograph."""

    def change(image: Image.Image) -> Image.Image:
        size = image.width
        offset = (shift[0] * size, shift[1] * size)
        turned = image.rotate(angle, Image.Resampling.BICUBIC, translate=offset)
        edge = (1 - 1 / zoom) / 2 * size
        return turned.resize(image.size, Image.Resampling.BICUBIC, (edge, edge, size - edge, size - edge))

    return change


COPIES: dict[str, Change] = {
    "jpeg 75": as_jpeg(75),
    "jpeg 40": as_jpeg(40),
    "smaller": lambda image: image.resize((48, 48), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.2),
    "grey": lambda image: image.convert("L").convert("RGB"),
}
TURNED: dict[str, Image.Transpose] = {
    "flipped left-right": Image.Transpose.FLIP_LEFT_RIGHT,
    "flipped top-bottom": Image.Transpose.FLIP_TOP_BOTTOM,
    "turned by 180°": Image.Transpose.ROTATE_180,
    "transposed": Image.Transpose.TRANSPOSE,
    # Pillow turns against the clock.
    "turned by 90°": Image.Transpose.ROTATE_270,
    "turned by 270°": Image.Transpose.ROTATE_90,
    "transversed": Image.Transpose.TRANSVERSE,
}
