"""The loop: order of steps, accumulation, schedules, faults, and resuming bit for bit."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from finesight import checkpoint
from finesight.data.batches import Batches
from finesight.errors import CheckpointError, FinesightError, NonFiniteLoss, Stopped
from finesight.optimization import Plateau, TrainConfig, factor
from finesight.run_folder import RunFolder
from finesight.tasks.base import Loss
from tests.toy import Toy, train, weights


def settings(**options: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 3, "batch_size": 8, "optimizer": "sgd", "lr": 0.1, **options})


def test_eight_by_one_equals_one_by_eight(tmp_path: Path) -> None:
    whole, cut = (Toy(settings(accumulation=parts), dropout=0.0) for parts in (1, 8))
    train(whole, RunFolder(tmp_path / "whole"))
    train(cut, RunFolder(tmp_path / "cut"))
    assert len(cut.steps) == 8 * len(whole.steps)
    torch.testing.assert_close(weights(whole), weights(cut), rtol=0, atol=1e-6)


def test_a_ragged_batch_is_weighted_by_its_items(tmp_path: Path) -> None:
    """7 samples in 4 micro-batches (2, 2, 2, 1): the mean of the micro-batch means would be wrong."""
    whole, cut = (Toy(settings(batch_size=7, accumulation=n), samples=21, dropout=0.0) for n in (1, 4))
    train(whole, RunFolder(tmp_path / "whole"))
    train(cut, RunFolder(tmp_path / "cut"))
    torch.testing.assert_close(weights(whole), weights(cut), rtol=0, atol=1e-6)


class TwoOptimizers(Toy):
    """Yields twice; the second loss looks at what the first step did."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config, dropout=0.0)
        self.first, self.second = torch.nn.Linear(6, 1), torch.nn.Linear(6, 1)
        self.modules = {"model": self.net, "first": self.first, "second": self.second}
        self.seen: list[bool] = []

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {
            "first": torch.optim.SGD(self.first.parameters(), 0.1),
            "second": torch.optim.SGD(self.second.parameters(), 0.1),
        }

    def trainable_state(self) -> dict[str, dict[str, torch.Tensor]]:
        return {name: module.state_dict() for name, module in self.modules.items()}

    def train_step(self, batch: dict[str, Any]) -> Any:
        before = self.first.weight.detach().clone()
        yield Loss("first", self.first(batch["x"]).square().mean())
        self.seen.append(not torch.equal(before, self.first.weight))
        yield Loss("second", (self.second(batch["x"]) - self.first(batch["x"]).detach()).square().mean())


@pytest.mark.parametrize("accumulation", [1, 4])
def test_code_after_a_yield_runs_after_that_optimizer_stepped(tmp_path: Path, accumulation: int) -> None:
    task = TwoOptimizers(settings(epochs=1, accumulation=accumulation))
    train(task, RunFolder(tmp_path))
    assert task.seen
    assert all(task.seen)
    row = RunFolder(tmp_path).read_history()[0]
    assert set(row["train"]) == {"first_loss", "second_loss"}


def test_history_holds_the_mean_of_the_epoch_and_not_the_last_batch(tmp_path: Path) -> None:
    """S8's curves came from the last batch of each epoch."""
    task = Toy(settings(epochs=1, lr=1e-12, batch_size=16), samples=40, dropout=0.0)
    with torch.no_grad():
        logits = task.net(task.train.columns["x"])
        expected = torch.nn.functional.cross_entropy(logits, task.train.columns["label"]).item()
    train(task, RunFolder(tmp_path))
    assert RunFolder(tmp_path).read_history()[0]["train"]["loss"] == pytest.approx(expected, abs=1e-6)


def test_the_test_split_cannot_choose_the_epoch() -> None:
    """S8 chose the epoch on the test images."""
    with pytest.raises(ValidationError, match="must not choose the epoch"):
        TrainConfig(selection_split="test")


def test_the_best_epoch_is_loaded_at_the_end(tmp_path: Path) -> None:
    task = Toy(settings(epochs=6, lr=2.0))
    state = train(task, RunFolder(tmp_path))
    accuracies = [row["validation"]["accuracy"] for row in RunFolder(tmp_path).read_history()]
    assert state.best == max(accuracies)
    assert state.best_epoch == accuracies.index(max(accuracies)) + 1
    saved = checkpoint.opened(checkpoint.path_of(tmp_path / "checkpoints", state.best_step or -1))
    for name, value in saved.tensors("model.model").items():
        assert torch.equal(value, task.net.state_dict()[name])


def test_early_stop_counts_epochs_without_improvement(tmp_path: Path) -> None:
    task = Toy(settings(epochs=50, lr=1e-9, early_stop=3), dropout=0.0)
    state = train(task, RunFolder(tmp_path))
    assert (state.epoch, state.best_epoch) == (4, 1)


def test_max_steps_stops_inside_an_epoch_and_still_validates(tmp_path: Path) -> None:
    state = train(Toy(settings(epochs=9, max_steps=7)), RunFolder(tmp_path))
    rows = RunFolder(tmp_path).read_history()
    assert state.step == 7
    assert [row["step"] for row in rows] == [5, 7]


def test_gradient_clipping_bounds_the_step(tmp_path: Path) -> None:
    task = Toy(settings(epochs=1, max_steps=1, lr=1.0, momentum=0.0, clip=1e-3))
    before = weights(task).clone()
    train(task, RunFolder(tmp_path))
    assert (weights(task) - before).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_nan_stops_and_names_the_sample(tmp_path: Path) -> None:
    task = Toy(settings())
    task.train.columns["x"][13] = math.nan
    with pytest.raises(NonFiniteLoss, match=r"sample-13\.") as caught:
        train(task, RunFolder(tmp_path))
    assert "sample-12" not in str(caught.value)


class ShortOfMemory(Toy):
    """Cannot hold more than three samples at once."""

    def train_step(self, batch: dict[str, Any]) -> Any:
        if len(batch["id"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield from super().train_step(batch)


def test_out_of_memory_halves_the_micro_batch_says_so_and_changes_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    short, ample = (kind(settings(batch_size=8), dropout=0.0) for kind in (ShortOfMemory, Toy))
    train(short, RunFolder(tmp_path / "short"), say=said.append)
    train(ample, RunFolder(tmp_path / "ample"))
    assert [line for line in said if "Out of memory with 8" in line]
    assert [line for line in said if "accumulated 4 times" in line]
    torch.testing.assert_close(weights(short), weights(ample), rtol=0, atol=1e-6)


def test_out_of_memory_cuts_no_batch_whose_loss_is_no_mean(tmp_path: Path) -> None:
    class Indivisible(ShortOfMemory):
        divisible = False

    said: list[str] = []
    with pytest.raises(FinesightError, match=r"lower --train\.batch_size"):
        train(Indivisible(settings(batch_size=8), dropout=0.0), RunFolder(tmp_path), say=said.append)
    assert not [line for line in said if "accumulated" in line]


def test_other_runtime_errors_are_not_taken_for_lack_of_memory(tmp_path: Path) -> None:
    class Broken(Toy):
        def train_step(self, batch: dict[str, Any]) -> Any:
            raise RuntimeError("shapes do not match")
            yield

    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(Broken(settings()), RunFolder(tmp_path))


class Interrupted(Toy):
    """Gets a signal, or dies, in the middle of a given step."""

    def __init__(self, config: TrainConfig, at: int, number: int = signal.SIGINT) -> None:
        super().__init__(config)
        self.at, self.number = at, number

    def train_step(self, batch: dict[str, Any]) -> Any:
        if len(self.steps) == self.at:
            os.kill(os.getpid(), self.number)
        yield from super().train_step(batch)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_resumed_run_is_the_same_bit_for_bit(
    tmp_path: Path, workers: int, number: int, code: int
) -> None:
    """Dropout, momentum, a cosine schedule and a shuffled order, stopped in the middle of an epoch."""
    options: dict[str, Any] = {"epochs": 4, "schedule": "cosine", "warmup_steps": 3, "workers": workers}
    whole = Toy(settings(**options))
    train(whole, RunFolder(tmp_path / "whole"))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped) as caught:
        train(Interrupted(settings(**options), at=8, number=number), RunFolder(tmp_path / "cut"))
    assert caught.value.exit_code == code
    assert signal.getsignal(signal.SIGINT) is before
    resumed = Toy(settings(**options))
    train(resumed, RunFolder(tmp_path / "cut"), resume=True)
    assert len(resumed.steps) == 20 - 9
    assert torch.equal(weights(whole), weights(resumed))
    histories = [(tmp_path / name / "history.jsonl").read_bytes() for name in ("whole", "cut")]
    assert histories[0] == histories[1]


def test_a_crash_between_history_and_checkpoint_leaves_no_double_lines(tmp_path: Path) -> None:
    class Crash(Exception):
        pass

    task = Toy(settings(epochs=3))
    train(task, RunFolder(tmp_path / "whole"))
    broken = Toy(settings(epochs=3))
    folder = RunFolder(tmp_path / "cut")
    append = folder.append_history

    def append_then_crash(row: dict[str, Any]) -> None:
        append(row)
        if row["epoch"] == 2:
            raise Crash

    folder.append_history = append_then_crash  # type: ignore[method-assign]
    with pytest.raises(Crash):
        train(broken, folder)
    resumed = Toy(settings(epochs=3))
    train(resumed, RunFolder(tmp_path / "cut"), resume=True)
    assert torch.equal(weights(task), weights(resumed))
    assert [json.loads(line)["epoch"] for line in (tmp_path / "cut/history.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
    ]


def test_resume_refuses_another_number_of_processes(tmp_path: Path) -> None:
    train(Toy(settings()), RunFolder(tmp_path))
    newest = checkpoint.newest(tmp_path / "checkpoints", lambda _: None)
    assert newest is not None
    state = newest.state | {"shares": newest.state["shares"] * 2}
    checkpoint.save(tmp_path / "checkpoints", 99, {}, state)
    with pytest.raises(CheckpointError, match="written by 2 processes"):
        train(Toy(settings()), RunFolder(tmp_path), resume=True)


def test_zero_and_two_workers_give_the_same_batches() -> None:
    columns = {"x": torch.arange(23), "label": torch.arange(23) % 3}
    ids = [str(index) for index in range(23)]
    alone, helped = (
        Batches(ids, columns, batch_size=5, seed=3, shuffle=True, balance=9, workers=workers) for workers in (0, 2)
    )
    for epoch in (0, 1):
        for a, b in zip(alone.epoch(epoch, 1), helped.epoch(epoch, 1), strict=True):
            assert torch.equal(a["x"], b["x"])
            assert a["id"] == b["id"]


def test_workers_leave_the_global_generator_alone() -> None:
    source = Batches(["a", "b"], {"x": torch.zeros(2)}, batch_size=1, workers=1)
    before = torch.get_rng_state()
    list(source.epoch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_a_dead_worker_is_said_with_the_way_to_continue() -> None:
    source = Batches(["a", "b"], {"x": torch.zeros(2)}, batch_size=1, workers=1)
    source.take = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,method-assign]
    with pytest.raises(FinesightError, match="--train.workers 0"):
        list(source.epoch(0))


def test_shares_of_two_processes_are_the_batch_each_sample_once() -> None:
    source = Batches([str(i) for i in range(11)], {"x": torch.arange(11)}, batch_size=5, seed=1, shuffle=True)
    for whole, a, b in zip(source.epoch(2), source.epoch(2, 0, 0, 2), source.epoch(2, 0, 1, 2), strict=True):
        counted = a["id"][: a["items"]] + b["id"][: b["items"]]
        assert sorted(counted) == sorted(whole["id"])


def test_balance_shows_every_class_equally_and_anew_each_epoch() -> None:
    labels = torch.tensor([0] * 30 + [1] * 4)
    source = Batches([str(i) for i in range(34)], {"label": labels}, batch_size=10, shuffle=True, balance=10)
    seen = [[int(label) for batch in source.epoch(epoch) for label in batch["label"]] for epoch in (0, 1)]
    ids = [sorted(name for batch in source.epoch(epoch) for name in batch["id"]) for epoch in (0, 1)]
    assert all(epoch.count(0) == epoch.count(1) == 10 for epoch in seen)
    assert ids[0] != ids[1]
    assert all(ids[0].count(str(rare)) in (2, 3) for rare in range(30, 34))


def test_cosine_equals_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 0.4)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for step in range(50):
        assert 0.4 * factor("cosine", step, 50, floor=0.25) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        reference.step()


def test_step_schedule_and_warmup() -> None:
    rates = [factor("step", step, 100, warmup=4, every=10, decay=0.5) for step in range(30)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[4:14] == [1.0] * 10
    assert rates[14:24] == [0.5] * 10


def test_plateau_equals_torch_with_its_patience_less_one() -> None:
    values = [1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=2, threshold=0.0, min_lr=0.2
    )
    ours, best = Plateau(3, 0.5, 0.2), -math.inf
    for value in values:
        ours.update(value > best)
        best = max(best, value)
        reference.step(value)
        assert ours.factor == pytest.approx(optimizer.param_groups[0]["lr"])
