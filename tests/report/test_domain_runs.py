"""Whole runs of every method end in a report with its own figures and section."""

from pathlib import Path

import numpy as np
import pytest

from finesight.cli import main
from finesight.files import read_json

QUICK = [
    "--data.source", "sklearn:digits", "--data.margin", "0", "--data.limit_train", "60",
    "--data.limit_validation", "30", "--data.limit_test", "40", "--model.image_size", "16",
    "--precision", "fp32", "--train.epochs", "1", "--evaluation.resamples", "100",
]  # fmt: skip
PHOTOS = ["--data.backgrounds", "sklearn:photographs"]


def figures_of(output: Path) -> set[str]:
    return {entry["name"] for entry in read_json(output / "figures" / "figures.json")}


@pytest.mark.parametrize("method", ["dann", "source-only", "target-only"])
def test_every_method_ends_in_a_report(method: str, tmp_path: Path) -> None:
    assert main(["run", f"mnistm-{method}", *QUICK, *PHOTOS, "--output", str(tmp_path / "run")]) == 0
    assert {"adaptation", "domains", "features", "confusion"} <= figures_of(tmp_path / "run")
    assert ("losses" in figures_of(tmp_path / "run")) == (method == "dann")
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'id="domains"' in page
    assert "Target test accuracy" in page


def test_pixelda_shows_what_it_painted_and_an_unlabelled_target_is_said_to_be_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    scanner = tmp_path / "scanner"
    scanner.mkdir()
    for row in range(20):
        Image.fromarray(np.full((20, 20, 3), 9 * row, np.uint8)).save(scanner / f"{row}.png")
    words = ["--pixelda.width", "4", "--pixelda.blocks", "1", "--data.target", str(scanner)]
    assert main(["run", "mnistm-pixelda", *QUICK, *words, "--output", str(tmp_path / "run")]) == 0
    assert {"translation", "diversity", "losses", "features"} <= figures_of(tmp_path / "run")
    assert "accuracy on the target is unknown" in capsys.readouterr().out
    assert "Target test accuracy" not in (tmp_path / "run" / "report.html").read_text()
    assert set(read_json(tmp_path / "run" / "metrics.json")) == {"validation", "test", "baselines"}
