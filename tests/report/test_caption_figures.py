"""Figures of captions: every text in its place, histograms that hold every caption, one scale for all words."""

import numpy as np
import pytest

from finesight.report import caption_figures as draw
from finesight.report.caption_figures import LINES, MOST_WORDS, Card

IMAGE = np.full((8, 8, 3), 120, np.uint8)


def texts(figure: object) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]  # type: ignore[attr-defined]


def test_cards_hold_both_texts_and_cut_what_is_too_long() -> None:
    figure = draw.cards(
        [Card(IMAGE, "costs $5 and $6", "", "a: CIDEr 0.1"), Card(IMAGE, "word " * 400, "two\x07lines", "b")]
    )
    found = texts(figure)
    assert found[:3] == ["a: CIDEr 0.1", r"Reference: costs \$5 and \$6", "Written: (nothing)"]
    assert sum(text.startswith(("word", "Reference: word")) for text in found) == LINES
    assert found[-2].endswith("…")
    assert found[-1] == "Written: two lines"
    assert "no image" in texts(draw.cards([]))


def test_lengths_count_every_caption() -> None:
    figure = draw.lengths([1, 5, 5, 200], [0, 0, 3])
    counts = [patch.get_data().values.sum() for patch in figure.axes[0].patches if patch.get_fill()]
    assert counts == [4, 3]
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["references, median 5 words", "written captions, median 0 words"]


@pytest.mark.parametrize("count", [0, 1, MOST_WORDS + 9])
def test_attention_shows_each_word_on_one_scale(count: int) -> None:
    generator = np.random.default_rng(0)
    words = [(f"word{number}", generator.random((3, 3)) / 9) for number in range(count)]
    figure = draw.attention(IMAGE, words)
    titles = [axes.get_title("center") for axes in figure.axes]
    assert [title for title in titles if title.startswith("word")] == [name for name, _ in words[:MOST_WORDS]]
    laid = [image for axes in figure.axes[1:] for image in axes.get_images() if image.get_alpha()]
    assert len({image.get_clim() for image in laid}) <= 1
    if count:
        shown = np.stack([seen for _, seen in words[:MOST_WORDS]])
        assert laid[0].get_clim() == (shown.min(), shown.max())
