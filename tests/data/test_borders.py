import numpy as np
import pytest
from PIL import Image
from skimage.filters import threshold_otsu

from finesight.data import borders, images
from finesight.data.borders import content_square
from finesight.data.images import decode_resized
from finesight.errors import DataError
from tests.data.making import encoded, entry, pixels


def frame(height: int, width: int, centre: tuple[int, int], radii: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A noisy bright ellipse on nearly black; its box is the centre -+ the radii, inclusive."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 12, (height, width, 3), np.uint8)
    y, x = np.mgrid[:height, :width]
    inside = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1
    image[inside] = generator.integers(120, 200, (int(inside.sum()), 3), np.uint8)
    return image


def with_text(image: np.ndarray, top: int, left: int) -> np.ndarray:
    """White letters of 7 x 5 pixels, 2 apart, in four lines: brighter than anything in the ellipse."""
    image = image.copy()
    for row in range(4):
        for column in range(12):
            image[top + 9 * row : top + 9 * row + 7, left + 7 * column : left + 7 * column + 5] = 255
    return image


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_is_that_of_scikit_image(seed):
    generator = np.random.default_rng(seed)
    low, high = sorted(generator.integers(1, 255, 2))
    dark, bright = generator.normal(low, 9, (40, 50)), generator.normal(high, 30, (40, 50))
    grey = np.clip(np.where(generator.random((40, 50)) < 0.3, dark, bright), 0, 255).astype(np.uint8)
    assert borders.otsu(grey) == threshold_otsu(grey)


def test_the_threshold_by_hand():
    assert borders.otsu(np.full((3, 3), 77, np.uint8)) == 77
    assert borders.otsu(np.array([[10, 200]], np.uint8)) == 10  # the least of equally good ones
    # Three values: parting 0 from 100 and 200 gives 1/3 * 2/3 * 150² = 5000, parting 200 the same: the lesser wins.
    assert borders.otsu(np.array([[0, 100, 200]], np.uint8)) == 0
    assert borders.otsu(np.array([[0, 90, 200]], np.uint8)) == 90


def test_a_bright_ellipse_on_black_is_found_to_the_pixel():
    steps = borders.steps(frame(120, 200, (60, 110), (50, 70)))
    assert steps.bordered
    assert steps.box == (10, 40, 101, 141)
    assert steps.square == (10, 60, 101, 101)
    assert content_square(steps.original) == (10, 60, 101)
    assert steps.region.sum() == pytest.approx(np.pi * 50 * 70, rel=0.01)
    np.testing.assert_array_equal(steps.crop, steps.original[10:111, 60:161])
    assert steps.resized.shape == (96, 96, 3)
    assert 8 <= steps.threshold < 120


def test_text_in_a_corner_does_not_win():
    plain = frame(160, 260, (80, 170), (60, 80))
    lettered = with_text(plain, 4, 3)
    assert content_square(lettered) == content_square(plain) == (20, 110, 121)


def test_a_dark_lumen_does_not_split_the_region_and_diagonal_pixels_touch():
    image = frame(120, 120, (60, 60), (50, 50))
    image[40:80, 40:80] = 5
    assert content_square(image) == (10, 10, 101)
    steps = np.zeros((80, 80, 3), np.uint8)
    for place in range(40):  # a staircase of single pixels, joined only by their corners
        steps[20 + place, 20 + place] = 255
    assert content_square(steps) == (20, 20, 40)


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_one_grey_value_is_no_border(value):
    found = borders.steps(np.full((50, 80, 3), value, np.uint8))
    assert not found.bordered
    assert found.region.all()
    assert found.box == (0, 0, 50, 80)
    assert content_square(found.original) == (0, 15, 50)


def test_a_region_too_small_to_be_a_frame_is_no_border():
    def spot(side, size):
        image = np.zeros((size, size, 3), np.uint8)
        image[5 : 5 + side, 9 : 9 + side] = 200
        return content_square(image)

    assert spot(31, 200) == (0, 0, 200)
    assert spot(32, 200) == (5, 9, 32)
    assert spot(39, 400) == (0, 0, 400)  # wider than 32 pixels, narrower than a tenth
    assert spot(40, 400) == (5, 9, 40)
    assert content_square(pixels(0, 20, 24)) == (0, 2, 20)


def test_of_equally_large_regions_the_uppermost_counts():
    image = np.zeros((100, 100, 3), np.uint8)
    image[60:95, 5:40] = image[3:38, 50:85] = 255
    assert content_square(image) == (3, 50, 35)


def test_no_black_bleeds_into_the_edges():
    image = np.zeros((300, 300, 3), np.uint8)
    image[50:250, 50:250] = 180
    found = borders.steps(image, 48)
    assert (found.resized == 180).all()


def test_fit_border_is_the_same_from_a_file_of_any_size():
    image = with_text(frame(600, 900, (300, 520), (250, 300)), 4, 3)
    data = encoded(image, "JPEG", quality=95)
    whole = images.decode(data, "x")
    expected = borders.steps(whole, 64).resized.transpose(2, 0, 1)
    np.testing.assert_array_equal(decode_resized(entry(data), "x", 64, "border"), expected)
    # A reduced JPEG decoding, as the other fits use, would give other pixels.
    assert (decode_resized(entry(data), "x", 64, "crop") != expected).any()


def test_a_frame_that_already_has_the_size_is_cut_too():
    image = frame(64, 64, (32, 32), (20, 20))
    result = decode_resized(entry(encoded(image)), "x", 64, "border")
    cut = Image.fromarray(image[12:53, 12:53]).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(result, np.asarray(cut).transpose(2, 0, 1))


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_another_kind_of_array_is_refused(image):
    with pytest.raises(DataError, match=r"not a frame; give uint8 \[H, W, 3\]"):
        content_square(image)
