"""Batches of images and token rows in which captions of similar length stand together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finesight.data.batches import ORDER, Batch, Batches

CHUNK = 32
"""Batches whose captions are sorted together; more would make an epoch less random, fewer pad more."""


class CaptionBatches(Batches):
    """`Batches` with captions: each batch holds `tokens`, as wide as its longest caption, and `length`.

    `captions` are the token rows of the samples. `tokens` is int64 [B, L], zero behind each caption; `length` int64
    [B]; `mean_length` float32 [B], of the whole batch that a sample is in, whatever share of it a process or a
    micro-batch holds. With `bucketed` the order is a function of (seed, epoch) that puts captions of similar
    length into one batch; else it is that of `ids`.
    """

    def __init__(
        self, ids: Sequence[str], columns: dict[str, Tensor], captions: Sequence[Sequence[int]], *, bucketed: bool,
        **options: Any,
    ) -> None:  # fmt: skip
        lengths = np.array([len(row) for row in captions], np.int64)
        tokens = np.zeros((len(captions), max(lengths, default=0)), np.int32)
        for row, caption in enumerate(captions):
            tokens[row, : len(caption)] = caption
        columns = {**columns, "tokens": torch.from_numpy(tokens), "length": torch.from_numpy(lengths)}
        super().__init__(ids, columns, **options)
        self.bucketed, self.lengths = bucketed, lengths
        self._mean = np.ones(len(ids), np.float32)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Row of each position of the epoch. [samples]"""
        rows = np.arange(len(self.ids))
        if self.bucketed:
            rows = bucketed_rows(self.lengths, self.batch_size, np.random.default_rng([self.seed, epoch, ORDER, 3]))
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            self._mean[part] = self.lengths[part].mean()
        return rows

    def take(self, rows: NDArray[np.int64], draws: NDArray[np.float32] | None = None) -> Batch:
        """The samples `rows`, with no more padding than the longest of them needs."""
        batch = super().take(rows, draws)
        batch["tokens"] = batch["tokens"][:, : int(batch["length"].max())].long()
        batch["mean_length"] = torch.from_numpy(self._mean[rows])
        return batch


def bucketed_rows(lengths: NDArray[np.int64], size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """A random order of all rows in which batches of `size` hold similar lengths; only the last may be smaller."""
    rows = generator.permutation(len(lengths))
    chunks = [rows[start : start + CHUNK * size] for start in range(0, len(rows), CHUNK * size)]
    ordered = np.concatenate([chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in chunks])
    # What does not fill a batch is taken from anywhere, so that it is not always the longest caption.
    whole = len(rows) // size * size
    left = np.sort(generator.choice(len(rows), len(rows) - whole, replace=False))
    kept = np.delete(ordered, left).reshape(-1, size)
    return np.concatenate([kept[generator.permutation(len(kept))].reshape(-1), ordered[left]])
