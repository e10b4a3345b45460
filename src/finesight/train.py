"""THE loop. Every kind of learning in this package is trained by `fit`."""

import math
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from finesight import checkpoint
from finesight.config import nearest
from finesight.data.batches import Batch, split_batch
from finesight.engine import Engine, is_out_of_memory
from finesight.errors import CheckpointError, ConfigError, FinesightError, NonFiniteLoss, Stopped
from finesight.optimization import Plateau, TrainConfig, factor
from finesight.progress import Progress, clock
from finesight.run_folder import RunFolder
from finesight.signals import Signals, remembered
from finesight.tasks.base import Loss, Task

Say = Callable[[str], None]
SAME = "The result is the same, but for networks with batch normalisation or dropout."
Validate = Callable[[], dict[str, float]]


@dataclass
class State:
    """Where training stands: all that a checkpoint holds beside tensors."""

    epoch: int = 0
    batch: int = 0
    """Batches of the current epoch that are behind us."""
    step: int = 0
    """Optimiser steps since the start."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of losses over the items of the current epoch (this process)."""
    items: int = 0
    rows: int = 0
    """Lines of history.jsonl."""
    best: float | None = None
    best_step: int | None = None
    best_epoch: int | None = None
    stale: int = 0
    """Epochs since the best one."""
    plateau: dict[str, Any] = field(default_factory=dict)
    accumulation: int = 1
    finished: bool = False
    seconds: float = 0.0
    """Wall time of all sessions up to here; says nothing about the result."""


class Loop:
    """Training in progress. `fit` drives it; its methods are the parts of one step."""

    def __init__(self, task: Task, config: TrainConfig, engine: Engine, folder: RunFolder, seed: int, say: Say) -> None:
        self.task, self.config, self.engine, self.folder = task, config, engine, folder
        self.seed, self.say = seed, say
        self.optimizers = task.optimizers()
        self.plateau = Plateau(config.plateau_patience, config.decay, config.min_lr / config.lr)
        self.state = State(accumulation=config.accumulation)
        self._best_before: int | None = None  # what the checkpoint before the last one calls the best
        self.base = {name: [group["lr"] for group in o.param_groups] for name, o in self.optimizers.items()}
        self.total_steps = min(config.epochs * len(task.train), config.max_steps or math.inf)
        inexact = {type(m).__name__ for module in task.modules.values() for m in module.modules() if _mixes_samples(m)}
        if inexact and (engine.world > 1 or config.accumulation > 1):
            say(
                f"The model has {', '.join(sorted(inexact))}: with several processes or micro-batches its result is "
                "close to that of one whole batch, but not the same."
            )
        self._last_save = self._counted = time.monotonic()

    # ---- one optimiser step -------------------------------------------------------------------

    def step(self, batch: Batch) -> None:
        """All yields of `train_step` on one batch, retried in smaller pieces when memory runs out."""
        while True:
            self.engine.seed(self.seed, self.state.step)
            pieces = split_batch(self.engine.send(batch), self.state.accumulation)
            stepped: list[str] = []
            try:
                self._yields(pieces, stepped)
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                size = max(len(piece["id"]) for piece in pieces)
                if not getattr(self.task, "divisible", True):
                    raise FinesightError(
                        f"Out of memory with {size} samples at once: {str(error).splitlines()[0]} The loss is no mean "
                        "over the samples, so that smaller pieces would change it: lower --train.batch_size or "
                        "--model.image_size; the last checkpoint is kept."
                    ) from None
                if size == 1 or stepped or self.engine.world > 1:
                    raise FinesightError(
                        f"Out of memory with {size} samples at once: {str(error).splitlines()[0]} Lower "
                        "--train.batch_size or --model.image_size, or raise --train.accumulation; the last "
                        "checkpoint is kept."
                    ) from None
            self._halve(size)

    def _yields(self, pieces: list[Batch], stepped: list[str]) -> None:
        """Advance the generators of all micro-batches side by side, one optimiser step per yield."""
        items = self.engine.sum_values([float(sum(piece["items"] for piece in pieces))])[0]
        steps = [self.task.train_step(piece) for piece in pieces]
        sums: dict[str, float] = {}
        while True:
            name = None
            for generator, piece in zip(steps, pieces, strict=True):
                with self.engine.autocast():
                    given = next(generator, None)
                if given is None:
                    continue
                loss = Loss(*given)
                if name is None:
                    name = loss.optimizer
                    self.optimizers[name].zero_grad(set_to_none=True)
                if loss.optimizer != name:
                    raise FinesightError(
                        f"train_step yielded {loss.optimizer!r} and {name!r} in one place of its order."
                    )
                value = loss.loss.item()
                if not math.isfinite(value):
                    self._name_culprits(piece, loss.optimizer, value)
                # The mean over the items of the whole batch, however it is cut and shared out.
                (loss.loss * (piece["items"] / items)).backward()
                key = "loss" if len(self.optimizers) == 1 else f"{loss.optimizer}_loss"
                observed = {key: value, **{k: float(v) for k, v in loss.observed.items()}}
                for key, value in observed.items():
                    sums[key] = sums.get(key, 0.0) + value * piece["items"]
            if name is None:
                break
            self._update(name)
            stepped.append(name)
        for key, value in sums.items():
            self.state.sums[key] = self.state.sums.get(key, 0.0) + value
        self.state.items += sum(piece["items"] for piece in pieces)

    def _update(self, name: str) -> None:
        """Gradient of all processes, clipping, the scheduled rate, the step."""
        optimizer = self.optimizers[name]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.engine.sum_gradients(parameters)
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip)
        scale = self.rate_factor(self.state.step)
        for group, base in zip(optimizer.param_groups, self.base[name], strict=True):
            group["lr"] = base * scale
        optimizer.step()

    def rate_factor(self, step: int) -> float:
        """The factor on every base learning rate at an optimiser step."""
        c = self.config
        scheduled = factor(
            c.schedule, step, int(self.total_steps), warmup=c.warmup_steps, every=c.decay_every,
            decay=c.decay, floor=c.min_lr / c.lr,
        )  # fmt: skip
        return scheduled * self.plateau.factor

    def _halve(self, size: int) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.state.accumulation *= 2
        self.say(
            f"Out of memory with {size} samples at once: going on with {-(-size // 2)}, "
            f"accumulated {self.state.accumulation} times. {SAME}"
        )

    def _name_culprits(self, piece: Batch, optimizer: str, value: float) -> None:
        """Raise `NonFiniteLoss` naming the samples whose own loss is not finite."""
        for module in self.task.modules.values():
            module.eval()
        names = []
        for index in range(len(piece["id"])):
            single = {k: v[index : index + 1] for k, v in piece.items() if k != "items"} | {"items": 1}
            with torch.no_grad(), self.engine.autocast():
                given = next(self.task.train_step(single), None)
            if given is not None and not math.isfinite(Loss(*given).loss.item()):
                names.append(single["id"][0])
        found = f"alone, these samples give it: {', '.join(names[:8])}" if names else (
            f"no single sample gives it alone; the batch was: {', '.join(piece['id'][:8])}"
        )  # fmt: skip
        raise NonFiniteLoss(
            f"step {self.state.step}: the {optimizer} loss is {value}; {found}. Look at these samples, lower train.lr "
            "(or set train.clip, or --precision fp32), and start again; no checkpoint holds this step."
        )

    # ---- epochs and checkpoints ---------------------------------------------------------------

    def close_epoch(self, validate: Validate, better: Callable[[float, float], bool]) -> dict[str, Any]:
        """Write the history line, record the best epoch, apply plateau and early stop."""
        state, config = self.state, self.config
        names = sorted(state.sums)
        *sums, items = self.engine.sum_values([*(state.sums[name] for name in names), float(state.items)])
        rate = next(iter(self.base.values()))[0] * self.rate_factor(self.state.step - 1)
        self.engine.share_buffers(self.task.modules.values())
        scores = validate()
        value = scores.get(config.select, math.nan)
        improved = math.isfinite(value) and (state.best is None or better(value, state.best))
        if improved:
            state.best, state.best_step, state.best_epoch, state.stale = value, state.step, state.epoch + 1, 0
        else:
            state.stale += 1
        if config.schedule == "plateau" and self.plateau.update(improved):
            self.say(f"No improvement for {config.plateau_patience} epochs: learning rate x {config.decay}.")
        means = {name: total / items for name, total in zip(names, sums, strict=True)}
        row = {
            "epoch": state.epoch + 1, "step": state.step, "lr": rate, "train": means,
            "validation": {k: v for k, v in scores.items() if math.isfinite(v)}, "best": improved,
        }  # fmt: skip
        if self.engine.main:
            self.folder.append_history(row)
        state.rows += 1
        state.epoch, state.batch, state.sums, state.items = state.epoch + 1, 0, {}, 0
        stale = config.early_stop is not None and state.stale >= config.early_stop
        if stale:
            self.say(f"No improvement for {state.stale} epochs: stopping early.")
        state.finished = stale or state.epoch >= config.epochs or state.step >= self.total_steps
        return row

    def save(self) -> None:
        """Checkpoint the present state; keeps the one before and the best."""
        # Every process counts its own share of the epoch; a checkpoint holds all of them.
        now = time.monotonic()
        self.state.seconds, self._counted = self.state.seconds + now - self._counted, now
        state = asdict(self.state) | {"plateau": self.plateau.state()}
        shares = self.engine.gather([{"sums": self.state.sums, "items": self.state.items}])
        self.engine.share_buffers(self.task.modules.values())
        if self.engine.main:
            tensors = {f"model.{name}": group for name, group in self.task.trainable_state().items()}
            tensors |= {f"optimizer.{n}": checkpoint.optimizer_tensors(o) for n, o in self.optimizers.items()}
            checkpoint.save(self.folder.checkpoints, self.state.step, tensors, state | {"shares": shares})
            self.prune()
        self._last_save = time.monotonic()

    def prune(self) -> None:
        """Keep the last checkpoint, the one before it (should the last be damaged) and the best."""
        steps = sorted(int(path.name.removeprefix("step-")) for path in self.folder.checkpoints.glob("step-*"))
        best = {self.state.best_step, self._best_before}
        checkpoint.prune(self.folder.checkpoints, {*steps[-2:], *(step for step in best if step is not None)})
        self._best_before = self.state.best_step

    def save_is_due(self) -> bool:
        every = self.config.save_every
        due = every is not None and self.state.step % every == 0
        old = time.monotonic() - self._last_save > 60 * self.config.save_minutes
        return due or self.engine.any(old)

    def restore(self) -> bool:
        """Continue from the newest valid checkpoint; False when there is none."""
        found = checkpoint.newest(self.folder.checkpoints, self.say)
        if found is None:
            self.folder.cut_history(0) if self.engine.main else None
            return False
        saved = dict(found.state)
        shares = saved.pop("shares")
        if len(shares) != self.engine.world:
            raise CheckpointError(
                f"{found.path}: written by {len(shares)} processes, and {self.engine.world} want to continue it. "
                "Continue with the same number of processes, so that the run stays the same run."
            )
        self.state = State(**saved)
        self.state.sums, self.state.items = (
            shares[self.engine.rank]["sums"],
            shares[self.engine.rank]["items"],
        )
        self.plateau.restore(self.state.plateau)
        load_weights(self.task, found)
        for name, optimizer in self.optimizers.items():
            checkpoint.restore_optimizer(optimizer, found.tensors(f"optimizer.{name}"))
        if self.engine.main:
            self.folder.cut_history(self.state.rows)
            checkpoint.drop_after(self.folder.checkpoints, self.state.step)
        self._best_before = self.state.best_step
        return True


def check_selection(task: Task, config: TrainConfig) -> None:
    """Raise `ConfigError` where the epoch would be chosen by what is not measured."""
    known = list(task.selectable)
    if config.select not in known:
        shown = ", ".join(name for name in known if "/" not in name)
        raise ConfigError(
            f"train.select: {config.select!r} is not measured{nearest(config.select, known)}. Known: {shown}."
        )


def fit(
    task: Task,
    config: TrainConfig,
    engine: Engine,
    folder: RunFolder,
    *,
    seed: int,
    validate: Validate,
    better: Callable[[float, float], bool],
    say: Say,
    resume: bool = False,
) -> State:
    """Train `task` until its epochs, steps or patience are used up; the best weights are loaded at the end.

    Randomness comes from (seed, step) and (seed, epoch, sample), so a run continued by `resume` ends
    bit for bit like one that was never stopped. Raises `NonFiniteLoss`, and `Stopped` after SIGINT
    or SIGTERM once the running step is finished and saved.
    """
    check_selection(task, config)
    loop = Loop(task, config, engine, folder, seed, say)
    if resume and loop.restore():
        say(f"Continuing after step {loop.state.step:,} (epoch {loop.state.epoch + 1}, batch {loop.state.batch}).")
    if config.epochs == 0:
        loop.state.finished = True
        loop.save()
    with remembered() as stop:
        while not loop.state.finished:
            started = time.monotonic()
            _epoch(loop, stop)
            row = loop.close_epoch(validate, better)
            loop.save()
            say(_epoch_line(row, config, time.monotonic() - started))
            _stop_if_asked(loop, stop)
    if engine.main:
        loop.prune()  # a run killed between its last save and its pruning comes here without another save
    engine.wait()
    if loop.state.best_step is not None:
        load_weights(task, checkpoint.opened(checkpoint.path_of(folder.checkpoints, loop.state.best_step)))
    return loop.state


def load_weights(task: Task, found: checkpoint.Checkpoint) -> None:
    """Put the weights of a checkpoint into the task's modules, strictly."""
    for name, expected in task.trainable_state().items():
        checkpoint.restore_module(task.modules[name], found.tensors(f"model.{name}"), set(expected), str(found.path))


def _epoch(loop: Loop, stop: Signals) -> None:
    """The rest of the current epoch, batch by batch."""
    task, state, engine = loop.task, loop.state, loop.engine
    for module in task.modules.values():
        module.train()
    label = f"epoch {state.epoch + 1}/{loop.config.epochs}"
    progress = Progress(label, task.train.samples, "samples", shown=engine.main)
    for batch in task.train.epoch(state.epoch, state.batch, engine.rank, engine.world):
        if state.step >= loop.total_steps:
            break
        loop.step(batch)
        state.step += 1
        state.batch += 1
        loss = next(iter(state.sums.values())) / max(1, state.items)
        progress.update(min(state.batch * task.train.batch_size, task.train.samples), f"loss {loss:.4f}")
        if state.step < loop.total_steps and state.batch < len(task.train):
            stopping = engine.any(stop.number is not None)
            if stopping or loop.save_is_due():
                loop.save()
            if stopping:
                _stop_if_asked(loop, stop)
    progress.close()


def _stop_if_asked(loop: Loop, stop: Signals) -> None:
    if loop.engine.any(stop.number is not None):
        raise Stopped(
            stop.number or signal.SIGTERM,
            f"Stopped after step {loop.state.step:,}, saved. Continue with: "
            f"finesight run --resume --output {shlex.quote(str(loop.folder.path))}",
        )


def _mixes_samples(module: torch.nn.Module) -> bool:
    """True for layers whose training output depends on how the batch is cut: batch statistics, random masks."""
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
        return module.training or module.track_running_stats
    return isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0


def _epoch_line(row: dict[str, Any], config: TrainConfig, seconds: float) -> str:
    """One line on an epoch for the console."""
    train = "  ".join(f"{name} {value:.4f}" for name, value in row["train"].items())
    shown = {config.select: row["validation"].get(config.select, float("nan")), **row["validation"]}
    validation = "  ".join(f"{name} {value:.4f}" for name, value in list(shown.items())[:2])
    star = "  best so far" if row["best"] else ""
    head = f"epoch {row['epoch']:>3}/{config.epochs}  {clock(seconds):>5}"
    return f"{head}  train {train}  validation {validation}{star}"
