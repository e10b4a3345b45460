"""finesight adapts vision and vision-language models to your own images, and tells you how far to trust the result.

`finesight.run(recipe, overrides)` trains and evaluates, `finesight.load_run(path)` opens a finished
run. Public names are imported when first used, so that `import finesight` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "load_run", "run"]

if TYPE_CHECKING:
    from finesight.experiment import run
    from finesight.reopen import Run, load_run


def __getattr__(name: str) -> Any:
    if name == "run":
        return import_module("finesight.experiment").run
    if name in ("Run", "load_run"):
        return getattr(import_module("finesight.reopen"), name)
    if name in ("adaptation", "attacks", "data", "losses", "metrics", "models"):
        return import_module(f"finesight.{name}")
    raise AttributeError(f"module 'finesight' has no attribute {name!r}")
