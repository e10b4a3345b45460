"""Checkpoints: what a kill, a full disk and a bit flip leave behind."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from finesight import checkpoint
from finesight.errors import CheckpointError
from finesight.optimization import TrainConfig, make_optimizer
from finesight.run_folder import RunFolder
from tests.toy import Toy, train, weights


def save(directory: Path, step: int) -> Path:
    return checkpoint.save(directory, step, {"model.net": {"w": torch.full((64,), float(step))}}, {"step": step})


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_tensors_and_state_come_back_exactly(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(4, 2, 3, 3).to(memory_format=torch.channels_last)}
    state = {"loss": 0.1 + 0.2, "none": None}
    found = checkpoint.opened(checkpoint.save(tmp_path, 7, {"model": tensors}, state))
    assert found.state == state
    assert all(torch.equal(tensors[name], value) for name, value in found.tensors("model").items())


def test_the_newest_is_used(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        save(tmp_path, step)
    found = checkpoint.newest(tmp_path, lambda _: None)
    assert found is not None
    assert found.state["step"] == 10


@pytest.mark.parametrize("name", ["model.net.safetensors", "state.json", "manifest.json"])
def test_a_bit_flip_is_refused_and_the_one_before_is_used_and_both_are_said(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    flip_a_bit(save(tmp_path, 2) / name)
    said: list[str] = []
    found = checkpoint.newest(tmp_path, said.append)
    assert found is not None
    assert found.state["step"] == 1
    assert "step-00000002" in said[0]
    assert "step-00000001" in said[1]


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1) / "model.net.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="no valid checkpoint is left"):
        checkpoint.newest(tmp_path, lambda _: None)


def test_a_save_killed_half_way_is_invisible_and_swept_up_later(tmp_path: Path) -> None:
    save(tmp_path, 1)
    half = tmp_path / ".tmp-99999999-step-00000002"
    half.mkdir()
    (half / "model.net.safetensors").write_bytes(b"half")
    found = checkpoint.newest(tmp_path, lambda _: None)
    assert found is not None
    assert found.state["step"] == 1
    checkpoint.prune(tmp_path, {1})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_full_disk_keeps_the_last_checkpoint_and_says_the_bytes(tmp_path: Path, monkeypatch: Any) -> None:
    save(tmp_path, 1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"needs 256 B \(256 bytes\)") as caught:
        save(tmp_path, 2)
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_fatal_and_nothing_is_loaded(change: str) -> None:
    module = torch.nn.Linear(3, 2)
    before = module.weight.detach().clone()
    tensors = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    if change == "missing":
        del tensors["bias"]
    elif change == "unexpected":
        tensors["extra"] = torch.ones(1)
    else:
        tensors["bias"] = torch.ones(3)
    with pytest.raises(CheckpointError, match="do not fit"):
        checkpoint.restore_module(module, tensors, {"weight", "bias"}, "run")
    assert torch.equal(module.weight, before)


def test_the_best_and_the_last_two_are_kept(tmp_path: Path) -> None:
    task = Toy(TrainConfig(epochs=6, batch_size=8, lr=1e-9), dropout=0.0)
    state = train(task, RunFolder(tmp_path))
    kept = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir())
    assert state.best_step == 5
    assert kept == [5, 25, 30]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_optimizer_state_is_restored_bit_for_bit(tmp_path: Path, optimizer: Any) -> None:
    settings = {"batch_size": 8, "optimizer": optimizer, "lr": 0.05}
    whole = Toy(TrainConfig(epochs=2, **settings))
    train(whole, RunFolder(tmp_path / "whole"))
    found = checkpoint.newest(tmp_path / "whole" / "checkpoints", lambda _: None)
    assert found is not None
    fresh = Toy(TrainConfig(epochs=2, **settings))
    restored = fresh.optimizers()["model"]
    checkpoint.restore_optimizer(restored, found.tensors("optimizer.model"))
    flat = checkpoint.optimizer_tensors(restored)
    assert flat
    assert all(torch.equal(flat[key], value) for key, value in found.tensors("optimizer.model").items())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_restored_optimizer_takes_the_same_next_step_on_channels_last_weights(optimizer: Any) -> None:
    """Fused optimisers read the raw memory: state restored in another layout would step other weights."""
    config = TrainConfig(optimizer=optimizer, lr=0.1)

    def made() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module, make_optimizer(list(module.parameters()), config)

    def step(module: torch.nn.Module, stepped: torch.optim.Optimizer, seed: int) -> None:
        stepped.zero_grad()
        image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        module(image).square().mean().backward()
        stepped.step()

    (whole, first), (resumed, second) = made(), made()
    step(whole, first, 1)
    flat = {
        key: value.clone(memory_format=torch.contiguous_format)
        for key, value in checkpoint.optimizer_tensors(first).items()
    }
    resumed.load_state_dict(whole.state_dict())
    checkpoint.restore_optimizer(second, flat)
    step(whole, first, 2)
    step(resumed, second, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_damage_to_the_newest_costs_only_the_work_since_the_one_before(tmp_path: Path) -> None:
    settings = TrainConfig(epochs=3, batch_size=8, lr=0.05)
    whole, resumed = Toy(settings), Toy(settings)
    train(whole, RunFolder(tmp_path / "a"))
    train(Toy(settings), RunFolder(tmp_path / "b"))
    newest = checkpoint.newest(tmp_path / "b" / "checkpoints", lambda _: None)
    assert newest is not None
    flip_a_bit(newest.path / "model.model.safetensors")
    train(resumed, RunFolder(tmp_path / "b"), resume=True)
    assert torch.equal(weights(whole), weights(resumed))
    assert (tmp_path / "a/history.jsonl").read_bytes() == (tmp_path / "b/history.jsonl").read_bytes()
