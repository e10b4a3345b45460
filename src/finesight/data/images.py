"""Read and decode one image, by stated rules, whatever its file format.

The rules: EXIF rotation is applied; transparency is composited on black; palettes are looked up;
CMYK becomes RGB by Pillow's plain formula (colour profiles are ignored); of an animation the first
frame counts; 16-bit images become 8-bit by `DataConfig.sixteen_bit`. Refused, with the image named:
what cannot be decoded, is truncated, or has more than 178,956,970 pixels (decompression bombs).
"""

import io
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from PIL import Image

from finesight.data import archives, borders
from finesight.errors import DataError

SixteenBit = Literal["full", "minmax"]
Fit = Literal["squash", "crop", "pad", "border"]

MOST_PIXELS = 178_956_970
_COMMON = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp")
_RARE = (".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif")
EXTENSIONS = frozenset(_COMMON + _RARE)
# Named, so that a file's content can never reach a decoder that runs other programs (EPS).
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_REMEDY = "Replace or remove it, or leave out a few such images with --data.skip_bad N"


class BadImage(DataError):
    """An image cannot be read or decoded; the message names it."""


def is_image_name(name: str) -> bool:
    """Whether a file name has the extension of an image format that is read here."""
    return "." in name and name[name.rindex(".") :].lower() in EXTENSIONS


def zip_path(archive: str, member: str) -> str:
    """The `path` of an image inside a zip: `zip://MEMBER::/absolute/archive.zip`."""
    return f"zip://{member}::{archive}"


def split_zip_path(path: str | None) -> tuple[str, str] | None:
    """(archive, member) of a `zip://` path; None for a plain file."""
    if path is None or not path.startswith("zip://"):
        return None
    member, _, archive = path.removeprefix("zip://").rpartition("::")
    return archive, member


def read(entry: Mapping[str, Any]) -> bytes:
    """The encoded bytes of a `datasets.Image` entry `{"path", "bytes"}`. Raises `BadImage`."""
    if entry["bytes"] is not None:
        return entry["bytes"]
    path = entry["path"]
    place = split_zip_path(path)
    try:
        if place:
            return archives.read(*place)
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadImage(f"{path}: cannot be read: {error.strerror}. {_REMEDY}.") from None
    except DataError as error:
        raise BadImage(*error.problems) from None


def decode(data: bytes, name: str, sixteen_bit: SixteenBit = "full") -> np.ndarray:
    """Decode an image file: uint8 [H, W, 3], RGB. `name` is for the message of `BadImage`.

    `sixteen_bit`: "full" keeps the upper 8 of 16 bits; "minmax" stretches each image from its own
    minimum and maximum to 0..255 (colour PNGs of 16 bits from the upper 8 bits that Pillow reads).
    """
    return np.asarray(_decoded(data, name, sixteen_bit, None))


def decode_resized(
    entry: Mapping[str, Any], name: str, size: int, fit: Fit = "squash", sixteen_bit: SixteenBit = "full"
) -> np.ndarray:
    """Read, decode and make square: uint8 [3, size, size], RGB, bilinear with antialiasing.

    `fit`: "squash" stretches, "crop" takes the largest centred square, "pad" adds black borders,
    "border" cuts out the content of an endoscopy frame (`borders`). A square image of that size is
    copied unchanged, and a JPEG more than twice as large is decoded at a reduced scale (never below
    twice `size`); not so by "border", which finds the content on the full image. Raises `BadImage`.
    """
    whole = fit == "border"
    image = _decoded(read(entry), name, sixteen_bit, None if whole else 2 * size)
    if whole or image.size != (size, size):
        image = _square(image, size, fit)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _decoded(data: bytes, name: str, sixteen_bit: SixteenBit, enough: int | None) -> Image.Image:
    if not data:
        raise BadImage(f"{name}: the file is empty (0 bytes). {_REMEDY}.")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MOST_PIXELS:
                raise Image.DecompressionBombError(f"{pixels:,} pixels")
            if enough is not None:
                image.draft(None, (enough, enough))
            # 16-bit colour is cut to 8 bits while it is decoded; only the raw mode still tells.
            deep = any(";16" in str(tile.args) for tile in image.tile)
            image.load()
            return _upright(_rgb(image, sixteen_bit, deep, name), image)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(
            f"{name}: refused as a decompression bomb ({error}; at most {MOST_PIXELS:,} pixels). "
            "Scale it down first, or remove it."
        ) from None
    except Image.UnidentifiedImageError:
        raise BadImage(f"{name}: not an image in a format that is read ({', '.join(_FORMATS)}). {_REMEDY}.") from None
    except Exception as error:  # on damaged bytes Pillow's decoders raise nearly anything
        cause = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"{name}: cannot be decoded ({cause}). {_REMEDY}.") from None


def _upright(pixels: Image.Image, source: Image.Image) -> Image.Image:
    # Read after load(): the TIFF decoder has turned the image by then, and says so in its EXIF.
    try:
        turn = _TURNS.get(source.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF in a sound image: shown as stored, as viewers do
        return pixels
    return pixels if turn is None else pixels.transpose(turn)


def _rgb(image: Image.Image, sixteen_bit: SixteenBit, deep: bool, name: str) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep(np.asarray(image), image.mode, sixteen_bit, name)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    image = image.convert("RGB")
    if deep and sixteen_bit == "minmax":
        return _from_deep(np.asarray(image), image.mode, sixteen_bit, name)
    return image


def _from_deep(values: np.ndarray, mode: str, sixteen_bit: SixteenBit, name: str) -> Image.Image:
    if sixteen_bit == "minmax":
        low, high = float(values.min()), float(values.max())
        scaled = (values - low) * (255.0 / (high - low) if high > low else 0.0)
        values = np.rint(scaled).astype(np.uint8)
    elif mode == "F" or values.min() < 0 or values.max() > 65535:
        raise BadImage(
            f"{name}: pixel values {values.min()} to {values.max()} (mode {mode}) do not fit 16 bits. "
            "Give --data.sixteen_bit minmax, or convert the image."
        )
    else:
        values = (values >> 8).astype(np.uint8)
    return Image.fromarray(values).convert("RGB")


def _square(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    width, height = image.size
    if fit == "border":
        return borders.cropped(image, size)
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return image.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
    if fit == "pad":
        scale = size / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        square = Image.new("RGB", (size, size))
        resized = image.resize(inner, Image.Resampling.BILINEAR)
        square.paste(resized, ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return square
    return image.resize((size, size), Image.Resampling.BILINEAR)


def encode(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] or [H, W] as a lossless image file, to be read like any other."""
    values = np.asarray(pixels)
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3):
        raise BadImage(
            f"array of {values.dtype} {list(values.shape)}: not an image; give uint8 [H, W, 3] or [H, W] in 0..255."
        )
    target = io.BytesIO()
    Image.fromarray(values).save(target, "BMP")
    return target.getvalue()
