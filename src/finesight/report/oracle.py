"""The epoch that was kept, beside the one that the target's labels would have picked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Oracle:
    """Epochs, and target test accuracies as shares in [0, 1]; never used in training or selection."""

    kept: int
    kept_accuracy: float
    best: int
    best_accuracy: float

    @property
    def gap(self) -> float:
        """What choosing without target labels cost, as a share."""
        return self.best_accuracy - self.kept_accuracy


def oracle(history: Sequence[Mapping[str, Any]], kept: int | None) -> Oracle | None:
    """None where no epoch was kept or the target test accuracy was not recorded for it.

    Of equally good epochs the oracle picks the kept one, else the first.
    """
    found = {row["epoch"]: (row.get("validation") or {}).get("oracle_accuracy") for row in history}
    known = {epoch: float(value) for epoch, value in found.items() if value is not None}
    if kept is None or kept not in known:
        return None
    best = max(known, key=lambda epoch: (known[epoch], epoch == kept, -epoch))
    return Oracle(kept, known[kept], best, known[best])


def kept_epoch(history: Sequence[Mapping[str, Any]]) -> int | None:
    """The epoch whose weights were kept: the last that was the best so far."""
    return max((row["epoch"] for row in history if row.get("best")), default=None)
