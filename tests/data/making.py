"""Small data sets made on the spot."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def pixels(seed: int = 0, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    target = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(target, form, **options)
    return target.getvalue()


def entry(data: bytes) -> dict[str, Any]:
    return {"bytes": data, "path": None}


def make_folder(root: Path, names: list[str]) -> Path:
    """One small PNG per name, each different."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels(seed, 4, 4)))
    return root


def make_zip(path: Path, folder: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                archive.write(file, f"{prefix}{file.relative_to(folder).as_posix()}")
    return path


def class_names(count: int = 10, classes: tuple[str, ...] = ("cat", "dog"), prefix: str = "") -> list[str]:
    return [f"{prefix}{name}/{number:02d}.png" for name in classes for number in range(count)]
