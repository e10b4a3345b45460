"""One line that says how far, how fast and how long; quiet where nobody watches."""

import sys
import time


class Progress:
    """Progress of one stretch of work, on standard error.

    On a terminal the line is redrawn at most five times a second; elsewhere it is printed every
    `every` seconds, so that a log stays short.
    """

    def __init__(self, label: str, total: int, unit: str, *, shown: bool = True, every: float = 30.0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._shown = shown
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else every
        self._start = self._last = time.monotonic()
        self._first: int | None = None
        self._drawn = False

    def update(self, done: int, note: str = "") -> None:
        """`done` units of `total` are behind us; `note` stands at the end of the line."""
        now = time.monotonic()
        if self._first is None:
            # Work done before the first call (a resumed epoch) must not count into the rate.
            self._first, self._start = done, now if done else self._start
        if not self._shown or now - self._last < self._every:
            return
        self._last = now
        seconds = now - self._start
        rate = (done - self._first) / seconds if seconds > 0 else 0.0
        left = clock((self.total - done) / rate) if rate > 0 else "--:--"
        share = 100 * done / self.total if self.total else 100
        text = f"{self.label}  {share:3.0f} %  {done:,}/{self.total:,} {self.unit}  {rate:,.0f}/s  {left} left"
        text += f"  {note}" if note else ""
        if self._terminal:
            sys.stderr.write(f"\r\x1b[2K{text}")
            self._drawn = True
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Clear the line."""
        if self._drawn:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._drawn = False


def clock(seconds: float) -> str:
    """3725 -> '1:02:05', 65 -> '1:05'."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
