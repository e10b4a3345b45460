"""Stopping at a good moment: a signal ends the program in order, or is remembered until the running step is done."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn


class Signals:
    """Remembers the first SIGINT or SIGTERM; the second acts at once."""

    number: int | None = None

    def __call__(self, number: int, _frame: Any) -> None:
        self.number = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)


@contextlib.contextmanager
def remembered() -> Iterator[Signals]:
    """Within the block, the first SIGINT or SIGTERM only sets `number`; handlers are put back afterwards."""
    stop = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def termination() -> Iterator[None]:
    """Within the block, SIGTERM ends the program as an exception does, with code 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _terminated(_number: int, _frame: Any) -> NoReturn:
    raise SystemExit(143)
