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


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_every_kill_point_resumes_bit_for_bit(tmp_path: Path, workers: int) -> None:
    extra = ["--data.cache_dir", str(tmp_path / "cache"), "--train.workers", str(workers)]
    import finesight.experiment
    import finesight.report.html
    import finesight.tasks.classification  # noqa: F401 (imported once, before the forks)

    # The first run warms the cache, the second is timed.
    assert finish(tmp_path / "warm", *extra) == 0
    begun = time.monotonic()
    assert finish(tmp_path / "whole", *extra) == 0
    seconds = time.monotonic() - begun
    expected = bits(tmp_path / "whole")
    chance = random.Random(workers)
    killed = saving = 0
    while killed < KILLS:
        output = tmp_path / f"cut-{killed}"
        number = start(output, *extra)
        # A third of the points wait for a save in progress, the rest are uniform over the run.
        moment = time.monotonic() + chance.uniform(0.05, 0.98) * seconds
        aimed = killed % 3 == 0
        while time.monotonic() < moment or (aimed and not any((output / "checkpoints").glob(".tmp-*"))):
            time.sleep(0.0005)
            if os.waitpid(number, os.WNOHANG)[0]:
                number = 0
                break
        if not number:
            continue_with = tmp_path / f"ended-{time.monotonic_ns()}"
            output.rename(continue_with)  # it ended before the kill: no kill point
            continue
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
        killed += 1
        saving += any((output / "checkpoints").glob(".tmp-*"))
        assert finish(output, "--resume", *extra) == 0, output.with_suffix(".log").read_text()
        found = bits(output)
        different = [name for name in {*found, *expected} if found.get(name) != expected.get(name)]
        assert not different, f"kill point {killed} of a run of {seconds:.1f} s: {sorted(different)} differ"
        assert not list(output.rglob(".tmp-*"))
    print(f"{killed} kill points, {saving} of them inside a save: all bit-identical")
    assert saving >= 5
