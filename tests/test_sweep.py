import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from finesight import seeds, stress_table, sweep
from finesight.attacks import protocol
from finesight.cli import main
from finesight.errors import ConfigError
from finesight.metrics import bootstrap
from finesight.metrics.means import MeanMetric
from finesight.models import resnet20
from finesight.run_folder import RunFolder
from tests.models import folders

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


OPTIONS = {
    "norm": "linf", "seed": 0, "iters": 20, "step": None, "restarts": 1, "auto_iters": 100, "queries": 5000,
}  # fmt: skip
HITS = np.random.default_rng(0).random((2, 40)) < 0.7


def stressed(path: Path, right: np.ndarray = HITS[0], group: str = "{}", surrogate: str = "a", **changed: Any) -> Path:
    """A run folder with as much of a stress test as a comparison reads; right: of each image, under every attack."""
    (path / "attack").mkdir(parents=True)
    (path / "config.yaml").write_text("task: classification\n")
    (path / "run.json").write_text(json.dumps({"model": {"trainable": 1, "total": 2}}))
    kinds = {"clean": "clean", "transfer eps 8/255": "transfer", "pgd eps 8/255": "pgd", "auto eps 8/255": "auto"}
    entry = {"value": right.mean(), "low": None, "high": None, "n": len(right)}
    conditions = {name: {"kind": kind, "eps": 8 / 255, "accuracy": entry} for name, kind in kinds.items()}
    about = {"options": OPTIONS | changed, "conditions": conditions, "resolution": {"attacked": 32},
             "surrogate": {"name": "r.th", "weights": surrogate}}  # fmt: skip
    (path / "attack" / "attack.json").write_text(json.dumps(about))
    said = ["cat" if hit else "dog" for hit in right]
    rows = {"id": [f"{k}" for k in range(len(right))], "group": [group.format(k // 4) for k in range(len(right))],
            "reference": ["cat"] * len(right), **dict.fromkeys(kinds, said)}  # fmt: skip
    pq.write_table(pa.table(rows), path / "attack" / "predictions.parquet")
    return path


@pytest.mark.parametrize(
    ("changed", "left"),
    [
        ({}, ["clean", "transfer", "pgd", "auto"]),
        ({"iters": 50}, ["clean", "auto"]),
        ({"restarts": 5}, ["clean", "transfer", "auto"]),
        ({"auto_iters": 20}, ["clean", "transfer", "pgd"]),
        ({"surrogate": "b"}, ["clean", "pgd", "auto"]),
        ({"seed": 1}, ["clean"]),
    ],
)
def test_attacks_with_other_options_are_not_compared(changed: Any, left: list[str], tmp_path: Path) -> None:
    paths = [stressed(tmp_path / "a"), stressed(tmp_path / "b", **changed)]
    found = stress_table.table(paths, ["a", "b"])
    assert [name.partition(" ")[0] for name in found["conditions"]] == left
    assert list(found["pairs"][0]["accuracy"]) == found["conditions"]
    assert len(found["left_out"]) == 4 - len(left)
    for sentence in found["left_out"]:
        assert next(iter(changed)) in sentence
        assert sentence in "\n".join(stress_table.lines(found))


def test_a_run_that_was_not_attacked_is_named(tmp_path: Path) -> None:
    paths = [stressed(tmp_path / "a"), stressed(tmp_path / "b")]
    (paths[1] / "attack" / "attack.json").unlink()
    (line,) = stress_table.lines(stress_table.table(paths, ["a", "b"]))
    assert "b: not attacked" in line
    (paths[0] / "attack" / "attack.json").unlink()
    assert stress_table.lines(stress_table.table(paths, ["a", "b"])) == []


def test_whole_groups_are_resampled(tmp_path: Path) -> None:
    """Four photographs of one plant that are right or wrong together are no four samples."""
    right = [np.repeat(part, 4) for part in HITS]
    alone = [stressed(tmp_path / f"alone-{k}", part) for k, part in enumerate(right)]
    for path in alone:
        rows = pq.read_table(path / "attack" / "predictions.parquet").to_pydict()
        pq.write_table(pa.table(rows | {"group": rows["id"]}), path / "attack" / "predictions.parquet")
    grouped = [stressed(tmp_path / f"grouped-{k}", part, "plant {}") for k, part in enumerate(right)]
    found = [stress_table.table(paths, ["a", "b"])["pairs"][0]["accuracy"]["clean"] for paths in (alone, grouped)]
    assert found[0]["difference"] == found[1]["difference"] == pytest.approx(right[1].mean() - right[0].mean())
    widths = [entry["high"] - entry["low"] for entry in found]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.2)
    metric = MeanMetric(["accuracy"], "accuracy")
    both = [metric.statistics(part[:, None].astype(float)) for part in right]
    names = [f"plant {k // 4}" for k in range(160)]
    expected = bootstrap.paired(metric, *both, groups=names)["accuracy"]
    assert (found[1]["low"], found[1]["high"]) == pytest.approx((expected["low"], expected["high"]), abs=0.03)


@pytest.fixture(scope="module")
def clip_words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a sweep of runs that are attacked when they are done, which take a second each."""
    place, classes = tmp_path_factory.mktemp("clip"), ["cat", "frog"]
    folders.clip_folder(place / "model", [f"a photo of a {name}." for name in classes])
    draws, arrays = np.random.default_rng(0), {"classes": np.array(classes)}
    for split in ("train", "validation", "test"):
        arrays[f"{split}_labels"] = np.arange(8) % 2
        noise = draws.integers(0, 60, (8, 16, 16, 3)) + 90 * (np.arange(8) % 2)[:, None, None, None]
        arrays[f"{split}_images"] = noise.astype(np.uint8)
    np.savez(place / "images.npz", **arrays)
    attack = ["--attack.eps", "8/255", "--attack.iters", "1", "--attack.auto", "0", "--attack.steps=",
              "--attack.corruptions", "none"]  # fmt: skip
    return ["--data.root", str(place / "images.npz"), "--data.size", "16", "--model.name", str(place / "model"),
            "--data.limit_train", "none", "--evaluation.resamples", "100", *attack]  # fmt: skip


def test_a_sweep_stopped_in_an_attack_attacks_that_run_again(
    clip_words: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "sweep"
    words = ["sweep", "clip-zero-shot", "clip-zero-shot:seed=1", "--output", str(output), *clip_words]

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(protocol, "measure", stop)
    assert main(words) == 130
    first = output / "clip-zero-shot"
    assert json.loads((first / "run.json").read_text())["status"] == "finished"
    assert not seeds.experiment.is_finished(RunFolder(first))
    monkeypatch.undo()
    before = (first / "metrics.json").stat().st_mtime_ns
    assert main(words) == 0
    assert (first / "metrics.json").stat().st_mtime_ns == before
    for name in ("clip-zero-shot", "clip-zero-shot-seed-1"):
        assert (output / name / "attack" / "attack.json").is_file()
    assert "all but its attack" in capsys.readouterr().out
    # Repeated, it does nothing; with other options it would have to, and says so before anything else.
    for more, said in (
        (["--evaluation.level", "0.9"], "evaluation.level: 0.95 -> 0.9"),
        (["--attack.iters", "2"], "attack.iters: 1 -> 2"),
    ):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err
    assert main(words) == 0
    assert capsys.readouterr().out.count("has finished already") == 2
    # A run alone says the same when it is continued.
    assert main(["run", "--resume", "--output", str(first), "--attack.iters", "2"]) == 2
    assert "attack.iters: 1 -> 2" in capsys.readouterr().err


def test_an_option_that_one_recipe_does_not_take_is_said_to_be_its(
    clip_words: list[str], tmp_path: Path, capsys: Any
) -> None:
    words = ["sweep", "clip-tecoa", "clip-zero-shot", "--output", str(tmp_path / "new"), *clip_words]
    assert main([*words, "--train.epochs", "1"]) == 2
    said = capsys.readouterr().err
    assert "clip-zero-shot: " in said
    assert "clip-tecoa" not in said
    assert "RECIPE:OPTION=VALUE" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--attack.surrogate", "/nothere.th"], "nothere.th: no such file"),
        (["--attack.corruptions", "gausian"], "'gausian' is unknown"),
    ],
)
def test_an_impossible_attack_is_refused_before_any_training(
    clip_words: list[str], more: list[str], said: str, tmp_path: Path, capsys: Any
) -> None:
    for words in (["run", "clip-zero-shot"], ["sweep", "clip-zero-shot", "clip-zero-shot:seed=1"]):
        assert main([*words, "--output", str(tmp_path / "new"), *clip_words, *more]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def test_a_surrogate_without_the_classes_is_refused_before_any_training(
    clip_words: list[str], tmp_path: Path, capsys: Any
) -> None:
    torch.save(resnet20(10).state_dict(), tmp_path / "cifar.th")
    state = RunFolder(tmp_path / "new")
    words = ["run", "clip-zero-shot", "--output", str(state.path), *clip_words]
    arrays = dict(np.load(clip_words[1]))
    np.savez(tmp_path / "other.npz", **(arrays | {"classes": np.array(["cat", "tomato"])}))
    words[words.index(clip_words[1])] = str(tmp_path / "other.npz")
    assert main([*words, "--attack.surrogate", str(tmp_path / "cifar.th")]) == 2
    assert "does not know the class tomato" in capsys.readouterr().err.replace("'", "")
    assert not state.exists()


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
