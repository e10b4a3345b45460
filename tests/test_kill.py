"""The kill test: kill -9 at random moments, resume, and end with the very same bits.

Processes are forked from one that has everything imported, so that a kill point costs seconds.
"""

import hashlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

OPTIONS = [
    "--data.limit_train", "240", "--data.limit_validation", "60", "--data.limit_test", "60", "--train.epochs", "3",
    "--train.batch_size", "32", "--train.save_every", "1", "--train.accumulation", "2", "--evaluation.resamples", "100",
    "--precision", "fp32", "--model.width", "8",
]  # fmt: skip
KILLS = 50
STEPS = 24


def start(output: Path, *extra: str) -> int:
    """Fork a process that runs the demo recipe; returns its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        from finesight.cli import main

        code = main(["run", "demo", "--output", str(output), *OPTIONS, *extra])
    finally:
        os._exit(code)


def finish(output: Path, *extra: str) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(start(output, *extra), 0)[1])


def bits(output: Path) -> dict[str, str]:
    """Hashes of everything a run leaves that must not depend on when it was killed."""
    files = [output / name for name in ("history.jsonl", "metrics.json", "predictions.parquet", "config.yaml")]
    newest = sorted((output / "checkpoints").glob("step-*"))
    files += [path for folder in newest for path in folder.glob("*.safetensors")]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def reached(output: Path) -> int:
    """The step of the newest checkpoint; 0 before the first."""
    return max([int(path.name[5:]) for path in (output / "checkpoints").glob("step-*")], default=0)


def kill_after(number: int, output: Path, step: int, *, in_a_save: bool, wait: float) -> bool:
    """Kill -9 once `step` is saved and `wait` seconds are over, or in the save after it; False if it ended first."""
    while reached(output) < step or (in_a_save and not any((output / "checkpoints").glob(".tmp-*"))):
        time.sleep(0 if in_a_save else 0.0005)  # a save of a small model is short
        if os.waitpid(number, os.WNOHANG)[0]:
            return False
    time.sleep(0 if in_a_save else wait)
    os.kill(number, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_every_kill_point_resumes_bit_for_bit(tmp_path: Path, workers: int) -> None:
    """Chains of kill and resume: if one resume were inexact, the end of its chain would differ."""
    extra = ["--data.cache_dir", str(tmp_path / "cache"), "--train.workers", str(workers)]
    import finesight.experiment
    import finesight.report.html
    import finesight.tasks.classification  # noqa: F401 (imported once, before the forks)

    assert finish(tmp_path / "whole", *extra) == 0
    expected = bits(tmp_path / "whole")
    chance = random.Random(workers)
    killed = saving = chains = 0
    while killed < KILLS or saving < KILLS // 10:
        assert chains < 40, "the kills do not meet the saves any more: aim them anew"
        output = tmp_path / f"cut-{chains}"
        chains += 1
        resume: list[str] = []
        for _ in range(STEPS):
            # Before the first checkpoint, between two, in a save, or after the last one, in the evaluation.
            step = min(STEPS, reached(output) + chance.randint(0, 3))
            in_a_save = chance.random() < 0.4 and step < STEPS
            dead = kill_after(start(output, *resume, *extra), output, step, in_a_save=in_a_save, wait=chance.random())
            resume = ["--resume"]
            if not dead:
                break
            killed += 1
            saving += any((output / "checkpoints").glob(".tmp-*"))
        assert finish(output, *resume, *extra) == 0, output.with_suffix(".log").read_text()
        found = bits(output)
        different = [name for name in {*found, *expected} if found.get(name) != expected.get(name)]
        assert not different, f"chain {chains}, {killed} kills so far: {sorted(different)} differ"
        assert not list(output.rglob(".tmp-*"))
    print(f"{killed} kill points in {chains} chains, {saving} of them inside a save: all bit-identical")
