"""Small image folders with something to learn: squares, discs and stripes in random colours and places."""

from pathlib import Path

import numpy as np
from PIL import Image

SHAPES = ("disc", "square", "stripes")


def picture(shape: str, generator: np.random.Generator, size: int = 32) -> np.ndarray:
    """uint8 [size, size, 3]: a noisy background with one shape."""
    image = generator.integers(0, 90, (size, size, 3))
    y, x = np.mgrid[:size, :size]
    centre, radius = generator.integers(size // 3, size - size // 3, 2), size // 4
    if shape == "disc":
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    elif shape == "square":
        inside = (abs(y - centre[0]) < radius) & (abs(x - centre[1]) < radius)
    else:
        inside = (y + int(centre[0])) % 8 < 3
    image[inside] = generator.integers(140, 256, 3)
    return image.astype(np.uint8)


def folder(root: Path, each: int = 20, splits: tuple[str, ...] = ("",), seed: int = 0, size: int = 32) -> Path:
    """root/[split/]shape/NNN.png with `each` images per class and split."""
    generator = np.random.default_rng(seed)
    for split in splits:
        for shape in SHAPES:
            target = root / split / shape
            target.mkdir(parents=True)
            for number in range(each):
                Image.fromarray(picture(shape, generator, size)).save(target / f"{number:03d}.png")
    return root
