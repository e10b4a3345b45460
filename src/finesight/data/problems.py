"""Report everything that is wrong with a source at once."""

from collections.abc import Sequence

from finesight.errors import DataError

SHOWN = 20


def refuse(problems: Sequence[str]) -> None:
    """Raise one `DataError` with the first 20 problems and a count of the others; no problems, no error."""
    if len(problems) > SHOWN:
        raise DataError(*problems[:SHOWN], f"... and {len(problems) - SHOWN} more such problems.")
    if problems:
        raise DataError(*problems)


def examples(values: Sequence[str], shown: int = 3) -> str:
    """`'a', 'b', 'c' and 5 more`: a list that stays one line."""
    text = ", ".join(repr(value) for value in values[:shown])
    return f"{text} and {len(values) - shown} more" if len(values) > shown else text
