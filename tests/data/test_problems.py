import pytest

from finesight.data.problems import examples, refuse
from finesight.errors import DataError


def test_all_problems_are_one_error_and_none_is_none():
    refuse([])
    with pytest.raises(DataError) as caught:
        refuse([str(number) for number in range(20)])
    assert caught.value.problems == tuple(str(number) for number in range(20))
    with pytest.raises(DataError) as caught:
        refuse([str(number) for number in range(21)])
    assert caught.value.problems[-1] == "... and 1 more such problems."


def test_examples_stay_one_line():
    assert examples(["a", "b"]) == "'a', 'b'"
    assert examples(list("abcde")) == "'a', 'b', 'c' and 2 more"
    assert examples(["a\nb"]) == r"'a\nb'"
