"""The command line end to end: a folder of images becomes a run, and every command works on it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import finesight
from finesight.cli import main
from finesight.errors import RunError
from finesight.run_folder import RunFolder
from tests import pictures

QUICK = [
    "--train.epochs", "2", "--model.image_size", "32", "--model.width", "8", "--evaluation.resamples", "100",
    "--precision", "fp32",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder(tmp_path_factory.mktemp("data") / "shapes", each=24)


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "first"
    assert main(["run", "classify", "--data.root", str(images), "--output", str(output), *QUICK]) == 0
    return output


def test_help_is_fast_and_imports_no_torch() -> None:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "finesight", "--help"], capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    assert done.returncode == 0
    assert "data check" in done.stdout
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "transformers", "datasets", "numpy", "pydantic", "matplotlib"}
    assert seconds < 2  # the bound is 0.4 s on a quiet machine, see `make bench`


def test_a_run_leaves_everything_the_documentation_promises(finished: Path) -> None:
    for name in (
        "config.yaml",
        "run.json",
        "history.jsonl",
        "metrics.json",
        "predictions.parquet",
        "report.html",
    ):
        assert (finished / name).stat().st_size > 0
    metrics = json.loads((finished / "metrics.json").read_text())
    entry = metrics["test"]["accuracy"]
    assert set(entry) == {"value", "low", "high", "n"}
    assert entry["low"] <= entry["value"] <= entry["high"]
    assert set(metrics["baselines"]) == {"majority class", "linear on colour histograms"}
    assert set(metrics["baselines"]["majority class"]["test"]["accuracy"]) == {"value", "low", "high", "n"}
    run = json.loads((finished / "run.json").read_text())
    expected = {
        "command", "versions", "git", "seeds", "threads", "hardware", "data", "timing", "peak_memory_bytes", "model",
    }  # fmt: skip
    assert expected <= set(run)
    assert run["status"] == "finished"
    rows = pq.read_table(finished / "predictions.parquet").to_pylist()
    assert set(rows[0]) == {"id", "split", "group", "reference", "prediction", "scores"}
    assert len({row["id"] for row in rows}) == len(rows)
    for figure in (
        "accuracy",
        "curves",
        "confusion",
        "reliability",
        "mistakes",
        "samples",
        "classes",
        "augmentation",
    ):
        assert (finished / "figures" / f"{figure}.png").is_file()
        assert (finished / "figures" / f"{figure}.svg").is_file()


def test_the_metrics_follow_from_the_predictions(finished: Path) -> None:
    rows = [row for row in pq.read_table(finished / "predictions.parquet").to_pylist() if row["split"] == "test"]
    accuracy = sum(row["reference"] == row["prediction"] for row in rows) / len(rows)
    metrics = json.loads((finished / "metrics.json").read_text())["test"]
    assert metrics["accuracy"]["value"] == pytest.approx(accuracy, abs=1e-12)
    assert metrics["accuracy"]["n"] == len(rows)


def test_f1_lies_between_precision_and_recall_in_every_row(finished: Path) -> None:
    """In S8's hand-typed report it did not, in 8 of 10 rows."""
    metrics = json.loads((finished / "metrics.json").read_text())["test"]
    for shape in pictures.SHAPES:
        precision, recall, f1 = (metrics[f"{name}/{shape}"]["value"] for name in ("precision", "recall", "f1"))
        assert min(precision, recall) <= f1 <= max(precision, recall)


def test_replay_gives_the_same_bits(finished: Path, capsys: Any) -> None:
    assert main(["replay", str(finished)]) == 0
    assert "bit for bit" in capsys.readouterr().out


def test_eval_gives_the_stored_numbers(finished: Path, capsys: Any) -> None:
    assert main(["eval", str(finished), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == json.loads((finished / "metrics.json").read_text())["test"]


def test_predict_knows_the_class_names_and_agrees_with_the_stored_predictions(
    finished: Path, images: Path, capsys: Any
) -> None:
    """S11 lost the class names on the way to its report."""
    rows = [row for row in pq.read_table(finished / "predictions.parquet").to_pylist() if row["split"] == "test"][:5]
    assert main(["predict", str(finished), *[str(images / row["id"]) for row in rows], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["prediction"] for entry in found] == [row["prediction"] for row in rows]
    assert set(found[0]["scores"]) == set(pictures.SHAPES)
    for entry, row in zip(found, rows, strict=True):
        assert list(entry["scores"].values()) == pytest.approx(row["scores"], abs=1e-5)


def test_python_interface(images: Path, tmp_path: Path) -> None:
    options = {
        "data.root": str(images),
        "train.max_steps": 2,
        "model.image_size": 32,
        "model.width": 8,
        "evaluation.resamples": 100,
    }
    run = finesight.run("classify", {**options, "output": str(tmp_path / "run")})
    assert run.path == tmp_path / "run"
    assert run.metrics["test"]["accuracy"]["n"] > 0
    assert finesight.load_run(run.path).predict(images / "disc" / "000.png")[0]["prediction"] in pictures.SHAPES


def test_compare_is_paired_and_a_run_does_not_differ_from_itself(finished: Path, capsys: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["compare", str(finished), str(finished), "--json", "--output", str(page)]) == 0
    pair = json.loads(capsys.readouterr().out)["pairs"][0]["metrics"]["accuracy"]
    assert (pair["difference"], pair["low"], pair["high"], pair["p"]) == (0, 0, 0, 1)
    assert page.stat().st_size > 0


def test_compare_refuses_different_test_sets(finished: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
    """S8 and S11 compared models that were tested on different images."""
    other = tmp_path / "other"
    words = [
        "run",
        "classify",
        "--data.root",
        str(images),
        "--output",
        str(other),
        "--seed",
        "1",
        "--train.max_steps",
        "1",
    ]
    assert main([*words, *QUICK]) == 0
    assert main(["compare", str(finished), str(other)]) == 2
    assert "tested on different samples" in capsys.readouterr().err


def test_the_test_labels_have_no_influence_on_training_or_selection(tmp_path: Path) -> None:
    """S8 chose the epoch on the test split: then other test labels would give another history."""
    root = pictures.folder(tmp_path / "data", each=12, splits=("train", "test"))
    words = ["run", "classify", "--data.root", str(root), *QUICK]
    assert main([*words, "--output", str(tmp_path / "a")]) == 0
    (root / "test" / "disc").rename(root / "test" / "aside")
    (root / "test" / "square").rename(root / "test" / "disc")
    (root / "test" / "aside").rename(root / "test" / "square")
    assert main([*words, "--output", str(tmp_path / "b")]) == 0
    assert (tmp_path / "a/history.jsonl").read_bytes() == (tmp_path / "b/history.jsonl").read_bytes()
    assert (tmp_path / "a/metrics.json").read_bytes() != (tmp_path / "b/metrics.json").read_bytes()


def test_a_folder_in_use_or_already_a_run_is_refused(finished: Path, images: Path, capsys: Any) -> None:
    words = ["run", "classify", "--data.root", str(images), "--output", str(finished), *QUICK]
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    hold = "import sys, time, pathlib; from finesight.run_folder import RunFolder; "
    hold += "run = RunFolder(pathlib.Path(sys.argv[1])); run.lock(); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(finished)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert main([*words, "--resume"]) == 2
    finally:
        holder.kill()
        holder.wait()
    assert re.search(rf"in use by process {holder.pid} on", capsys.readouterr().err)


def test_a_refused_second_lock_does_not_release_the_first(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.lock()
    with pytest.raises(RunError, match="in use"):
        second.lock()
    attempt = (
        "import sys, pathlib; from finesight.run_folder import RunFolder; RunFolder(pathlib.Path(sys.argv[1])).lock()"
    )
    done = subprocess.run([sys.executable, "-c", attempt, str(tmp_path / "run")], capture_output=True, text=True)
    first.unlock()
    assert "in use by process" in done.stderr


def test_resume_refuses_another_recipe(finished: Path, images: Path, capsys: Any) -> None:
    assert main(["run", "cifar10-mlp", "--resume", "--output", str(finished), "--data.root", str(images)]) == 2
    assert "holds a run of 'classify'" in capsys.readouterr().err
    assert main(["run", "classify", "--resume"]) == 2
    assert "say which run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--seed", "1"], ["--data.test", "0.5"], ["--data.splits", "new"], ["--data.group", "folder"]]
)
def test_eval_refuses_options_that_would_turn_training_samples_into_test_samples(
    finished: Path, words: list[str], capsys: Any
) -> None:
    assert main(["eval", str(finished), *words]) == 2
    assert "cannot change any more" in capsys.readouterr().err


def test_eval_measures_another_test_set_whole(finished: Path, tmp_path: Path, capsys: Any) -> None:
    other = pictures.folder(tmp_path / "other", each=7, seed=5)
    assert main(["eval", str(finished), "--data.root", str(other), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["accuracy"]["n"] == 21
    assert "trained on" not in printed.err
    (other / "disc").rename(other / "circle")
    assert main(["eval", str(finished), "--data.root", str(other)]) == 2
    assert "not trained on: circle" in capsys.readouterr().err
    assert main(["eval", str(finished), "--split", "train"]) == 2


def test_eval_says_that_the_run_has_learnt_from_images_of_another_test_set(
    finished: Path, images: Path, capsys: Any, caplog: Any
) -> None:
    assert main(["eval", str(finished), "--data.root", str(images), "--json"]) == 0
    printed = capsys.readouterr()
    tested = json.loads((finished / "metrics.json").read_text())["test"]["accuracy"]["n"]
    whole = json.loads(printed.out)["accuracy"]["n"]
    assert f"{whole - tested} of {whole} images are among those it was trained on" in printed.err + caplog.text


def test_predict_takes_one_array_as_one_image(finished: Path, images: Path) -> None:
    from PIL import Image

    run = finesight.load_run(finished)
    picture = Image.open(images / "disc" / "000.png")
    found = [run.predict(given) for given in (images / "disc" / "000.png", picture, np.asarray(picture))]
    assert [len(rows) for rows in found] == [1, 1, 1]
    assert found[0][0]["scores"] == found[1][0]["scores"] == found[2][0]["scores"]


def test_flag_problems_and_value_problems_come_together(images: Path, capsys: Any) -> None:
    words = ["--train.epoch", "2", "--train.lr", "-1", "--model.width", "wide", "--data.root", str(images)]
    assert main(["run", "classify", *words]) == 2
    printed = capsys.readouterr().err
    assert all(name in printed for name in ("--train.epoch:", "train.lr:", "--model.width:"))


def test_an_unknown_selection_metric_is_refused_before_training(images: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["run", "classify", "--data.root", str(images), "--output", str(tmp_path / "run"), *QUICK]
    assert main([*words, "--train.select", "acuracy"]) == 2
    assert "did you mean 'accuracy'" in capsys.readouterr().err


def test_resume_refuses_other_options_and_changed_data(
    finished: Path, images: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main(["run", "--resume", "--output", str(finished), "--train.lr", "0.5"]) == 2
    assert "train.lr: 0.001 -> 0.5" in capsys.readouterr().err
    extra = images / "disc" / "extra.png"
    extra.write_bytes((images / "disc" / "000.png").read_bytes())
    try:
        assert main(["run", "--resume", "--output", str(finished)]) == 2
        assert "the data changed" in capsys.readouterr().err
    finally:
        extra.unlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum"], "did you mean 'run'"),
        (["run", "classfy", "--data.root", "x"], "did you mean 'classify'"),
        (["run", "classify"], "data.root: required"),
        (["run", "classify", "--data.root", "no/such/folder"], "no/such/folder"),
        (["run", "classify", "--data.rot", "x"], "did you mean 'data.root'"),
        (["run", "classify", "--train.epochs", "-1", "--train.lr", "-1"], "train.epochs"),
        (["run", "classify", "--train.selection_split", "test"], "must not choose the epoch"),
        (["eval", "no/run"], "not a run folder"),
        (["predict", "no/run", "a.png"], "not a run folder"),
        (["compare", "a"], "two runs or more"),
        (["replay"], "required"),
        (["data", "chek", "x"], "data check PATH"),
    ],
)
def test_bad_input_is_one_clear_error_with_code_2_and_leaves_nothing(
    words: list[str], message: str, capsys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_predict_on_a_broken_file_names_it(finished: Path, tmp_path: Path, capsys: Any) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    assert main(["predict", str(finished), str(broken)]) == 2
    assert "broken.jpg" in capsys.readouterr().err


def test_list_names_every_recipe(capsys: Any) -> None:
    assert main(["list", "--json"]) == 0
    found = {recipe["name"] for recipe in json.loads(capsys.readouterr().out)}
    assert {
        "cifar10-mlp",
        "cifar10-beit",
        "tomato-vit64",
        "tomato-vit256",
        "tomato-inception",
        "classify",
    } <= found


def test_ctrl_c_with_workers_saves_exits_130_and_resumes(finished: Path, images: Path, tmp_path: Path) -> None:
    """Ctrl-C goes to the whole process group, so to the loader workers too."""
    output = tmp_path / "run"
    words = ["run", "classify", "--data.root", str(images), "--output", str(output), *QUICK]
    words += ["--train.workers", "2", "--train.save_every", "1", "--train.batch_size", "4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "finesight", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list((output / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert f"--resume --output {output}" in errors
    assert main(["run", "--resume", "--output", str(output)]) == 0
    whole = ["run", "classify", "--data.root", str(images), "--output", str(tmp_path / "whole"), *QUICK]
    assert main([*whole, "--train.batch_size", "4"]) == 0
    assert (output / "history.jsonl").read_bytes() == (tmp_path / "whole" / "history.jsonl").read_bytes()
    assert (output / "predictions.parquet").read_bytes() == (tmp_path / "whole" / "predictions.parquet").read_bytes()


def test_two_processes_give_the_same_run(images: Path, tmp_path: Path) -> None:
    """gloo on the CPU: the same losses to 1e-6, the same accuracy exactly, each sample counted once."""
    words = [
        "run", "classify", "--data.root", str(images), "--precision", "fp32", "--model.name", "mlp",
        "--model.dropout", "0", "--model.image_size", "32", "--train.epochs", "2", "--train.batch_size", "10",
        "--evaluation.resamples", "100", "--train.optimizer", "sgd", "--train.lr", "0.01",
    ]  # fmt: skip
    assert main([*words, "--output", str(tmp_path / "one")]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    torchrun += ["-m", "finesight"]
    done = subprocess.run([*torchrun, *words, "--output", str(tmp_path / "two")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for a, b in zip(one, two, strict=True):
        assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], abs=1e-6)
        assert a["validation"]["accuracy"] == b["validation"]["accuracy"]
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text())["test"] for name in ("one", "two")]
    assert metrics[0]["accuracy"] == metrics[1]["accuracy"]
    rows = [pq.read_table(tmp_path / name / "predictions.parquet") for name in ("one", "two")]
    assert rows[0]["id"].equals(rows[1]["id"])
    done = subprocess.run([*torchrun, "eval", str(tmp_path / "one"), "--json"], capture_output=True, text=True)
    assert json.loads(done.stdout) == metrics[0], "the same weights give the same metrics exactly"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1"], "--seeds: '1' is not a number of seeds"),
        (["--seeds", "x"], "--seeds: 'x' is not a number of seeds"),
        (["--seeds", "-3"], "--seeds: '-3' is not"),
        (["--seeds"], "--seeds: a value is missing"),
        (["--seeds=2", "--train.lr", "-1"], "train.lr: input should be greater than 0"),
        (["--seeds", "2", "--data.root", "no/such/folder"], "no/such/folder"),
        (["--out", "x"], "--out: unknown option; did you mean 'output'?"),
        (["--resum"], "--resum: unknown option; did you mean 'resume'?"),
        (["--sed", "3"], "--sed: unknown option; did you mean 'seed'?"),
        (["--wings", "3"], "--wings: unknown option.\n"),
    ],
)
def test_a_bad_flag_of_run_is_one_clear_error_and_leaves_nothing(
    words: list[str], message: str, images: Path, capsys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "classify", "--data.root", str(images), *QUICK, *words]) == 2
    assert message in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.name != "runs"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "--help"], ["finesight eval RUN", "--split", "--data.root"]),
        (["eval", "runs/a", "-h"], ["finesight eval RUN"]),
        (["predict", "--help"], ["finesight predict", "image files", "--json"]),
        (["compare", "--help"], ["finesight compare", "two run folders or more", "--output"]),
        (["replay", "--help"], ["finesight replay", "bit for bit"]),
        (["data", "check", "--help"], ["finesight data check", "exit code 1", "--group TEXT", "--splits"]),
        (["data", "--help"], ["finesight data check"]),
        (["demo", "--help"], ["--domains", "--output"]),
        (["list", "--help"], ["--json"]),
        (["run", "classify", "--help"], ["--seeds INTEGER", "--resume", "--train.lr"]),
        (["--help"], ["--seeds N", "--domains"]),
    ],
)
def test_every_command_has_help(words: list[str], said: list[str], capsys: Any) -> None:
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in said), printed
    assert "--root" not in printed


def test_the_demo_of_domains_refuses_a_used_folder_before_it_trains(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "pixelda").mkdir()
    assert main(["demo", "--domains", "--output", str(tmp_path)]) == 2
    assert "pixelda: is there already" in capsys.readouterr().err
    assert not (tmp_path / "source-only").exists()


def test_the_demo_of_domains_trains_both_on_the_same_data_and_compares_them(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    from finesight import recipes

    name, base = recipes.read("demo-domains")
    base["train"] |= {"epochs": 1}
    base["data"] |= {"limit_train": 40, "limit_validation": 20, "limit_test": 30}
    base["pixelda"] |= {"width": 4, "blocks": 1}
    base["evaluation"] = {"resamples": 100}
    monkeypatch.setattr(recipes, "read", lambda recipe: {"demo-domains": (name, base)}[recipe])
    assert main(["demo", "--domains", "--output", str(tmp_path / "both")]) == 0
    printed = capsys.readouterr().out
    runs = [tmp_path / "both" / method for method in ("source-only", "pixelda")]
    stamps = [json.loads((run / "run.json").read_text())["data"]["fingerprints"] for run in runs]
    assert stamps[0] == stamps[1]
    values = [json.loads((run / "metrics.json").read_text())["test"]["accuracy"]["value"] for run in runs]
    for run, value in zip(runs, values, strict=True):
        assert re.search(rf"{run.name} +{value:.4f}  \[", printed)
        assert f"Report of {run.name}: {run / 'report.html'}" in printed
        assert (run / "report.html").is_file()
    assert f"pixelda - source-only: {values[1] - values[0]:+.4f} [" in printed
    assert "top_5_accuracy (" not in printed, "only the accuracy is compared in the console"
    assert "p = " in (tmp_path / "both" / "comparison.html").read_text()


def test_sigterm_in_a_run_of_seeds_names_the_command_that_continues_all_of_them(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "several"
    words = ["run", "classify", "--data.root", str(images), "--output", str(output), "--seeds", "2", *QUICK]
    process = subprocess.Popen([sys.executable, "-m", "finesight", *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(output.glob("seed-0/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.endswith(f"Continue with: finesight run --resume --output {output}\n")
    assert "Traceback" not in errors


def test_the_command_line_leaves_the_handlers_of_its_process_alone() -> None:
    def own(_number: int, _frame: Any) -> None: ...

    before = signal.signal(signal.SIGTERM, own)
    try:
        assert main(["list"]) == 0
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
