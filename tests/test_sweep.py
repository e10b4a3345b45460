import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesight import stress_table, sweep
from finesight.cli import main
from finesight.errors import ConfigError

QUICK = ["--data.root=sklearn:digits", "--data.limit_train=60", "--data.limit_test=40", "--data.limit_validation=20"]
QUICK += ["--train.epochs=1", "--evaluation.resamples=100", "--model.width=4"]
ATTACK = ["--eps", "8/255", "--iters", "2", "--auto", "0", "--steps=", "--corruptions", "none", "--images", "30"]


def test_words_become_recipe_flags_and_folder() -> None:
    item = sweep.parse("clip-vpt:train.epochs=5;adapt.prompts=20")
    assert (item.recipe, item.flags) == ("clip-vpt", ["--train.epochs=5", "--adapt.prompts=20"])
    assert item.name == "clip-vpt-epochs-5-prompts-20"
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        sweep.parse("clip-vpt:train.epochs")


def test_runs_compares_and_does_nothing_twice(tmp_path: Path, capsys: Any) -> None:
    words = ["sweep", "classify", "classify:train.lr=1e-2", "--output", str(tmp_path), *QUICK]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "classify-lr-1e-2 - classify:" in shown
    assert "Under attack" not in (tmp_path / "comparison.html").read_text()
    for name in ("classify", "classify-lr-1e-2"):
        assert main(["attack", str(tmp_path / name), *ATTACK]) == 0
    before = (tmp_path / "classify" / "metrics.json").stat().st_mtime_ns
    assert main(words) == 0
    assert (tmp_path / "classify" / "metrics.json").stat().st_mtime_ns == before
    assert "has finished already" in capsys.readouterr().out
    assert "Under attack" in (tmp_path / "comparison.html").read_text()
    found = stress_table.table([tmp_path / "classify", tmp_path / "classify-lr-1e-2"], ["a", "b"])
    reports = [json.loads((tmp_path / run["name"] / "attack/attack.json").read_text())["conditions"] for run in
               ({"name": "classify"}, {"name": "classify-lr-1e-2"})]  # fmt: skip
    assert "clean" in found["conditions"]
    for condition in found["conditions"]:
        values = [report[condition]["accuracy"]["value"] for report in reports]
        pair = found["pairs"][0]["accuracy"][condition]
        assert [run["accuracy"][condition]["value"] for run in found["runs"]] == values
        assert pair["difference"] == pytest.approx(np.diff(values)[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["classify"], "two or more"),
        (["classify", "classify"], "differ"),
        (["classify", "clasify"], "classify"),
        (["classify", "classify:train.lrr=3"], r"train\.lr"),
        (["classify", "classify:train.lr=nothing"], r"train\.lr"),
    ],
)
def test_all_is_checked_before_the_first_run(words: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["sweep", *words, "--output", str(tmp_path / "sweep"), *QUICK]) == 2
    captured = capsys.readouterr()
    assert re.search(said, captured.err)
    assert not (tmp_path / "sweep").exists()
