"""Batches of one split: what is in them depends on (seed, epoch, position) and on nothing else.

Not on the number of loader workers, not on the process, not on where a resumed epoch starts. That
is why 0 and 2 workers, one and two processes, and a run that was killed give the same numbers.
"""

import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finesight.data.transforms import AugmentConfig
from finesight.errors import FinesightError

Batch = dict[str, Any]
ORDER = 1  # the stream of random numbers of this file: no two uses share draws


class Batches:
    """Samples of one split, held as one tensor per column, handed out in batches.

    `columns` maps names to tensors whose first axis is the sample (`image` uint8 [N, 3, H, W],
    `label` int64 [N], `features` float32 [N, D], ...). A batch is a dict of the same names, plus
    `id` (list of str) and `items` (samples that count; 0 for the filler of an idle process). Training
    images are augmented as they are held, then resized to `size`.

    `second` are the columns of another set without pairing (the images of a target domain): a training
    batch then also holds as many of its rows, in a random order of their own that runs on from epoch to
    epoch. Every training batch has `progress` float32 [B], the epochs done so far.
    """

    def __init__(
        self,
        ids: Sequence[str],
        columns: dict[str, Tensor],
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        balance: int | None = None,
        augment: AugmentConfig | None = None,
        size: int | None = None,
        workers: int = 0,
        second: dict[str, Tensor] | None = None,
    ) -> None:
        self.second = second
        self.ids, self.columns = ids, columns
        self.batch_size, self.seed, self.shuffle, self.workers = batch_size, seed, shuffle, workers
        self.balance, self.size = balance, size
        self.samples = len(ids) if balance is None else balance * len(torch.unique(columns["label"]))
        """Samples handed out in one epoch."""
        self.augment = augment if augment is not None and augment.active else None

    def __len__(self) -> int:
        """Batches in one epoch."""
        return -(-self.samples // self.batch_size)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Row of each position of the epoch, before shuffling. [samples]"""
        if self.balance is None:
            return np.arange(len(self.ids))
        labels = self.columns["label"].numpy()
        return balanced_rows(labels, self.balance, np.random.default_rng([self.seed, epoch, ORDER, 1]))

    def epoch(self, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of an epoch; of each batch the share of this process."""
        rows = self.order(epoch)
        positions = np.arange(len(rows))
        if self.shuffle:
            positions = np.random.default_rng([self.seed, epoch, ORDER]).permutation(len(rows))
        plan = _Plan(self, epoch, rows, positions, rank, world)
        if self.workers == 0:
            return (plan[number] for number in range(start, len(self)))
        loader = torch.utils.data.DataLoader(
            plan,
            batch_size=None,
            sampler=range(start, len(self)),
            num_workers=self.workers,
            # Without its own generator the loader draws its base seed from the global one.
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_the_parent,
        )
        return _until_a_worker_dies(loader)

    def take(self, rows: NDArray[np.int64], draws: NDArray[np.float32] | None = None) -> Batch:
        """The samples `rows`, augmented with one row of draws each where draws are given."""
        index = torch.from_numpy(rows)
        # index_select copies whole rows; plain indexing goes element by element (25 times slower here).
        batch: Batch = {name: column.index_select(0, index) for name, column in self.columns.items()}
        batch["id"] = [self.ids[row] for row in rows]
        batch["items"] = len(rows)
        if draws is not None and self.augment is not None:
            from finesight.data import transforms

            batch["image"] = transforms.augment(batch["image"], torch.from_numpy(draws), self.augment)
        if self.size is not None and "image" in batch and batch["image"].shape[-1] != self.size:
            from finesight.data import transforms

            batch["image"] = transforms.resize(batch["image"], self.size)
        return batch


class _Plan(torch.utils.data.Dataset[Batch]):
    """The batches of one epoch by number; what a loader worker receives."""

    def __init__(
        self,
        source: Batches,
        epoch: int,
        rows: NDArray[np.int64],
        positions: NDArray[np.int64],
        rank: int,
        world: int,
    ) -> None:
        self.source, self.epoch, self.rows, self.positions = source, epoch, rows, positions
        self.rank, self.world = rank, world
        self._draws: NDArray[np.float32] | None = None
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __getitem__(self, number: int) -> Batch:
        size = self.source.batch_size
        whole = self.positions[number * size : (number + 1) * size]
        share = whole[self.rank :: self.world]
        filler = len(share) == 0
        if filler:
            # A process with nothing to do still takes part in the step, with weight zero.
            share = whole[:1]
        batch = self.source.take(self.rows[share], self._draws_of(share))
        if self.source.second is not None:
            places = number * size + np.arange(len(whole))[self.rank :: self.world]
            batch |= self._of_second(places if len(places) else np.array([number * size]))
        batch["progress"] = torch.full((len(share),), self.epoch + number / len(self.source))
        if filler:
            batch["items"] = 0
        return batch

    def _of_second(self, places: NDArray[np.int64]) -> Batch:
        """The rows of the second set at these places of the epoch: a permutation of it follows upon another."""
        assert self.source.second is not None
        held = len(next(iter(self.source.second.values())))
        rounds, offsets = np.divmod(self.epoch * self.source.samples + places, held)
        rows = np.empty(len(places), np.int64)
        for turn in np.unique(rounds):
            if turn not in self._orders:
                generator = np.random.default_rng([self.source.seed, int(turn), ORDER, 2])
                self._orders = {turn: generator.permutation(held), **dict(list(self._orders.items())[:1])}
            rows[rounds == turn] = self._orders[turn][offsets[rounds == turn]]
        index = torch.from_numpy(rows)
        return {name: column.index_select(0, index) for name, column in self.source.second.items()}

    def _draws_of(self, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
        if self.source.augment is None:
            return None
        if self._draws is None:
            from finesight.data import transforms

            self._draws = transforms.random_table(self.source.seed, self.epoch, self.source.samples)
        return self._draws[positions]


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; only the training process acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _until_a_worker_dies(loader: "torch.utils.data.DataLoader[Batch]") -> Iterator[Batch]:
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise FinesightError(
            f"A loader worker died: {str(error).splitlines()[0]} Most often memory ran out. "
            "Continue from the last checkpoint with --resume, and --train.workers 0."
        ) from None


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into at most `parts` micro-batches of (nearly) equal size."""
    if parts <= 1:
        return [batch]
    size = -(-len(batch["id"]) // parts)
    pieces = []
    for start in range(0, len(batch["id"]), size):
        piece = {key: value[start : start + size] for key, value in batch.items() if key != "items"}
        piece["items"] = len(piece["id"]) if batch["items"] else 0
        pieces.append(piece)
    return pieces


def balanced_rows(labels: NDArray[Any], per_class: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Exactly `per_class` rows of every class, whole rounds first, the rest drawn without repetition.

    A class with more samples gives a fresh random subset each epoch; one with fewer is repeated.
    """
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rounds, rest = divmod(per_class, len(rows))
        chosen.append(np.concatenate([np.tile(rows, rounds), generator.permutation(rows)[:rest]]))
    return np.concatenate(chosen).astype(np.int64)
