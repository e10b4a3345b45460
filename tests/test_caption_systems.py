"""S2 end to end through the command line, on few real radiographs, and the mistakes of its report."""

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from finesight import config
from finesight.cli import main
from finesight.models.captioner import CaptionerConfig
from finesight.run_folder import RunFolder
from finesight.tasks.caption_controls import FREQUENT, NEAREST, SHUFFLED
from finesight.tasks.captioning import CaptioningConfig
from finesight.tasks.generation import GenerationOptions
from finesight.train import Loop
from tests.models.test_captioner import save_gpt2, save_vit

FEW = [
    "--data.limit_train", "24", "--data.limit_validation", "8", "--data.limit_test", "10",
    "--evaluation.resamples", "100", "--generation.max_tokens", "16", "--model.longest", "48",
]  # fmt: skip


def read(output: Path, name: str) -> Any:
    return json.loads((output / name).read_text())


def words_of(real_data: Path, folder: Path) -> list[str]:
    """`rocov2-captioner` from local folders, a few steps."""
    if not (folder / "vit").is_dir():
        save_vit(folder / "vit")
        save_gpt2(folder / "gpt2")
    name = f"{folder / 'vit'}+{folder / 'gpt2'}"
    return ["run", "rocov2-captioner", "--data.root", str(real_data / "radiology"), "--model.name", name, *FEW]


@pytest.fixture(scope="module")
def trained(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert main([*words_of(real_data, folder), "--train.epochs", "2", "--output", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def table(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's CSV beside a dozen real radiographs."""
    folder = tmp_path_factory.mktemp("table")
    with zipfile.ZipFile(real_data / "radiology" / "train_images.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith((".jpg", ".png"))][:20]
        for number, name in enumerate(names):
            (folder / f"{number:02d}{Path(name).suffix}").write_bytes(archive.read(name))
    rows = [f'{path.name},"Chest <b>x-ray</b>, number {n}"' for n, path in enumerate(sorted(folder.iterdir()))]
    (folder / "captions.csv").write_text("\n".join(["file,text", *rows]))
    return folder / "captions.csv"


def test_every_score_has_an_interval_and_three_controls_beside_it(trained: Path) -> None:
    metrics = read(trained, "metrics.json")
    assert set(metrics["baselines"]) == {FREQUENT, NEAREST, SHUFFLED}
    scores = {"cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor"}
    for split, count in (("test", 10), ("validation", 8)):
        assert set(metrics[split]) == {*scores, "nll"}
        for entry in metrics[split].values():
            assert entry["n"] == count
            assert entry["low"] <= entry["value"] <= entry["high"]
    for splits in metrics["baselines"].values():
        assert all(splits["test"][name]["value"] is not None for name in scores)
        assert splits["test"]["nll"]["value"] is None  # a text without a model has no likelihood
    history = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert metrics["validation"]["nll"]["value"] == pytest.approx(min(row["validation"]["loss"] for row in history))


def test_the_scores_are_those_of_the_written_captions(trained: Path) -> None:
    """Report 000 scored teacher-forced words: an untrained model that reaches high scores has read the answer."""
    from finesight.metrics import captions

    rows = [row for row in pq.read_table(trained / "predictions.parquet").to_pylist() if row["split"] == "test"]
    assert len(rows) == 10
    assert not any(row["caption"] == row["reference"] for row in rows)
    assert not any("endoftext" in row["caption"] for row in rows)
    again = captions.score({row["id"]: row["caption"] for row in rows}, {row["id"]: [row["reference"]] for row in rows})
    stored = read(trained, "metrics.json")["test"]
    for name in ("cider", "bleu_1", "bleu_4", "rouge_l", "meteor"):
        assert again[name]["value"] == pytest.approx(stored[name]["value"], abs=1e-9)


def test_the_audit_is_kept_and_the_encoder_cached(trained: Path) -> None:
    run = read(trained, "run.json")
    assert run["model"]["frozen_random"] == []
    assert any("crossattention.q_attn" in name for name in run["model"]["adapted"])
    assert run["model"]["audit"][0].startswith("Trained: ")
    assert run["conditions"]["caption metrics"]
    assert not any(name.startswith("net.encoder") for name in run["model"]["adapted"])


def test_the_report_shows_captions_controls_and_attention(trained: Path) -> None:
    text = (trained / "report.html").read_text(encoding="utf-8")
    for name in ("quality", "curves", "captions", "extremes", "lengths", "attention"):
        assert f'id="figure-{name}"' in text
    for control in (FREQUENT, NEAREST, SHUFFLED):
        assert control in text
    assert 'id="classes"' not in text


def test_the_setting_of_the_report_is_refused_unless_overridden(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words_of(real_data, tmp_path), "--adapt.modules_to_save", "none", "--output", str(tmp_path / "run")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "crossattention.q_attn" in said
    assert "--adapt.modules_to_save crossattention,ln_cross_attn" in said
    assert not (tmp_path / "run").exists()
    words += ["--adapt.allow_random_frozen", "true", "--train.max_steps", "1", "--train.epochs", "1"]
    assert main(words) == 0
    assert any("Random and never trained" in line for line in read(tmp_path / "run", "run.json")["model"]["audit"])


def test_eval_predict_and_compare(trained: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval", str(trained), "--json"]) == 0
    text = capsys.readouterr().out
    again, stored = json.loads(text[text.index("{") :]), read(trained, "metrics.json")["test"]
    assert {name: entry["value"] for name, entry in again.items()} == {n: entry["value"] for n, entry in stored.items()}
    images = [str(path) for path in sorted(table.parent.iterdir()) if path.suffix != ".csv"][:2]
    assert main(["predict", str(trained), *images, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["input"] for row in rows] == images
    assert all(row["caption"] for row in rows)
    assert main(["predict", str(trained), images[0]]) == 0
    assert capsys.readouterr().out == f"{images[0]}: {rows[0]['caption']}\n"
    assert main(["compare", str(trained), str(trained)]) == 0
    assert "no clear difference" in capsys.readouterr().out


def test_another_test_set_is_measured_whole(trained: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval", str(trained), "--data.root", str(table), "--json"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text[text.index("{") :])["cider"]["n"] == 20


def test_another_test_set_may_have_other_columns(
    trained: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = table.with_name("other.csv")
    other.write_text("file;befund;text\n00.jpg;Chest, one;\n01.jpg;Chest, two;x\n")
    words = ["eval", str(trained), "--data.root", str(other), "--json"]
    assert main([*words, "--data.caption_column", "befund"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text[text.index("{") :])["cider"]["n"] == 2
    coco = {"images": [{"id": 1, "file_name": "00.jpg"}], "annotations": [{"image_id": 1, "caption": "Chest"}]}
    (table.parent / "notes").mkdir()
    (table.parent / "notes" / "coco.json").write_text(json.dumps(coco))
    words = ["eval", str(trained), "--data.root", str(table.parent / "notes" / "coco.json"), "--json"]
    assert main([*words, "--data.image_folder", str(table.parent)]) == 0
    text = capsys.readouterr().out
    assert json.loads(text[text.index("{") :])["cider"]["n"] == 1


# ---- other conditions -----------------------------------------------------------------------------


def with_wordnet(trained: Path, folder: Path) -> Path:
    """A copy of a run that says it was scored with a WordNet that is not here."""
    shutil.copytree(trained, folder)
    run = read(folder, "run.json")
    known = run["conditions"]["caption metrics"]
    parts = ["meteor (exact+stem+synonym, WordNet 9.9)" if "meteor" in part else part for part in known.split("; ")]
    run["conditions"]["caption metrics"] = "; ".join(parts[:-1] + ["finesight 0.0.1"])
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_another_meteor_is_told_by_eval_and_refused_by_resume(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """With synonyms or without: the two numbers have one name, and stand for different things."""
    assert main(["eval", str(trained), "--json"]) == 0
    assert "measured otherwise" not in caplog.text
    folder = with_wordnet(trained, tmp_path / "run")
    assert main(["eval", str(folder), "--json"]) == 0
    assert "meteor (exact+stem+synonym, WordNet 9.9) -> meteor (exact+stem" in caplog.text
    assert "finesight 0.0.1" not in caplog.text
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["run", "--resume", "--output", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "the run would be measured otherwise than it was so far" in said
    assert "WordNet 9.9" in said
    changed = {path.name for path, time in before.items() if path.is_file() and path.stat().st_mtime_ns != time}
    assert changed <= {".lock"}


def test_a_replay_is_bit_identical(trained: Path) -> None:
    assert main(["replay", str(trained)]) == 0


def test_a_continued_run_ends_like_one_that_was_never_stopped(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "cut")
    cut = RunFolder(tmp_path / "cut")
    shutil.rmtree(sorted(cut.checkpoints.glob("step-*"))[-1])
    for name in ("metrics.json", "predictions.parquet", "report.html"):
        (cut.path / name).unlink()
    assert main(["run", "--resume", "--output", str(cut.path)]) == 0
    assert read(cut.path, "metrics.json") == read(trained, "metrics.json")


def test_a_run_killed_within_an_epoch_ends_like_one_that_was_not(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that is random: order, augmentation, dropout, and words drawn for the captions."""
    drawn = [
        "--train.epochs",
        "2",
        "--train.save_every",
        "2",
        "--augment.flip",
        "0.5",
        "--generation.method",
        "nucleus",
    ]
    words = [*words_of(real_data, tmp_path), "--train.accumulation", "2", *drawn]
    assert main([*words, "--output", str(tmp_path / "whole")]) == 0
    step, done = Loop.step, []

    def dying(loop: Any, batch: Any) -> Any:
        if loop.state.step == 9:  # the second epoch begins at 6
            raise KeyboardInterrupt
        done.append(loop.state.step)
        return step(loop, batch)

    monkeypatch.setattr(Loop, "step", dying)
    assert main([*words, "--output", str(tmp_path / "cut")]) == 130
    monkeypatch.setattr(Loop, "step", step)
    newest = sorted(RunFolder(tmp_path / "cut").checkpoints.glob("step-*"))[-1].name
    assert int(newest.removeprefix("step-")) == 8
    assert done == list(range(9))
    assert main(["run", "--resume", "--output", str(tmp_path / "cut")]) == 0
    for name in ("metrics.json", "history.jsonl"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()
    rows = [pq.read_table(tmp_path / name / "predictions.parquet") for name in ("cut", "whole")]
    assert rows[0].equals(rows[1])


def test_a_users_table_with_a_small_captioner(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From scratch: the tokenizer is learnt, and comes back with the run."""
    words = ["run", "caption", "--data.root", str(table), "--train.epochs", "4", "--evaluation.resamples", "100"]
    words += ["--precision", "fp32", "--generation.max_tokens", "8", "--train.batch_size", "2"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    run = read(tmp_path / "run", "run.json")
    assert any("tokenizer was learnt" in note for note in run["model"]["notes"])
    assert sum(counts["image"] for counts in run["data"]["counts"].values()) == 20
    rows = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pylist()
    captions = {str(table.parent / row["id"]): row["caption"] for row in rows}
    assert any(captions.values())
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), *captions]) == 0
    expected = [f"{path}: {text or '(the model wrote nothing)'}" for path, text in captions.items()]
    assert capsys.readouterr().out.splitlines() == expected


def test_a_few_options_of_evaluation_leave_the_others_as_they_are(table: Path) -> None:
    """Captions take far more memory than classes: 256 images at once would be too many."""
    for given in ({}, {"evaluation.resamples": 200}, {"evaluation.level": 0.9}):
        settings = config.build(CaptioningConfig, config.nest({"data.root": str(table), **given}))
        assert settings.evaluation.batch_size == 16
    assert GenerationOptions().max_tokens == CaptionerConfig().longest


def test_the_report_says_what_was_cut_and_what_the_scores_can_reach(trained: Path) -> None:
    """A caption beyond `longest` is not learnt, one beyond `max_tokens` cannot be written."""
    notes = read(trained, "run.json")["model"]["notes"]
    assert any(note.startswith("train: ") and "more than 48 tokens; what is behind them is not learnt" in note
               for note in notes)  # fmt: skip
    assert any(note.startswith("test: ") and "does not count in the negative log-likelihood" in note for note in notes)
    (found,) = [note for note in notes if "do not come back word for word" in note]
    assert found.startswith("8 of 8 validation captions")
    assert "cut at 16 tokens" in found
    ((reached, best),) = re.findall(r"CIDEr (\d\.\d\d) there, and the captions themselves (\d+\.\d\d)", found)
    assert float(reached) < float(best)
    assert "do not come back word for word" in (trained / "report.html").read_text(encoding="utf-8")


def test_controls_are_paired_in_report_and_files(trained: Path) -> None:
    metrics, text = read(trained, "metrics.json"), (trained / "report.html").read_text(encoding="utf-8")
    assert set(metrics["improvement"]) == {FREQUENT, NEAREST, SHUFFLED}
    for control in (FREQUENT, NEAREST, SHUFFLED):
        assert re.search(rf"{control} \([\d.]+\): <span[^>]*>[^<]*paired difference", text)
        assert f"Over: {control}" in text
    assert "measured before training" not in text
    assert "in earlier states" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["caption", "--train.select", "accuracy"], "accuracy"),
        (["caption", "--data.label_column", "label"], "captions have no labels"),
        (["caption", "--generation.top_p", "1.5"], "generation.top_p"),
        (["caption", "--cache_encoder", "on"], "the image encoder is trained"),
        (["caption", "--model.name", "smal-captioner"], "did you mean 'small-captioner'"),
        (["caption", "--model.image_size", "100"], "no multiple of the patch size 12"),
        (["caption", "--train.balance", "3"], "train.balance is for classification"),
        (["caption", "--train.compile", "true"], "train.compile: has no effect here"),
        (["caption", "--model.revision", "main"], "has no revisions; leave it out"),
    ],
)
def test_impossible_options_are_refused_before_work(
    words: list[str], said: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *words, "--data.root", str(table), "--output", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_bad_rows_are_told_with_their_numbers(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = table.with_name("bad.csv")
    bad.write_text("file,text\n00.jpg,fine\nnowhere.jpg,lost\n01.jpg,\n")
    assert main(["run", "caption", "--data.root", str(bad), "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "bad.csv, row 3: no image at 'nowhere.jpg'" in said
    assert "bad.csv, row 4: the caption is empty" in said
