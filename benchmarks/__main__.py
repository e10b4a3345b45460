"""Run all benchmarks, or those named: python -m benchmarks [NAME ...]."""

import sys
from importlib import import_module

NAMES = (
    "bootstrap",
    "captioning",
    "cifar10_mlp",
    "clip_lora",
    "endovae",
    "inception_head",
    "loop_overhead",
    "mae",
    "pgd",
    "pixelda",
)


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        import_module(f"benchmarks.{name}").main()


main()
