"""The report of runs that rebuild images: no classes, units of each metric, the paired improvement, the anomalies."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finesight.files import read_json, write_json, write_text
from finesight.report import contents, html, numbers
from finesight.report.domain_section import of_two_domains
from finesight.report.reconstruction_section import against_chance, improvement_sentence
from finesight.report.summary import summary_lines
from tests.report import run_folders
from tests.report.test_html import SECTIONS, Page

SCRIPT = "<script>alert(3)</script>"
WITHOUT_CLASSES = [name for name in SECTIONS if name != "classes"]


def entry(value: float | None, margin: float = 0.0, n: int = 60) -> dict[str, Any]:
    ends = (None, None) if value is None else (value - margin, value + margin)
    return {"value": value, "low": ends[0], "high": ends[1], "n": n}


def paired(a: float, b: float, margin: float) -> dict[str, Any]:
    gain = b - a
    return {"a": a, "b": b, "difference": gain, "low": gain - margin, "high": gain + margin, "p": 0.002, "n": 60}


def run(folder: Path, task: str, metrics: dict[str, Any], **changed: Any) -> Path:
    """A finished run without classes: its files as the task leaves them, two images in each group."""
    run_folders.make(folder, ["image"])
    write_json(folder / "metrics.json", metrics)
    splits = [name for name in metrics if name in ("validation", "test", "anomalies")]
    counts = {split: {"image": 60} for split in ("train", *splits)}
    found = read_json(folder / "run.json")
    write_json(folder / "run.json", found | {"task": task, "data": found["data"] | {"counts": counts}} | changed)
    write_text(folder / "config.yaml", f"task: {task}\nevaluation:\n  level: 0.9\n")
    rows = pa.table(
        {"id": [str(row) for row in range(60)], "split": ["test"] * 60, "group": [str(row // 2) for row in range(60)]}
    )
    pq.write_table(rows, folder / "predictions.parquet")
    return folder


def reconstruction(folder: Path, earlier: str = "before training", **changed: Any) -> Path:
    scores = {"masked_psnr": entry(20.37, 0.5), "masked_ssim": entry(0.4243, 0.02), "objective": entry(0.5, 0.1)}
    before = {"masked_psnr": entry(20.0, 0.5), "masked_ssim": entry(0.4, 0.02), "objective": entry(0.6, 0.1)}
    metrics = {
        "validation": scores,
        "test": scores,
        "baselines": {
            earlier: {"test": before},
            "mean image": {"test": {"masked_psnr": entry(12.02, 0.4)}},
            "undefined": {"test": {"masked_psnr": entry(None)}},
        },
        "improvement": {
            earlier: {
                "masked_psnr": paired(20.0, 20.37, 0.1),
                "masked_ssim": paired(0.42, 0.4243, 0.01),
                "objective": paired(0.6, 0.5, 0.05),
            }
        },
    }
    return run(folder, "reconstruction", metrics, **changed)


def autoencoding(folder: Path, score: str = "negative ELBO", **changed: Any) -> Path:
    scores = {"psnr": entry(17.16, 0.4), "negative_elbo": entry(5321.44, 100.0), "kl": entry(12.3, 0.2)}
    metrics = {
        "validation": scores,
        "test": scores,
        "anomalies": {"psnr": entry(15.25, 0.3, 500), "negative_elbo": entry(6000.04, 100.0, 500)},
        "baselines": {"mean image": {"test": {"psnr": entry(17.0, 0.4), "kl": entry(None)}}},
        "anomaly": {score: entry(0.8312, 0.05, 560), "reconstruction error": entry(0.52, 0.05, 560)},
    }
    return run(folder, "autoencoding", metrics, **changed)


def page(folder: Path) -> Page:
    return Page(html.write_report(folder).read_text(encoding="utf-8"))


def section(folder: Path, name: str) -> str:
    text = html.write_report(folder).read_text(encoding="utf-8")
    return text.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def summary(folder: Path) -> list[str]:
    found = contents.read(folder)
    return summary_lines(found.metrics, found.run, found.config, found.history)


@pytest.mark.parametrize(("make", "extra"), [(reconstruction, "improvement"), (autoencoding, "anomalies")])
def test_classes_vanish_and_the_own_section_follows_the_baselines(tmp_path: Path, make: Any, extra: str) -> None:
    found = page(make(tmp_path / "run"))
    place = WITHOUT_CLASSES.index("metrics")
    assert found.sections == [*WITHOUT_CLASSES[:place], extra, *WITHOUT_CLASSES[place:]]
    links = [address[1:] for address in found.addresses if address.startswith("#")]
    assert links == found.sections
    assert "per class" not in found.text.replace("Images per class", "")
    assert not of_two_domains(contents.read(tmp_path / "run"))


def test_without_run_json_the_task_is_read_from_the_configuration(tmp_path: Path) -> None:
    folder = reconstruction(tmp_path / "run")
    (folder / "run.json").unlink()
    assert "classes" not in page(folder).sections


def test_the_data_table_has_one_row_of_images(tmp_path: Path) -> None:
    data = section(autoencoding(tmp_path / "run"), "data")
    assert re.findall(r"<th(?: class=\"num\")?>([^<]*)</th>", data) == [
        "images", "train", "validation", "test", "anomalies", "all",
    ]  # fmt: skip
    assert data.count("<tr>") == 2
    assert 'aria-label="Images per split"' in data


def test_the_headline_has_its_unit_and_no_bars(tmp_path: Path) -> None:
    found = page(reconstruction(tmp_path / "run"))
    assert "Test PSNR on masked patches 20.37 dB 90 % interval 19.87 to 20.87 dB, n = 60" in found.text
    assert "svg" not in found.tags
    assert "Bars run" not in found.text


def test_groups_are_counted_where_no_class_was_predicted(tmp_path: Path) -> None:
    folder = reconstruction(tmp_path / "run")
    found = contents.read(folder)
    assert found.splits == {"test": contents.Split(samples=60, groups=30, support={}, confused={})}
    assert "predictions" not in found.missing
    assert "Test: 60 samples in 30 groups." in page(folder).text


def test_what_was_paired_is_judged_by_the_pairs_and_the_rest_by_intervals(tmp_path: Path) -> None:
    text = page(reconstruction(tmp_path / "run")).text
    assert "before training (20.00 dB): clearly beaten: the paired difference leaves out zero." in text
    assert "mean image (12.02 dB): clearly beaten: the intervals do not overlap." in text
    assert "undefined" not in text
    assert "it was measured before training and after it" in text


def test_the_improvement_is_shown_in_the_unit_of_each_metric(tmp_path: Path) -> None:
    folder = reconstruction(tmp_path / "run")
    shown = section(folder, "improvement")
    assert "PSNR on masked patches is clearly better than before training: +0.37 dB" in shown
    assert "(90 % interval +0.27 to +0.47 dB, p = 0.002)." in shown
    rows = re.findall(r"<tr><th>(.*?)</th>(.*?)</tr>", shown.partition("<tbody>")[2], re.DOTALL)
    cells = {name: re.sub(r"<[^>]+>", " ", text).split() for name, text in rows}
    assert " ".join(cells["PSNR on masked patches"]) == (
        "higher, in dB 20.00 dB 20.37 dB +0.37 dB +0.27 to +0.47 dB 0.002 clearly better"
    )
    assert " ".join(cells["SSIM on masked patches"]).endswith("+0.0043 −0.0057 to +0.0143 0.002 no clear difference")
    assert " ".join(cells["training objective"]).endswith("−0.1000 −0.1500 to −0.0500 0.002 clearly better")
    assert "with the same masks" in shown


def test_a_worse_model_and_one_without_an_interval_are_not_called_better() -> None:
    worse = improvement_sentence("before", "negative_elbo", paired(5000.0, 5012.34, 2.0), 0.95)
    assert worse == (
        "negative ELBO (nats) is clearly worse than before: +12.3 (95 % interval +10.3 to +14.3, p = 0.002)."
    )
    single = paired(20.0, 21.0, 0.1) | {"low": None, "high": None, "p": None, "n": 1}
    assert improvement_sentence("before", "psnr", single) == (
        "PSNR is not clearly different from before: +1.00 dB (too few samples for an interval)."
    )
    assert "+2.0 points (interval +1.0 to +3.0 points" in improvement_sentence("x", "accuracy", paired(0.5, 0.52, 0.01))


def test_the_anomalies_show_auroc_both_sizes_and_both_sides(tmp_path: Path) -> None:
    folder = autoencoding(tmp_path / "run")
    shown = re.sub(r"<[^>]+>", " ", section(folder, "anomalies"))
    text = " ".join(shown.split())
    assert "60 normal images (test split) against 500 anomalous ones." in text
    assert "0.5 is chance" in text
    assert "negative ELBO 0.831 0.781 to 0.881 clearly better than chance" in text
    assert "reconstruction error 0.520 0.470 to 0.570 not clearly better than chance" in text
    assert "PSNR higher, in dB 17.16 dB 16.76 to 17.56 dB 15.25 dB 14.95 to 15.55 dB" in text
    assert "negative ELBO lower, in nats 5,321.4 5,221.4 to 5,421.4 6,000.0 5,900.0 to 6,100.0" in text


def test_a_score_that_ranks_anomalies_lowest_is_called_worse_than_chance() -> None:
    assert against_chance(entry(0.3, 0.1))["state"] == "worse"
    assert against_chance(entry(0.5, 0.1))["state"] == "unclear"
    assert against_chance(entry(None))["words"] == "no interval"


def test_names_of_states_scores_and_methods_are_escaped(tmp_path: Path) -> None:
    for made in (reconstruction(tmp_path / "a", earlier=SCRIPT), autoencoding(tmp_path / "b", score=SCRIPT)):
        first = html.write_report(made).read_bytes()
        assert b"<script" not in first
        assert SCRIPT in Page(first.decode()).text
        assert html.write_report(made).read_bytes() == first


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "predictions.parquet", "history.jsonl"])
@pytest.mark.parametrize("make", [reconstruction, autoencoding])
def test_a_missing_file_still_gives_a_page_without_classes(tmp_path: Path, make: Any, name: str) -> None:
    folder = make(tmp_path / "run")
    (folder / name).unlink()
    found = page(folder)
    assert [part for part in found.sections if part in SECTIONS] == WITHOUT_CLASSES
    assert name == "predictions.parquet" or f"{name} is not in the run folder" in found.text


def test_the_summary_names_improvement_and_auroc(tmp_path: Path) -> None:
    lines = summary(reconstruction(tmp_path / "a", alarms=[]))
    assert lines[0] == "Test PSNR on masked patches 20.37 dB (90 % interval 19.87 to 20.87 dB, n = 60)"
    assert (
        "PSNR on masked patches is clearly better than before training: +0.37 dB "
        "(90 % interval +0.27 to +0.47 dB, p = 0.002)" in lines
    )
    lines = summary(autoencoding(tmp_path / "b"))
    assert "Anomalies by negative ELBO: AUROC 0.831 (90 % interval 0.781 to 0.881, n = 560); 0.5 is chance" in lines
    assert (
        "Anomalies by reconstruction error: AUROC 0.520 (90 % interval 0.470 to 0.570, n = 560); 0.5 is chance" in lines
    )
    assert lines[-1].startswith("ALARM: Too good")


def test_figures_stand_in_order_and_a_second_one_after_its_namesake(tmp_path: Path) -> None:
    folder = reconstruction(tmp_path / "run")
    names = ("classes", "border", "anomaly_negative_elbo", "curves", "panels", "anomaly", "quality", "samples_prior")
    write_json(folder / "figures" / "figures.json", [{"name": name, "title": name, "caption": ""} for name in names])
    shown = re.findall(r'<figure id="figure-([a-z_]+)">', section(folder, "figures"))
    assert shown == [
        "quality", "panels", "curves", "anomaly", "anomaly_negative_elbo", "samples_prior", "border", "classes",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("masked_psnr", 17.161, "17.16 dB"),
        ("psnr", -4.3, "−4.30 dB"),
        ("ssim", 0.42436, "0.4244"),
        ("mse", 0.01234, "0.0123"),
        ("negative_elbo", 5321.44, "5,321.4"),
        ("kl", 12.3, "12.3000"),
        ("nll", 0.5, "0.5000"),
        ("auroc", 0.8312, "0.831"),
        ("auroc", 0.99996, "0.99996"),
        ("accuracy", 0.5, "50.0 %"),
        ("unheard_of", 0.5, "0.5000"),
    ],
)
def test_values_have_the_digits_and_the_unit_of_their_metric(name: str, value: float, text: str) -> None:
    assert numbers.number(name, value, 10) == text


def test_labels_name_the_metric_and_its_unit_where_the_value_does_not() -> None:
    named = {"masked_ssim": "SSIM on masked patches", "kl": "KL divergence", "negative_elbo": "negative ELBO"}
    assert {name: numbers.label(name) for name in named} == named
    assert [numbers.title(name) for name in ("psnr", "kl", "reconstruction_nats", "mse", "accuracy")] == [
        "PSNR", "KL divergence (nats)", "reconstruction (nats)", "MSE (squared intensity)", "accuracy",
    ]  # fmt: skip
    assert [numbers.direction(name) for name in ("psnr", "ssim", "kl", "accuracy", "unheard_of")] == [
        "higher, in dB", "higher", "lower, in nats", "higher", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "model", "baseline", "state"),
    [
        ("psnr", entry(20, 1), entry(12, 1), "better"),
        ("masked_mse", entry(0.02, 0.001), entry(0.01, 0.001), "worse"),
        ("negative_elbo", entry(5000, 10), entry(5100, 10), "better"),
    ],
)
def test_verdicts_know_the_direction_of_every_family(
    metric: str, model: dict[str, Any], baseline: dict[str, Any], state: str
) -> None:
    assert numbers.verdict(metric, model, baseline, 60, 0.95)[0] == state
