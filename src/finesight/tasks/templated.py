"""Captions made of templates and words: all that a class may be called, drawn per epoch and sample."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finesight.config import nearest
from finesight.data import draws
from finesight.data.batches import Batches
from finesight.errors import ConfigError
from finesight.models.clip_config import TEMPLATE, template_problem
from finesight.models.prompts import filled

TEXT = 11  # the stream of random numbers of this file


def template_problems(option: str, templates: Sequence[str]) -> list[str]:
    """What is wrong with the templates of an option, in words."""
    if not templates:
        return [f"{option}: none given; give at least one, such as {TEMPLATE!r}"]
    return [f"{option}: {problem}" for template in templates if (problem := template_problem(template))]


class Texts:
    """Every text that training may show, and which of them are true of which class.

    `every` are the texts, T of them, no two the same; `true` is bool [C, T]: text t may describe class c. A word that
    several classes share ("animal") makes texts that are true of all of them.
    """

    def __init__(self, classes: Sequence[str], templates: Sequence[str], words: Mapping[str, Sequence[str]]) -> None:
        """Raises `ConfigError` for words of a class that the data does not have."""
        unknown = [name for name in words if name not in classes]
        if unknown:
            raise ConfigError(
                *(f"words: the data has no class {name!r}{nearest(name, list(classes))}." for name in unknown),
                f"Its classes: {', '.join(classes)}.",
            )
        places: dict[str, int] = {}
        self._rows: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for name in classes:
            rows = [
                np.array([places.setdefault(filled(template, word), len(places)) for template in templates])
                for word in dict.fromkeys([name, *words.get(name, ())])
            ]
            self._rows.append((rows[0], np.concatenate(rows[1:] or rows)))
        self.every = list(places)
        self.true = np.zeros((len(classes), len(places)), bool)
        for label, of_class in enumerate(self._rows):
            self.true[label, np.concatenate(of_class)] = True

    def draw(self, ids: Sequence[str], labels: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
        """A text for each sample, int64 [N]: half of the time by the name of its class, else by another word for it.

        A function of (seed, epoch, id).
        """
        numbers = draws.uniform(ids, 2, seed, epoch, TEXT)
        chosen = np.empty(len(ids), np.int64)
        for label in np.unique(labels):
            mine = np.flatnonzero(labels == label)
            for own, rows in zip((True, False), self._rows[label], strict=True):
                part = mine[(numbers[mine, 0] < 0.5) == own]
                chosen[part] = rows[(numbers[part, 1] * len(rows)).astype(np.int64)]
        return chosen


class TextBatches(Batches):
    """`Batches` in which `text`, int64 [B], is the row in `Texts.every` that the sample has in this epoch."""

    def __init__(self, ids: Sequence[str], columns: dict[str, Any], texts: Texts, **options: Any) -> None:
        super().__init__(ids, columns, **options)
        self.texts = texts

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Row of each position of the epoch. [samples]"""
        labels = self.columns["label"].numpy()
        self.columns["text"] = torch.from_numpy(self.texts.draw(self.ids, labels, self.seed, epoch))
        return super().order(epoch)
