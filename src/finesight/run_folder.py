"""The run folder: create, lock, write atomically, read back."""

import fcntl
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from finesight.errors import RunError
from finesight.files import read_json, remove_leftovers, write_json, write_text

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "datasets",
    "peft",
    "accelerate",
    "timm",
    "numpy",
    "pillow",
)

# Folders locked by this process: a record lock does not stop its own process.
_HELD: set[Path] = set()


class RunFolder:
    """One run on disk. The process that holds the lock is the only one that writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: TextIO | None = None

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """What rebuilds the architecture, and the frozen weights."""
        return self.path / "model"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def history(self) -> Path:
        return self.path / "history.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.parquet"

    @property
    def start(self) -> Path:
        """Test predictions of the model before training."""
        return self.path / "start.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def exists(self) -> bool:
        return self.config.is_file()

    def lock(self) -> None:
        """Create the folder and hold it; raises `RunError` naming the process that already does."""
        if self.path.resolve() in _HELD:
            # Opening and closing the file once more would drop the record lock that this process holds.
            raise RunError(f"{self.path}: in use by this process. Choose another --output.")
        if not self.exists() and not (self.path / ".lock").exists() and self.path.is_dir() and any(self.path.iterdir()):
            raise RunError(f"{self.path}: not empty, and not a run. Choose a new folder with --output.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written: {error.strerror}. Choose another folder with --output."
            ) from None
        try:
            # A record lock is not inherited by forked loader workers, which may outlive a killed run.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            self._lock = None
            raise RunError(
                f"{self.path}: in use by {holder}. Wait for it or stop it, or choose another --output."
            ) from None
        _HELD.add(self.path.resolve())
        self._lock.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()} since {started}\n")
        self._lock.flush()
        remove_leftovers(self.path)

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            _HELD.discard(self.path.resolve())

    def release(self) -> None:
        """Unlock; a folder in which nothing was begun is removed again."""
        if self.path.is_dir() and not self.exists() and [entry.name for entry in self.path.iterdir()] == [".lock"]:
            (self.path / ".lock").unlink()
            self.path.rmdir()
        self.unlock()

    def append_history(self, row: dict[str, Any]) -> None:
        with self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read_history(self) -> list[dict[str, Any]]:
        if not self.history.is_file():
            return []
        return [json.loads(line) for line in self.history.read_text(encoding="utf-8").splitlines()]

    def cut_history(self, rows: int) -> None:
        """Keep the first `rows` lines: what a checkpoint knows of; the rest is computed again."""
        if self.history.is_file():
            kept = self.history.read_text(encoding="utf-8").splitlines()[:rows]
            write_text(self.history, "".join(line + "\n" for line in kept))

    def read_run(self) -> dict[str, Any]:
        path = self.path / "run.json"
        try:
            return read_json(path) if path.is_file() else {}
        except ValueError as error:
            raise RunError(f"{path}: damaged ({error}); restore it from a backup, or run again.") from None

    def recorded(self, key: str) -> Any:
        """An entry of run.json; raises `RunError` when it is not there."""
        entries = self.read_run()
        if key not in entries:
            raise RunError(
                f"{self.path / 'run.json'}: missing, or without {key!r}; restore it from a backup, or run again."
            )
        return entries[key]

    def update_run(self, **entries: Any) -> None:
        """Merge entries into run.json."""
        write_json(self.path / "run.json", {**self.read_run(), **entries})

    def read_metrics(self) -> dict[str, Any]:
        if not self.metrics.is_file():
            raise RunError(
                f"{self.path}: not finished, there is no metrics.json. Continue it with: "
                f"finesight run --resume --output {shlex.quote(str(self.path))}"
            )
        return read_json(self.metrics)


def open_run(path: Path | str) -> RunFolder:
    """An existing run; raises `RunError` when there is none."""
    folder = RunFolder(Path(path))
    if not folder.exists():
        siblings = sorted(found.parent.name for found in folder.path.parent.glob("*/config.yaml"))
        near = f" Runs beside it: {', '.join(siblings[:8])}." if siblings else ""
        raise RunError(f"{path}: not a run folder (it has no config.yaml).{near}")
    return folder


def versions() -> dict[str, str]:
    """Versions of finesight, Python and the libraries that shape the numbers."""
    found = {"finesight": _version("finesight"), "python": sys.version.split()[0]}
    found.update({name: _version(name) for name in PACKAGES})
    return {name: version for name, version in found.items() if version}


def git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the code that runs, when it runs from a git checkout."""
    here = Path(__file__).parent

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return {"commit": ask("rev-parse", "HEAD"), "changed_files": bool(ask("status", "--porcelain"))}


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
