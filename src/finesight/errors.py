"""The one family of errors that finesight raises on purpose.

Every message states the value, the cause and the remedy. The command line prints it without a
traceback and exits with the code of its class.
"""

from typing import Any


class FinesightError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(FinesightError):
    """Something the user gave cannot be used. Takes all problems found, one sentence or more each."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class ConfigError(UserError):
    """An option is unknown, has the wrong type or an impossible value.

    `understood` holds the options that could be read, so that they can be checked too.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.understood: dict[str, Any] = {}


class DataError(UserError):
    """The data cannot be read or used as asked."""


class ModelError(UserError):
    """A model, its weights or its adaptation cannot be used as asked."""


class CheckpointError(UserError):
    """No valid checkpoint, or one that does not fit the model."""


class RunError(UserError):
    """A run folder is missing, in use, or holds another run."""


class NonFiniteLoss(UserError):
    """The loss became NaN or infinite; the message names the samples."""


class Stopped(FinesightError):
    """SIGINT or SIGTERM arrived; the step was finished and saved. Exit code 128 + signal."""

    def __init__(self, signal_number: int, message: str) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(message)
