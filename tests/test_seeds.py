"""Several seeds: each an ordinary run, a summary that follows from them, and continuing where it was left."""

import json
import os
import re
import shutil
import signal
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from finesight import seeds
from finesight.cli import main
from finesight.errors import ConfigError
from finesight.report.seeds import spread_text, write_seeds
from tests import pictures

QUICK = [
    "--train.epochs", "2", "--model.name", "mlp", "--model.image_size", "16", "--evaluation.resamples", "100",
    "--precision", "fp32",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder(tmp_path_factory.mktemp("data") / "shapes", each=12)


@pytest.fixture(scope="module")
def words(images: Path) -> list[str]:
    return ["run", "classify", "--data.root", str(images), *QUICK]


@pytest.fixture(scope="module")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "three"
    assert main([*words, "--seeds", "3", "--seed", "4", "--output", str(output)]) == 0
    return output


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_spread_is_mean_and_sample_deviation_over_the_seeds_that_define_it() -> None:
    entries: list[Any] = [{"value": value, "low": 0.1, "high": 0.9, "n": 50} for value in (0.8, 0.9, 1.0)]
    found = seeds.spread([*entries, None, {"value": None, "low": None, "high": None, "n": 50}])
    assert found["mean"] == pytest.approx(0.9)
    assert found["sd"] == pytest.approx(0.1), "n - 1: with n it would be 0.0816"
    assert (found["min"], found["max"]) == (0.8, 1.0)
    assert found["values"] == [0.8, 0.9, 1.0, None, None]
    assert found["n"] == [50, 50, 50, None, 50]
    assert spread_text("accuracy", found) == "90.0 ± 10.0 %"
    assert spread_text("nll", found) == "0.9000 ± 0.1000"
    alone = seeds.spread(entries[:1])
    assert alone["sd"] is None
    assert spread_text("accuracy", alone) == "80.0 %"


def test_every_seed_is_an_ordinary_run_and_the_summary_follows_from_them(finished: Path) -> None:
    summary = read(finished / "seeds.json")
    assert summary["status"] == "finished"
    assert summary["seeds"] == [4, 5, 6]
    runs = [finished / f"seed-{seed}" for seed in (4, 5, 6)]
    metrics = [read(run / "metrics.json") for run in runs]
    for split in ("validation", "test"):
        assert summary["metrics"][split].keys() == metrics[0][split].keys()
        for name, spread in summary["metrics"][split].items():
            values = [each[split][name]["value"] for each in metrics]
            assert spread["values"] == values
            assert spread["sd"] == statistics.stdev(values)
            assert not {"low", "high"} & spread.keys()
    assert len({json.dumps(each["test"]) for each in metrics}) > 1, "other seeds give other numbers"
    majority = summary["metrics"]["baselines"]["majority class"]["test"]["accuracy"]
    assert majority["values"] == [each["baselines"]["majority class"]["test"]["accuracy"]["value"] for each in metrics]
    for seed, run in zip((4, 5, 6), runs, strict=True):
        recorded = read(run / "run.json")
        assert recorded["seeds"] == {"seed": seed}
        assert recorded["status"] == "finished"
        assert (run / "report.html").is_file()


def test_the_run_of_one_seed_is_what_its_recorded_command_gives(finished: Path, tmp_path: Path) -> None:
    command = read(finished / "seed-5" / "run.json")["command"].split()
    assert "--seeds" not in command
    assert command[-4:] == ["--seed", "5", "--output", str(finished / "seed-5")]
    assert main([*command[1:-1], str(tmp_path / "alone")]) == 0
    for name in ("history.jsonl", "metrics.json", "predictions.parquet"):
        assert (tmp_path / "alone" / name).read_bytes() == (finished / "seed-5" / name).read_bytes()


def test_the_page_shows_every_value_and_says_what_the_spread_is_and_is_not(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    summary = read(finished / "seeds.json")
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    accuracy = summary["metrics"]["test"]["accuracy"]
    for value in (*accuracy["values"], accuracy["min"], accuracy["max"]):
        assert f"{100 * value:.1f} %" in text
    assert f"{100 * accuracy['mean']:.1f} ± {100 * accuracy['sd']:.1f} %" in text
    assert summary["differing"] == ["train", "validation", "test"]
    assert "which samples are in train, validation and test" in text
    assert "test sets differ between the seeds" in text
    assert "It is not the interval of one run" in text
    for seed in (4, 5, 6):
        assert f'href="seed-{seed}/report.html"' in page
        assert (finished / f"seed-{seed}" / "report.html").is_file()
    assert not re.search(r"<script|https?://|<link|src=", page)


def test_with_a_given_test_split_the_page_does_not_claim_that_it_differs(finished: Path, tmp_path: Path) -> None:
    summary = read(finished / "seeds.json")
    write_seeds(summary | {"differing": ["train", "validation"]}, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "test sets differ" not in text
    assert "The test samples were the same for all seeds" in text
    write_seeds(summary | {"differing": []}, tmp_path / "page.html")
    assert "the spread is that of training alone" in (tmp_path / "page.html").read_text()


def test_resume_keeps_finished_seeds_runs_missing_ones_and_adds_more(finished: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "runs"))
    before = {path: path.stat().st_mtime_ns for path in output.glob("seed-[45]/*")}
    page = (output / "report.html").read_bytes()
    assert main(["run", "--resume", "--output", str(output)]) == 0
    assert (output / "report.html").read_bytes() == page
    shutil.rmtree(output / "seed-6")
    assert main(["run", "--resume", "--seeds", "4", "--output", str(output)]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    summary = read(output / "seeds.json")
    assert summary["seeds"] == [4, 5, 6, 7]
    values = summary["metrics"]["test"]["nll"]["values"]
    assert values[:3] == read(finished / "seeds.json")["metrics"]["test"]["nll"]["values"]
    assert len(set(values)) == 4


def test_ctrl_c_in_the_second_seed_exits_130_names_the_command_and_resumes_to_the_same_numbers(
    finished: Path, words: list[str], tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "runs"

    def interrupt() -> None:
        while not list((output / "seed-5").glob("checkpoints/step-*")):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt, daemon=True)
    watcher.start()
    assert main([*words, "--seeds", "3", "--seed", "4", "--train.save_every", "1", "--output", str(output)]) == 130
    watcher.join()
    assert f"Continue with: finesight run --resume --output {output}\n" in capsys.readouterr().err
    assert not (output / "seed-6").exists()
    assert read(output / "seeds.json")["status"] == "unfinished"
    assert main(["run", "--resume", "--output", str(output)]) == 0
    assert "Seed 4 (1 of 3): finished before, kept." in capsys.readouterr().out
    whole = read(finished / "seeds.json")
    again = read(output / "seeds.json")
    assert again["status"] == "finished"
    assert again["metrics"] == whole["metrics"]
    assert again["differing"] == whole["differing"]
    command = read(output / "seed-6" / "run.json")["command"].split()
    assert command[-4:] == ["--seed", "6", "--output", str(output / "seed-6")], "though continued without a recipe"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--train.lr", "0.5"], "train.lr: 0.001 -> 0.5"),
        (["--seed", "7"], "seed: 4 -> 7"),
        (["--seeds", "2"], "takes none away"),
        (["--seeds", "5", "--train.lr", "0.5"], "train.lr: 0.001 -> 0.5"),
    ],
)
def test_resume_refuses_what_would_be_other_runs(finished: Path, extra: list[str], message: str, capsys: Any) -> None:
    before = (finished / "seeds.json").read_bytes()
    assert main(["run", "--resume", "--output", str(finished), *extra]) == 2
    assert message in capsys.readouterr().err
    assert (finished / "seeds.json").read_bytes() == before


def test_a_used_folder_and_another_recipe_are_refused(
    finished: Path, words: list[str], tmp_path: Path, capsys: Any
) -> None:
    assert main([*words, "--seeds", "2", "--output", str(finished)]) == 2
    assert f"already holds runs with several seeds. Continue with: finesight run --resume --output {finished}" in (
        capsys.readouterr().err
    )
    assert main(["run", "cifar10-mlp", "--resume", "--output", str(finished)]) == 2
    assert "holds runs of 'classify'" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    assert main([*words, "--seeds", "2", "--output", str(tmp_path)]) == 2
    assert "not begun with --seeds" in capsys.readouterr().err
    single = finished / "seed-4"
    for given in (["run"], words):
        assert main([*given, "--resume", "--seeds", "3", "--output", str(single)]) == 2
        assert "holds a run of one seed" in capsys.readouterr().err
    assert not (single / "seeds.json").exists()


def test_a_run_of_another_seed_put_in_place_is_noticed(finished: Path, tmp_path: Path, capsys: Any) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "runs"))
    (output / "seed-4").rename(tmp_path / "aside")
    (output / "seed-5").rename(output / "seed-4")
    assert main(["run", "--resume", "--output", str(output)]) == 2
    assert "seed-4: holds another run" in capsys.readouterr().err


def test_seeds_are_not_added_on_changed_data(
    finished: Path, words: list[str], images: Path, tmp_path: Path, capsys: Any
) -> None:
    before = (finished / "seeds.json").read_bytes()
    extra = images / "disc" / "extra.png"
    extra.write_bytes((images / "square" / "000.png").read_bytes())
    try:
        assert main(["run", "--resume", "--seeds", "4", "--output", str(finished)]) == 2
    finally:
        extra.unlink()
    assert "the data changed since the run began" in capsys.readouterr().err
    assert (finished / "seeds.json").read_bytes() == before
    assert not (finished / "seed-7").exists()


def test_from_python_with_given_splits_in_which_nothing_differs(tmp_path: Path) -> None:
    given = pictures.folder(tmp_path / "given", each=8, splits=("train", "validation", "test"))
    options = {"data.root": given, "model.name": "mlp", "model.image_size": 16, "train.epochs": 1}
    found = seeds.run_seeds("classify", options, count=2, output=tmp_path / "runs")
    accuracies = [run.metrics["test"]["accuracy"]["value"] for run in found.runs]
    assert found.summary["metrics"]["test"]["accuracy"]["values"] == accuracies
    assert found.summary["differing"] == []
    with pytest.raises(ConfigError, match="2 or more"):
        seeds.run_seeds("classify", options, count=1, output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_several_processes_are_refused(words: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*words, "--seeds", "2", "--output", str(tmp_path / "runs")]) == 2
    assert "start the seeds one by one" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
