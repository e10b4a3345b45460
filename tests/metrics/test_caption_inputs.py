"""What caption scores are given: all that is wrong is said at once, and what is right in another form is taken."""

from typing import Any

import numpy as np
import pytest

from finesight.errors import DataError
from finesight.metrics.bootstrap import total
from finesight.metrics.captions import CaptionStatistics, score


def test_all_problems_are_said_at_once() -> None:
    candidates: dict[Any, Any] = {"a": None, "b": "x", "c": "x", "d": "x", "e": ["x"], "f": "x", "g": "x"}
    references: dict[Any, Any] = {
        "a": "a dog",
        "b": [],
        "c": ["x", None],
        "e": None,
        "f": [" "],
        "g": [["x"]],
        "h": ["y"],
    }
    with pytest.raises(DataError) as caught:
        score(candidates, references, groups={"a": 1})
    said = caught.value.problems
    for start in (
        "1 id with a candidate but no references; the first is 'd'",
        "1 id with references but no candidate; the first is 'h'",
        "6 ids with references but no group; the first is 'b'",
        "2 samples have no text for a caption; the first is 'a': None",
        "1 sample has one text where a list of references is needed; the first is 'a': 'a dog'",
        "1 sample has an empty list of references; the first is 'b'",
        "2 samples have something that is no text among its references; the first is 'c': None",
        "1 sample has no list of references; the first is 'e': None",
        "1 sample has a blank text among its references; the first is 'f': [' ']",
    ):
        assert sum(problem.startswith(start) for problem in said) == 1, (start, said)
    assert len(said) == 9


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ({}, {}, "There is no caption to score"),
        ({1: "a"}, {"1": ["a"]}, "numbers for ids and the other text"),
        (["a"], [["a"]], "candidates are of type list: a mapping of id to caption is needed"),
    ],
)
def test_what_cannot_be_scored_is_refused(candidates: Any, references: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(candidates, references)


def test_tables_refuse_other_numbers_of_captions_and_references() -> None:
    with pytest.raises(DataError, match="2 captions for 1 lists of references"):
        CaptionStatistics(meteor=False).statistics(["a", "b"], [["a"]])


def test_references_may_be_arrays_and_tuples() -> None:
    lists: list[Any] = [np.array(["a dog", "a cat"], object), ("a bird",)]
    table = CaptionStatistics().statistics(["a dog", "a bird"], lists)
    assert table.shape == (2, 20)
    assert CaptionStatistics().reduce(total(table))["rouge_l"] == 1
