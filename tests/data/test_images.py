import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from finesight.data import images
from finesight.data.images import BadImage, decode, decode_resized
from tests.data.making import encoded, entry, pixels


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand: Pillow writes no 16-bit colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"])
def test_lossless_formats_keep_every_pixel(form):
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(form, {})
    source = pixels(height=32, width=40)
    decoded = decode(encoded(source, form, **options), "x")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, source)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_like_pillow_does(orientation, form):
    image = Image.fromarray(pixels(height=24, width=16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    np.testing.assert_array_equal(decode(data, "x"), expected)
    if form == "PNG":  # and against the definition: 6 is stored a quarter turn to the left
        assert decode(data, "x").shape == ((24, 16, 3) if orientation < 5 else (16, 24, 3))
        if orientation == 6:
            np.testing.assert_array_equal(decode(data, "x"), np.rot90(np.asarray(image), -1))


def test_damaged_exif_does_not_cost_the_image():
    data = encoded(pixels(), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode(data, "x"), pixels())


def test_cmyk_jpeg_becomes_rgb():
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 0] = 255  # full cyan: no red, all green and blue
    data = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=95)
    colour = decode(data, "x").reshape(-1, 3).mean(0)
    assert colour[0] < 5
    assert colour[1] > 250
    assert colour[2] > 250


def test_palette_with_transparency_is_composited_on_black():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([200, 10, 20, 30, 210, 40, 50, 60, 220])
    data = encoded(image, transparency=bytes([255, 0, 128]))
    np.testing.assert_array_equal(decode(data, "x"), [[[200, 10, 20], [0, 0, 0], [25, 30, 110]]])


def test_alpha_is_composited_on_black():
    rgba = np.array([[[100, 200, 50, 255], [100, 200, 50, 0], [100, 200, 50, 51]]], np.uint8)
    np.testing.assert_array_equal(decode(encoded(rgba), "x"), [[[100, 200, 50], [0, 0, 0], [20, 40, 10]]])
    grey = np.array([[[100, 255], [100, 51]]], np.uint8)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey, "LA")), "x")[..., 0], [[100, 20]])


def test_rgb_png_with_a_transparent_colour():
    source = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    assert decode(encoded(source, transparency=(1, 2, 3)), "x").tolist() == [[[0, 0, 0], [4, 5, 6]]]


def test_16_bit_grey_png_by_both_rules():
    deep = np.array([[1000, 2000, 3000], [65535, 255, 256]], np.uint16)
    full = decode(encoded(deep), "x", "full")
    np.testing.assert_array_equal(full[..., 0], [[3, 7, 11], [255, 0, 1]])
    assert (full[..., 0] == full[..., 2]).all()
    narrow = np.array([[1000, 1500, 2000]], np.uint16)
    np.testing.assert_array_equal(decode(encoded(narrow), "x", "minmax")[..., 0], [[0, 128, 255]])
    flat = np.full((2, 2), 777, np.uint16)
    assert not decode(encoded(flat), "x", "minmax").any()


def test_16_bit_colour_png_by_both_rules():
    values = np.array([[[0x1234, 0x2000, 0x3000], [0x3000, 0x1234, 0x2000]]], ">u2")
    data = png(2, 1, 16, 2, b"\0" + values.tobytes())
    assert decode(data, "x", "full").tolist() == [[[0x12, 0x20, 0x30], [0x30, 0x12, 0x20]]]
    stretched = decode(data, "x", "minmax")
    assert stretched.min() == 0
    assert stretched.max() == 255
    eight = np.array([[[10, 20, 30]]], np.uint8)  # an 8-bit image is never stretched
    np.testing.assert_array_equal(decode(encoded(eight), "x", "minmax"), eight)


def test_16_bit_tiff_and_float_tiff():
    deep = np.array([[256, 512]], np.uint16)
    assert decode(encoded(deep, "TIFF"), "x")[..., 0].tolist() == [[1, 2]]
    wide = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    with pytest.raises(BadImage, match=r"x: pixel values 0\.0 to 1\.0 .*--data.sixteen_bit minmax"):
        decode(encoded(wide, "TIFF"), "x")
    assert decode(encoded(wide, "TIFF"), "x", "minmax")[..., 0].tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(form):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=50, **options)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3
    np.testing.assert_array_equal(decode(data, "x"), np.asarray(frames[0]))


def test_one_bit_and_grey_images():
    assert decode(encoded(Image.new("1", (3, 2), 1)), "x").tolist() == [[[255] * 3] * 3] * 2
    assert decode(encoded(Image.new("L", (1, 1), 77)), "x").tolist() == [[[77] * 3]]


def test_400_megapixels_are_refused_without_decoding():
    data = png(20_000, 20_000, 8, 2, b"\0" * 100)
    start = time.perf_counter()
    with pytest.raises(BadImage, match=r"big\.png: refused as a decompression bomb .*178,956,970"):
        decode(data, "big.png")
    assert time.perf_counter() - start < 0.5


def test_bombs_are_refused_even_where_pillows_own_limit_was_switched_off(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(png(20_000, 20_000, 8, 2, b"\0" * 100), "big.png")


FAULTS = {
    "empty": (b"", "the file is empty"),
    "text": (b"this is no image, though its name ends in .jpg", "not an image in a format"),
    "truncated jpeg": (encoded(pixels(height=64, width=64), "JPEG")[:-200], "cannot be decoded .*truncated"),
    "truncated png": (encoded(pixels(height=64, width=64))[:-2000], "cannot be decoded"),
    "header only": (encoded(pixels(), "JPEG")[:30], "cannot be decoded|not an image"),
    "wrong png checksum": (encoded(pixels())[:60] + b"!" + encoded(pixels())[61:], "cannot be decoded"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a format"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_unreadable_images_are_named_with_cause_and_remedy(fault):
    data, cause = FAULTS[fault]
    with pytest.raises(BadImage, match=f"cat/1.jpg: .*({cause}).*--data.skip_bad") as caught:
        decode_resized(entry(data), "cat/1.jpg", 8)
    assert len(caught.value.problems) == 1


def test_corrupt_jpeg_data_never_escapes_as_another_error():
    data = bytearray(encoded(pixels(height=64, width=64), "JPEG"))
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        broken = bytearray(data)
        for place in generator.integers(2, len(data), 6):
            broken[place] = generator.integers(256)
        try:
            assert decode(bytes(broken), "x").dtype == np.uint8
        except BadImage:
            refused += 1
    assert refused > 20


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadImage, match=r"nowhere\.png: cannot be read: No such file"):
        images.read({"bytes": None, "path": str(tmp_path / "nowhere.png")})


def test_resized_to_its_own_size_is_a_copy():
    source = pixels(height=9, width=9)
    result = decode_resized(entry(encoded(source)), "x", 9)
    assert result.shape == (3, 9, 9)
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, source.transpose(2, 0, 1))


def test_squash_is_antialiased_bilinear():
    # Halving a checkerboard of 0 and 255 must give grey; nearest or plain bilinear sampling would not.
    board = (np.indices((16, 32)).sum(0) % 2 * 255).astype(np.uint8)
    result = decode_resized(entry(encoded(Image.fromarray(board))), "x", 4)
    assert abs(result.astype(int) - 128).max() < 16


def test_crop_takes_the_centre_and_pad_keeps_everything():
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, :4], wide[:, 4:8], wide[:, 8:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    data = entry(encoded(wide))
    crop = decode_resized(data, "x", 4, "crop")
    np.testing.assert_array_equal(crop, np.broadcast_to(np.array([0, 255, 0])[:, None, None], (3, 4, 4)))
    pad = decode_resized(data, "x", 12, "pad")
    np.testing.assert_array_equal(pad[:, 4:8], wide.transpose(2, 0, 1))
    assert not pad[:, :4].any()
    assert not pad[:, 8:].any()
    tall = decode_resized(entry(encoded(wide.transpose(1, 0, 2))), "x", 12, "pad")
    np.testing.assert_array_equal(tall, pad.transpose(0, 2, 1))


def test_large_jpegs_are_decoded_at_reduced_scale_with_nearly_the_same_result():
    # A photograph-like image: smooth, with some noise.
    grid = np.linspace(0, 1, 800)
    smooth = np.stack([np.outer(grid, grid), np.outer(1 - grid, grid), np.outer(grid, 1 - grid)], -1) * 255
    data = encoded(
        np.clip(smooth + np.random.default_rng(0).normal(0, 8, smooth.shape), 0, 255).astype(np.uint8), "JPEG"
    )
    fast = decode_resized(entry(data), "x", 100)
    slow = Image.fromarray(decode(data, "x")).resize((100, 100), Image.Resampling.BILINEAR)
    difference = np.abs(fast.astype(int) - np.asarray(slow).transpose(2, 0, 1).astype(int))
    assert difference.mean() < 1
    assert difference.max() <= 8


def test_zip_paths_go_both_ways():
    path = images.zip_path("/data/a.zip", "train/cat (1)::x.jpg")
    assert path == "zip://train/cat (1)::x.jpg::/data/a.zip"
    assert images.split_zip_path(path) == ("/data/a.zip", "train/cat (1)::x.jpg")
    assert images.split_zip_path("/data/a.zip") is None
