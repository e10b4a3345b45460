"""Names in figures: short enough, still told apart, never read as formulas."""

from finesight.report import style

LEAVES = ["Tomato___Bacterial_spot", "Tomato___Tomato_Yellow_Leaf_Curl_Virus", "Tomato___healthy"]


def test_names_that_fit_stay_whole() -> None:
    assert style.shorten(LEAVES, 40) == LEAVES


def test_the_shared_beginning_goes_first_and_then_the_middle() -> None:
    assert style.shorten(LEAVES, 30) == ["…Bacterial_spot", "…Tomato_Yellow_Leaf_Curl_Virus", "…healthy"]
    assert style.shorten(LEAVES, 22) == ["…Bacterial_spot", "…Tomato_Ye…_Curl_Virus", "…healthy"]


def test_a_shared_beginning_inside_a_word_is_kept() -> None:
    assert style.shorten(["blackbird of the north", "blackberry"], 12) == ["black… north", "blackberry"]


def test_one_name_that_begins_another_is_kept() -> None:
    short = style.shorten(["leaf mould", "leaf mould of the second kind"], 16)
    assert short == ["leaf mould", "leaf mo…ond kind"]


def test_equal_names_and_no_names_are_no_endless_loop() -> None:
    assert style.shorten([], 8) == []
    assert style.shorten(["the same long name"] * 2, 8) == ["the…name"] * 2


def test_formulas_and_control_characters_are_defused() -> None:
    assert style.shorten(["$\\bad$", "two\nlines"], 20) == [r"\$\bad\$", "two lines"]
