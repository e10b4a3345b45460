"""S2 end to end through the command line, on few real radiographs, and the mistakes of its report."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from finesight.cli import main
from finesight.run_folder import RunFolder
from finesight.tasks.caption_controls import FREQUENT, NEAREST, SHUFFLED
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
    assert main(["predict", str(trained), images[0]]) == 0
    assert capsys.readouterr().out.startswith(f"{images[0]}: {rows[0]['caption']}"[: len(images[0]) + 2])
    assert main(["compare", str(trained), str(trained)]) == 0
    assert "no clear difference" in capsys.readouterr().out


def test_another_test_set_is_measured_whole(trained: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["eval", str(trained), "--data.root", str(table), "--json"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text[text.index("{") :])["cider"]["n"] == 20


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


def test_a_users_table_with_a_small_captioner(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From scratch: the tokenizer is learnt, and comes back with the run."""
    words = ["run", "caption", "--data.root", str(table), "--train.epochs", "1", "--evaluation.resamples", "100"]
    assert main([*words, "--generation.max_tokens", "8", "--output", str(tmp_path / "run")]) == 0
    run = read(tmp_path / "run", "run.json")
    assert any("tokenizer was learnt" in note for note in run["model"]["notes"])
    assert sum(counts["image"] for counts in run["data"]["counts"].values()) == 20
    assert main(["predict", str(tmp_path / "run"), str(sorted(table.parent.iterdir())[0])]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["caption", "--train.select", "accuracy"], "accuracy"),
        (["caption", "--data.label_column", "label"], "captions have no labels"),
        (["caption", "--generation.top_p", "1.5"], "generation.top_p"),
        (["caption", "--cache_encoder", "on"], "the image encoder is trained"),
        (["caption", "--model.name", "smal-captioner"], "did you mean 'small-captioner'"),
        (["caption", "--model.image_size", "100"], "no multiple of the patch size 12"),
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
