"""Checks of what caption scores are given: one text per sample, and a list of texts to compare it with."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from finesight.errors import DataError


def in_order(
    candidates: Mapping[Hashable, str],
    references: Mapping[Hashable, Sequence[str]],
    groups: Mapping[Hashable, Any] | None,
) -> tuple[list[str], list[Sequence[str]], list[Any] | None]:
    """Captions, lists of references and groups, in the order of `references`.

    Raises `DataError` with all that is wrong: no mapping, ids that one side lacks, and all of `check_texts`.
    """
    problems = [
        f"The {name} are of type {type(given).__name__}: a mapping of id to {what} is needed, such as {example}."
        for name, given, what, example in (
            ("candidates", candidates, "caption", "{'image 1': 'a dog'}"),
            ("references", references, "list of captions", "{'image 1': ['a dog', 'a brown dog']}"),
            ("groups", {} if groups is None else groups, "group", "{'image 1': 'patient 7'}"),
        )
        if not isinstance(given, Mapping)
    ]
    if problems:
        raise DataError(*problems)
    sides = [
        ("with a candidate but no references", [name for name in candidates if name not in references]),
        ("with references but no candidate", [name for name in references if name not in candidates]),
    ]
    if groups is not None:
        sides.append(("with references but no group", [name for name in references if name not in groups]))
    problems = [
        f"{_some(len(names), 'id')} {what}; the first is {names[0]!r}. Score the same samples on both sides, and look "
        "whether one side has numbers for ids and the other text."
        for what, names in sides
        if names
    ]
    both = [name for name in references if name in candidates]
    captions, lists = [candidates[name] for name in both], [references[name] for name in both]
    if both or not problems:
        problems += text_problems(both, captions, lists)
    if problems:
        raise DataError(*problems)
    return captions, lists, None if groups is None else [groups[name] for name in both]


def check_texts(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raises `DataError` with all of `text_problems`, rows for ids, or if the numbers of both differ."""
    if len(captions) != len(references):
        raise DataError(
            f"{len(captions)} captions for {len(references)} lists of references: each sample needs one of both. "
            "Take both from the same split, in the same order."
        )
    problems = text_problems(range(len(captions)), captions, references)
    if problems:
        raise DataError(*problems)


def text_problems(names: Iterable[Any], captions: Sequence[Any], references: Sequence[Any]) -> list[str]:
    """What is wrong with captions and lists of references of the samples `names`, a sentence or more each.

    An empty caption is nothing wrong: a model may write nothing, and that scores 0.
    """
    found: dict[str, list[tuple[Any, str]]] = {}
    for name, caption, texts in zip(names, captions, references, strict=True):
        for what, detail in _faults(caption, texts):
            found.setdefault(what, []).append((name, detail))
    if not len(captions):
        return ["There is no caption to score. Check that the split is not empty."]
    return [
        f"{_some(len(samples), 'sample')} {'has' if len(samples) == 1 else 'have'} {what}; the first is "
        f"{samples[0][0]!r}: {samples[0][1]}."
        for what, samples in found.items()
    ]


def _faults(caption: Any, references: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(caption, str):
        yield (
            "no text for a caption",
            f"{_short(caption)}. A caption is one text, no list; what a model did not write is the empty text ''",
        )
    if isinstance(references, str):
        yield (
            "one text where a list of references is needed",
            f"{_short(references)}. Its letters would be the references: put it into a list, ['a dog'] for 'a dog'",
        )
    elif not isinstance(references, Sequence | np.ndarray):
        yield "no list of references", f"{_short(references)}. Give a list of texts, or leave the sample out"
    elif len(references) == 0:
        yield "an empty list of references", "nothing can be compared with it. Leave the sample out on both sides"
    else:
        strange = [text for text in references if not isinstance(text, str)]
        if strange:
            yield (
                "something that is no text among its references",
                f"{_short(strange[0])}. References are a flat list of texts; leave missing ones out",
            )
        if any(isinstance(text, str) and not text.strip() for text in references):
            yield "a blank text among its references", f"{_short(list(references))}. Leave blank ones out"


def _some(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
