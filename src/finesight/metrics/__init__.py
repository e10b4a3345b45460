"""Metrics: tables of per-sample statistics, functions of their sum, and intervals. Imported when first used."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("anomaly", "bootstrap", "captions", "classification", "images"):
        return import_module(f"finesight.metrics.{name}")
    raise AttributeError(f"module 'finesight.metrics' has no attribute {name!r}")
