"""The confusion matrix: rates are of the row, cells hold their numbers, many classes a colour bar."""

import numpy as np
import pytest

from finesight.report import figures


def written(axes: object) -> dict[tuple[float, float], str]:
    """{(row, column): text} of the cells."""
    return {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}  # type: ignore[attr-defined]


def test_rates_are_shares_of_the_reference_class() -> None:
    counts, rates = figures.confusion_matrix([[3, 1], [0, 1000]], ["cat", "dog"]).axes
    assert written(counts) == {(0, 0): "3", (0, 1): "1", (1, 1): "1,000"}
    assert written(rates) == {(0, 0): "75", (0, 1): "25", (1, 1): "100"}


def test_a_rate_below_half_a_percent_is_not_shown_as_zero() -> None:
    rates = figures.confusion_matrix([[999, 1], [0, 1]], ["cat", "dog"]).axes[1]
    assert written(rates)[0, 1] == "<1"


@pytest.mark.parametrize(("count", "bars"), [(20, 0), (21, 2)])
def test_beyond_twenty_classes_a_colour_bar_replaces_the_numbers(count: int, bars: int) -> None:
    drawn = figures.confusion_matrix(np.eye(count), [f"class {k}" for k in range(count)])
    assert len(drawn.axes) == 2 + bars
    assert bool(drawn.axes[0].texts) == (bars == 0)


def test_a_matrix_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        figures.confusion_matrix(np.eye(3), ["cat", "dog"])


def test_patch_heatmap_draws_a_line_per_row_of_patches_and_centres_zero() -> None:
    drawn = figures.patch_position_heatmap(np.linspace(-1, 3, 6400).reshape(100, 64))
    axes, bar = drawn.axes
    assert [line.get_ydata()[0] for line in axes.lines] == [9.5 + 10 * row for row in range(9)]
    assert axes.get_images()[0].get_clim() == (-3, 3)
    assert bar.get_ylabel() == "value (no unit)"
