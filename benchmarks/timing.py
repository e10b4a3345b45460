"""Interleaved timing: machines are shared and noisy, so only ratios taken side by side mean anything."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Time both in turn, `rounds` times."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def ratio(ours: list[float], theirs: list[float]) -> str:
    """'2.6x (2.4-2.9x)': median and range of theirs / ours, round by round."""
    ratios = [peer / own for own, peer in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f}x)"


def machine() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def test_data() -> Path | None:
    """The folder of real data, or None where it is not set."""
    found = os.environ.get("FINESIGHT_TEST_DATA")
    return Path(found) if found else None
