"""The two demonstrations: real digits that come with scikit-learn, no download."""

import time
from pathlib import Path

from finesight import comparison, experiment, recipes
from finesight.errors import RunError

METHODS = {
    "source-only": "trained on the plain digits alone",
    "pixelda": "adapted to images of digits over photographs, without their labels",
}


def digits(output: Path | None, command: list[str], program: str) -> None:
    """Train a small network and write its report; `program` is how finesight is called here."""
    name, base = recipes.read("demo")
    print("Training a small network on scikit-learn's handwritten digits (1,797 real images) ...")
    experiment.execute(name, base, {}, output, False, command)
    print(f"\nNext, with your own images (one folder per class):\n  {program} run classify --data.root FOLDER")


def domains(output: Path | None, command: list[str], program: str) -> None:
    """Train on plain digits, with and without adaptation to digits over photographs, and compare on the latter.

    The runs are OUTPUT/source-only and OUTPUT/pixelda. Raises `RunError` where one is there already.
    """
    output = output or Path("runs") / f"demo-domains-{time.strftime('%Y%m%d-%H%M%S')}"
    runs = {method: output / method for method in METHODS}
    for place in runs.values():
        if place.exists():
            raise RunError(f"{place}: is there already. Choose another folder with --output.")
    name, base = recipes.read("demo-domains")
    for number, (method, place) in enumerate(runs.items(), start=1):
        print(f"{number} of {len(runs)}: {method}, {METHODS[method]} ...", flush=True)
        experiment.execute(name, base, {"method": method}, place, False, command)
    result = comparison.compare(list(runs.values()))
    print("\nOn the target's test images, digits over photographs:")
    accuracy = [run | {"metrics": {"accuracy": run["metrics"]["accuracy"]}} for run in result["runs"]]
    for line in comparison.lines(result | {"runs": accuracy}):
        print(f"  {line}")
    comparison.write_page(result, output / "comparison.html")
    for method, place in runs.items():
        print(f"Report of {method}: {place / 'report.html'}")
    print(f"Both compared: {output / 'comparison.html'}")
    own = "run adapt --data.source FOLDER --data.target FOLDER"
    print(f"\nNext, with your own two domains:\n  {program} {own}")
