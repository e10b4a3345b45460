"""Batches of images and token rows in which captions of similar length stand together."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finesight.data import draws as drawing
from finesight.data.batches import ORDER, Batch, Batches
from finesight.data.transforms import AugmentConfig

CHUNK = 32
"""Batches whose captions are sorted together; more would make an epoch less random, fewer pad more."""


class CaptionBatches(Batches):
    """`Batches` with captions: each batch holds `tokens`, as wide as its longest caption, and `length`.

    `captions` are token rows, `counts` how many of them each sample has (one if not given), those of a sample in a row.
    `tokens` is int64 [B, L], zero behind each caption; `length` int64 [B]; `mean_length` float32 [B], of the whole
    batch that a sample is in, whatever share of it a process or a micro-batch holds. With `bucketed` the order is
    a function of (seed, epoch) that puts captions of similar length into one batch, and a sample with several shows
    one of them, drawn by (seed, epoch, id); else the order is that of `ids`, `tokens` is the first, and where any
    has several a batch holds all: `references` int64 [B, R, L] and `reference_length` int64 [B, R], 0 where there is
    no further one.
    """

    def __init__(
        self,
        ids: Sequence[str],
        columns: dict[str, Tensor],
        captions: Sequence[Sequence[int]],
        *,
        bucketed: bool,
        batch_size: int,
        counts: Sequence[int] | None = None,
        seed: int = 0,
        augment: AugmentConfig | None = None,
        size: int | None = None,
        workers: int = 0,
    ) -> None:
        super().__init__(ids, columns, batch_size=batch_size, seed=seed, augment=augment, size=size, workers=workers)
        self.bucketed = bucketed
        self.counts = np.array([1] * len(ids) if counts is None else counts, np.int64)
        self.starts = np.cumsum(self.counts) - self.counts
        self.lengths = np.array([len(row) for row in captions], np.int64)
        self.tokens = torch.zeros(len(captions), max(self.lengths, default=0), dtype=torch.int32)
        for row, caption in enumerate(captions):
            self.tokens[row, : len(caption)] = torch.tensor(caption, dtype=torch.int32)
        self._shown = self.starts
        self._mean = np.ones(len(ids), np.float32)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Row of each position of the epoch. [samples]"""
        rows = np.arange(len(self.ids))
        if self.bucketed:
            self._shown = self.starts + self._drawn(epoch)
            generator = np.random.default_rng([self.seed, epoch, ORDER, 3])
            rows = bucketed_rows(self.lengths[self._shown], self.batch_size, generator)
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            self._mean[part] = self.lengths[self._shown[part]].mean()
        return rows

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        """Which of its captions each sample shows in an epoch. [samples]"""
        if self.counts.max(initial=1) == 1:
            return np.zeros(len(self.ids), np.int64)
        chance = drawing.uniform(self.ids, 1, self.seed, epoch, ORDER, 4)[:, 0]
        return (chance * self.counts).astype(np.int64)

    def take(self, rows: NDArray[np.int64], draws: NDArray[np.float32] | None = None) -> Batch:
        """The samples `rows`, with no more padding than the longest of them needs."""
        batch = super().take(rows, draws)
        batch["tokens"], batch["length"] = self._rows(self._shown[rows])
        batch["mean_length"] = torch.from_numpy(self._mean[rows])
        if not self.bucketed and self.counts.max(initial=1) > 1:
            place = np.arange(self.counts[rows].max())
            known = place < self.counts[rows, None]
            tokens, length = self._rows((self.starts[rows, None] + np.where(known, place, 0)).ravel())
            batch["references"] = tokens.reshape(len(rows), len(place), -1)
            batch["reference_length"] = length.reshape(known.shape) * torch.from_numpy(known)
        return batch

    def _rows(self, captions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Tokens int64 [n, L] and lengths int64 [n] of rows of captions."""
        length = torch.from_numpy(self.lengths[captions])
        tokens = self.tokens.index_select(0, torch.from_numpy(captions))
        return tokens[:, : int(length.max())].long(), length


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
