"""S1 and S10 end to end through the command line, on few real images, and the mistakes of their reports."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from finesight.cli import main
from finesight.run_folder import RunFolder
from tests.models.test_mae import save

FEW = [
    "--data.limit_train", "24", "--data.limit_validation", "8", "--data.limit_test", "10",
    "--evaluation.resamples", "100",
]  # fmt: skip


def read(output: Path, name: str) -> Any:
    return json.loads((output / name).read_text())


@pytest.fixture(scope="module")
def reconstructed(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rocov2-mae` from a local ViT-MAE folder, one epoch on real radiographs."""
    folder = tmp_path_factory.mktemp("runs")
    save(folder / "mae")
    words = ["run", "rocov2-mae", "--data.root", str(real_data / "radiology"), "--model.name", str(folder / "mae")]
    assert main([*words, *FEW, "--train.epochs", "1", "--output", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def autoencoded(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`kvasir-endovae`, two epochs on real endoscopy frames, with leaves as anomalies."""
    output = tmp_path_factory.mktemp("runs") / "run"
    words = ["run", "kvasir-endovae", "--data.root", str(real_data / "kvasir_seg" / "kvasir_seg.zip")]
    words += ["--data.anomalies", str(few_leaves(real_data, output.parent)), "--model.image_size", "32"]
    assert main([*words, *FEW, "--train.epochs", "2", "--output", str(output)]) == 0
    return output


def few_leaves(real_data: Path, folder: Path) -> Path:
    """A folder with a dozen of the real leaves."""
    (folder / "leaves").mkdir()
    with zipfile.ZipFile(real_data / "tomato" / "tomato.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][:12]
        for number, name in enumerate(names):
            (folder / "leaves" / f"{number}.jpg").write_bytes(archive.read(name))
    return folder / "leaves"


def test_a_reconstruction_is_measured_before_and_after_on_the_same_masks(reconstructed: Path) -> None:
    metrics = read(reconstructed, "metrics.json")
    assert set(metrics["baselines"]) == {
        "before training", "mean image", "mean of the visible patches", "interpolation"
    }  # fmt: skip
    paired = metrics["improvement"]["before training"]["masked_psnr"]
    assert paired["a"] == metrics["baselines"]["before training"]["test"]["masked_psnr"]["value"]
    assert paired["b"] == metrics["test"]["masked_psnr"]["value"]
    assert paired["low"] <= paired["difference"] <= paired["high"]
    for entry in metrics["test"].values():
        assert entry["n"] == 10


def test_no_score_is_impossible(reconstructed: Path, autoencoded: Path) -> None:
    """Report 000: PSNR of -4.3 dB. On [0, 1] an error cannot exceed 1, so no PSNR is below 0."""
    for output in (reconstructed, autoencoded):
        rows = pq.read_table(output / "predictions.parquet").to_pylist()
        assert all(row["psnr"] > 0 and 0 <= row["mse"] <= 1 and -1 <= row["ssim"] <= 1 for row in rows)


def test_the_report_shows_what_a_reader_needs(reconstructed: Path, autoencoded: Path) -> None:
    text = (reconstructed / "report.html").read_text(encoding="utf-8")
    assert "Improvement" in text
    assert "interpolation" in text
    assert 'id="classes"' not in text
    text = (autoencoded / "report.html").read_text(encoding="utf-8")
    assert "AUROC" in text
    for name in ("quality", "curves", "panels", "samples_prior", "traversals", "border", "anomaly"):
        assert f'id="figure-{name}"' in text
    assert "data:image/png;base64," in text


def test_reports_of_both_pass_eval_predict_and_compare(
    reconstructed: Path, autoencoded: Path, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few_leaves(real_data, tmp_path)
    for output, name in ((reconstructed, "masked_psnr"), (autoencoded, "negative_elbo")):
        again = json.loads(_json(capsys, output))
        assert again[name]["value"] == pytest.approx(read(output, "metrics.json")["test"][name]["value"], rel=1e-9)
        assert main(["predict", str(output), str(tmp_path / "leaves" / "0.jpg")]) == 0
        assert "PSNR" in capsys.readouterr().out
        assert main(["compare", str(output), str(output)]) == 0
        assert "no clear difference" in capsys.readouterr().out
    assert main(["compare", str(reconstructed), str(autoencoded)]) == 2
    assert "no common metric" in capsys.readouterr().err


def _json(capsys: pytest.CaptureFixture[str], output: Path) -> str:
    capsys.readouterr()
    assert main(["eval", str(output), "--json"]) == 0
    text = capsys.readouterr().out
    return text[text.index("{") :]


def test_runs_under_other_masks_are_not_compared(
    reconstructed: Path, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "mae")
    words = ["run", "rocov2-mae", "--data.root", str(real_data / "radiology"), "--model.name", str(tmp_path / "mae")]
    words += [*FEW, "--train.epochs", "1", "--mask_ratio", "0.5", "--output", str(tmp_path / "run")]
    assert main(words) == 0
    assert main(["compare", str(reconstructed), str(tmp_path / "run")]) == 2
    assert "mask_ratio 0.75 and 0.5" in capsys.readouterr().err


def test_a_replay_is_bit_identical(reconstructed: Path, autoencoded: Path) -> None:
    for output in (reconstructed, autoencoded):
        assert main(["replay", str(output)]) == 0


def test_a_resumed_run_keeps_the_numbers_from_before_training(real_data: Path, tmp_path: Path) -> None:
    """The weights before training are gone when a run is continued; what they gave is kept."""
    save(tmp_path / "mae")
    words = ["run", "rocov2-mae", "--data.root", str(real_data / "radiology"), "--model.name", str(tmp_path / "mae")]
    words += [*FEW, "--train.epochs", "2"]
    assert main([*words, "--output", str(tmp_path / "whole")]) == 0
    assert main([*words, "--output", str(tmp_path / "cut")]) == 0
    cut = RunFolder(tmp_path / "cut")
    for path in sorted(cut.checkpoints.glob("step-*"))[1:]:
        shutil.rmtree(path)
    for name in ("metrics.json", "predictions.parquet", "report.html"):
        (tmp_path / "cut" / name).unlink()
    assert main(["run", "--resume", "--output", str(tmp_path / "cut")]) == 0
    assert read(tmp_path / "cut", "metrics.json") == read(tmp_path / "whole", "metrics.json")


def test_the_anomalies_are_no_part_of_the_training(autoencoded: Path) -> None:
    metrics, run = read(autoencoded, "metrics.json"), read(autoencoded, "run.json")
    assert metrics["anomalies"]["psnr"]["n"] == 12
    assert set(metrics["anomaly"]) == {"reconstruction error", "negative ELBO"}
    assert metrics["anomaly"]["negative ELBO"]["n"] == 22
    assert run["model"]["total"] > 0
    assert run["data"]["counts"]["anomalies"] == {"image": 12}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reconstruct", "--mask_ratio", "1.5"], "mask_ratio"),
        (["reconstruct", "--mask_ratio", "0.999"], "hidden"),
        (["reconstruct", "--train.select", "accuracy"], "accuracy"),
        (["reconstruct", "--train.balance", "10"], "train.balance is for classification"),
        (["autoencode", "--train.select", "kl"], "'kl' is not measured"),
        (["autoencode", "--data.label_column", "label"], "labels"),
        (["autoencode", "--model.image_size", "90"], "multiple of 8"),
        (["autoencode", "--data.anomalies", "/nowhere"], "/nowhere"),
    ],
)
def test_impossible_options_are_refused_before_work(
    words: list[str], said: str, real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(real_data / "radiology")
    assert main(["run", *words, "--data.root", root, "--output", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
