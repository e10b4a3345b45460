"""The report of a domain adaptation run: its section, its figures' numbers, its alarms."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from finesight.cli import main
from finesight.files import read_json
from finesight.report import domain_charts, domains, html

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
    assert "the accuracy on it is unknown" in capsys.readouterr().out
    assert "Target test accuracy" not in (tmp_path / "run" / "report.html").read_text()
    assert set(read_json(tmp_path / "run" / "metrics.json")) == {"validation", "test", "baselines"}


def history(oracle: list[float], score: list[float]) -> list[dict[str, Any]]:
    best = int(np.argmax(score))
    return [
        {
            "epoch": number + 1,
            "train": {"told_apart": 0.7},
            "validation": {"oracle_accuracy": seen, "adaptation_score": value},
            "best": number == best,
        }
        for number, (seen, value) in enumerate(zip(oracle, score, strict=True))
    ]


def test_the_oracle_is_the_first_of_the_best_epochs() -> None:
    assert domain_charts.oracle_epoch(history([0.5, 0.9, 0.9], [1, 2, 3])) == (2, 0.9)
    assert domain_charts.oracle_epoch([{"epoch": 1, "validation": {}}]) is None


def entry(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 100}


def test_alarms_of_a_wrong_choice_a_lost_generator_and_a_trivial_baseline() -> None:
    task: Any = SimpleNamespace(labelled_target=True)
    metrics = {"test": {"accuracy": entry(0.6)}, "baselines": {"majority class": {"test": {"accuracy": entry(0.1)}}}}
    assert domains.alarms(task, metrics, history([0.6, 0.62], [0.7, 0.6])) == []
    (alarm,) = domains.alarms(task, metrics, history([0.6, 0.8], [0.7, 0.6]))
    assert "Epoch 2 would have been 20.0 points better" in alarm
    lost = history([0.6], [0.7])
    lost[0]["train"]["told_apart"] = 0.999
    assert any("the generator lost" in text for text in domains.alarms(task, metrics, lost))
    metrics["test"]["accuracy"] = entry(0.1)
    assert any("Not clearly better" in text for text in domains.alarms(task, metrics, history([0.1], [0.7])))


def test_the_spread_of_images_is_their_mean_distance_on_the_unit_range() -> None:
    black, white = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    assert domains.spread(torch.cat([black, white])) == pytest.approx(1)
    assert domains.spread(torch.cat([black, black, white])) == pytest.approx(2 / 3)


def test_separability_is_a_half_for_equal_domains_and_one_for_distant_ones() -> None:
    points = np.random.default_rng(0).normal(size=(300, 8))
    of_target = np.arange(300) % 2 == 1
    assert domains.separability(points, of_target) == pytest.approx(0.5, abs=0.12)
    assert domains.separability(points + 9 * of_target[:, None], of_target) == pytest.approx(1)


def test_a_run_within_one_domain_has_no_such_section() -> None:
    from finesight.report import domain_section
    from finesight.report.contents import Contents
    from finesight.run_folder import RunFolder

    found = Contents(RunFolder(Path("nowhere")))
    found.metrics = {"test": {}, "validation": {}}
    assert domain_section.section(found) is None
    assert html.headline(found) is None
