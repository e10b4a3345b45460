"""The report and the comparison: escaped, self-contained, repeatable, tolerant, and honest about intervals."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from finesight.files import read_json, write_json
from finesight.metrics.bootstrap import paired
from finesight.metrics.classification import ClassificationMetric
from finesight.report import html, numbers
from finesight.report.comparison import judge, write_comparison
from finesight.report.summary import SUMMARY_LINES, summary_lines
from tests.report import run_folders

SCRIPT = "<script>alert(1)</script>"
SECTIONS = [
    "result", "alarms", "baselines", "metrics", "classes", "figures", "data", "model", "training", "reproduce", "files",
]  # fmt: skip
VOID = {"meta", "img", "wbr", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, addresses, section order, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.sections: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [given[name] or "" for name in ("src", "href", "srcset", "data", "action") if name in given]
        assert not [name for name in given if name.startswith("on")]
        if tag == "section":
            self.sections.append(given["id"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def written(folder: Path) -> Page:
    return Page(html.write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folders.make(tmp_path_factory.mktemp("runs") / "toy", ["cat", "dog", SCRIPT])


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "toy"))


def test_the_sections_stand_in_order_and_every_fact_is_shown(folder: Path) -> None:
    page = written(folder)
    assert page.sections == SECTIONS
    accuracy = read_json(folder / "metrics.json")["test"]["accuracy"]
    assert f"{100 * accuracy['value']:.1f} %" in page.text
    for fact in (
        "n = 60", "majority class", "clearly beaten", "optimistic", "f1f2f3", "Split anew.", "10 of 40 parameters",
        "pooler.weight", "finesight run toy --data.root 'my leaves'", "1 h 2 min 5 s", "1.2 GB", "torch 2.9.0",
        "1, chosen by accuracy on validation: 90.0 %", "predictions.parquet",
    ):  # fmt: skip
        assert fact in page.text, fact


def test_names_and_sentences_are_escaped(folder: Path) -> None:
    text = html.write_report(folder).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>suspicious" not in text
    page = Page(text)
    assert "script" not in page.tags
    assert SCRIPT in page.text
    assert "Too good & <b>suspicious</b>." in page.text


def test_attributes_are_escaped(folder: Path) -> None:
    entries = read_json(folder / "figures" / "figures.json")
    entries[0]["title"] = entries[0]["caption"] = '"><img src=x onerror=alert(1)>'
    write_json(folder / "figures" / "figures.json", entries)
    assert written(folder).tags.count("img") == 1


def test_the_page_fetches_nothing(folder: Path) -> None:
    page = written(folder)
    assert page.addresses
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    text = (folder / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_links_within_the_page_have_targets(folder: Path) -> None:
    page = written(folder)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.sections)


def test_the_same_files_give_the_same_bytes(folder: Path) -> None:
    first = html.write_report(folder).read_bytes()
    assert html.write_report(folder).read_bytes() == first


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "run.json", "history.jsonl", "metrics.json", "predictions.parquet", "figures/figures.json"],
)
@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_a_missing_or_damaged_file_gives_a_sentence(folder: Path, name: str, state: str) -> None:
    if state == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(b"{\xff not what it should be")
    page = written(folder)
    assert page.sections == SECTIONS
    if name != "predictions.parquet":
        words = "is not in the run folder" if state == "missing" else "cannot be read"
        assert f"{name} {words}" in page.text


def test_a_file_of_another_shape_gives_a_sentence(folder: Path) -> None:
    write_json(folder / "run.json", [1, 2])
    assert "run.json cannot be read, so this part of the report is empty: it holds a list" in written(folder).text


def test_an_empty_folder_gives_a_page(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert page.sections == SECTIONS
    assert "There is no test result." in page.text


def test_a_missing_image_gives_a_sentence(folder: Path) -> None:
    for kind in ("png", "svg"):
        (folder / "figures" / f"classes.{kind}").unlink()
    assert "The files of this figure are missing." in written(folder).text


def test_a_figure_name_cannot_leave_the_folder(folder: Path) -> None:
    (folder / "secret.png").write_bytes(b"\x89PNG secret" + bytes(40))
    write_json(folder / "figures" / "figures.json", [{"name": "../secret", "title": "t", "caption": "c"}])
    assert base64.b64encode(b"secret").decode()[:6] not in (html.write_report(folder).read_text(encoding="utf-8"))
    assert "img" not in written(folder).tags


@pytest.mark.parametrize(
    ("kind", "svg_bytes", "expected"),
    [("chart", 1000, "svg+xml"), ("chart", html.LARGEST_SVG, "png"), ("images", 1000, "png")],
)
def test_charts_are_svg_unless_large_and_image_grids_png(
    folder: Path, kind: str, svg_bytes: int, expected: str
) -> None:
    (folder / "figures" / "classes.svg").write_bytes(b"<svg/>".ljust(svg_bytes))
    entry = {"name": "classes", "title": "t", "caption": "c", "kind": kind}
    write_json(folder / "figures" / "figures.json", [entry])
    images = [address for address in written(folder).addresses if address.startswith("data:")]
    assert [address.partition(";")[0] for address in images] == [f"data:image/{expected}"]


def test_no_mistake_is_not_sold_as_certainty(tmp_path: Path) -> None:
    page = written(run_folders.make(tmp_path / "sure", ["a", "b"], certainty=50, samples=90))
    assert "No errors among 90; the 95 % bound on the error rate is about 3/90, that is 3.3 %" in page.text
    assert "zero-width interval, n = 90" in page.text
    assert "95 % interval 100.0 to 100.0 %" not in page.text.partition("Alarms")[0].partition("Test accuracy")[2]


def test_groups_are_the_units_of_the_bound_and_are_named(tmp_path: Path) -> None:
    page = written(run_folders.make(tmp_path / "leaves", ["a", "b"], certainty=50, samples=90, per_group=3))
    assert "No errors among 90 in 30 independent groups" in page.text
    assert "about 3/30" in page.text
    assert "Test: 90 samples in 30 groups." in page.text
    assert "intervals resample whole groups" in page.text


def test_independent_samples_say_nothing_of_groups(folder: Path) -> None:
    assert "whole groups" not in written(folder).text


def test_the_bound_is_the_exact_one() -> None:
    assert numbers.error_bound(1, 0.95) == pytest.approx(0.95)
    assert numbers.error_bound(100, 0.95) == pytest.approx(1 - 0.05**0.01)
    assert numbers.error_bound(10_000, 0.95) == pytest.approx(3 / 10_000, rel=0.01)


def entry(value: float, low: float | None, high: float | None, n: int = 50) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n}


@pytest.mark.parametrize(
    ("metric", "model", "baseline", "state"),
    [
        ("accuracy", entry(0.9, 0.8, 1.0), entry(0.5, 0.4, 0.6), "better"),
        ("accuracy", entry(0.9, 0.8, 1.0), entry(0.7, 0.5, 0.85), "unclear"),
        ("accuracy", entry(0.2, 0.1, 0.3), entry(0.5, 0.4, 0.6), "worse"),
        ("nll", entry(0.2, 0.1, 0.3), entry(0.5, 0.4, 0.6), "better"),
        ("accuracy", entry(0.9, None, None), entry(0.5, 0.4, 0.6), "unclear"),
        # Without the rule of three, five right answers of five would beat anything below 100 %.
        ("accuracy", entry(1.0, 1.0, 1.0, 5), entry(0.6, 0.3, 0.9, 5), "unclear"),
    ],
)
def test_a_baseline_is_beaten_only_where_the_intervals_part(
    metric: str, model: dict[str, Any], baseline: dict[str, Any], state: str
) -> None:
    assert numbers.verdict(metric, model, baseline, model["n"], 0.95)[0] == state


@pytest.mark.parametrize(
    ("value", "n", "text"),
    [
        (0.5, 10, "50.0 %"),
        (1.0, 10, "100.0 %"),
        (0.9996, 100, "99.96 %"),
        (0.0001, 9, "0.01 %"),
        (0.5, 2000, "50.00 %"),
    ],
)
def test_rounding_never_claims_all_or_nothing(value: float, n: int, text: str) -> None:
    assert numbers.percent(value, n) == text


def test_scores_that_no_predictions_give_are_refused_in_the_class_table(folder: Path) -> None:
    metrics = read_json(folder / "metrics.json")
    metrics["test"]["f1/cat"]["value"] = 1.5
    write_json(folder / "metrics.json", metrics)
    assert "cat: F1 1.5 is not between precision" in written(folder).text


def test_summary_names_result_baseline_and_alarm(folder: Path) -> None:
    metrics, run = read_json(folder / "metrics.json"), read_json(folder / "run.json")
    lines = summary_lines(metrics, run)
    assert 4 <= len(lines) <= 8
    assert re.fullmatch(r"Test accuracy \d+\.\d % \(interval [\d.]+ to [\d.]+ %, n = 60\)", lines[0])
    assert "(99 % interval " in summary_lines(metrics, run, {"evaluation": {"level": 0.99}})[0]
    assert any("majority class" in line for line in lines)
    assert lines[-1] == "ALARM: Too good & <b>suspicious</b>."
    many = summary_lines(metrics, {**run, "alarms": [f"alarm {number}" for number in range(20)]})
    assert len(many) == SUMMARY_LINES
    assert many[-1].endswith("and 17 more, in the report")


def comparison(tmp_path: Path, classes: list[str]) -> tuple[Path, list[dict[str, Any]], list[dict[str, Any]]]:
    metric, labels = ClassificationMetric(classes), [row % len(classes) for row in range(60)]
    tables = [
        metric.statistics(run_folders.probabilities(60, len(classes), labels, certainty), labels)
        for certainty in (0.5, 4.0)
    ]
    found = paired(metric, *tables, resamples=100)
    runs = []
    for name, side in (("first", "a"), (SCRIPT, "b")):
        metrics = {key: entry(value[side], 0.1, 0.9, 60) for key, value in found.items()}
        runs.append({"name": name, "path": f"runs/{name}", "metrics": metrics})
    return tmp_path / "page.html", runs, [{"a": "first", "b": SCRIPT, "metrics": found}]


def test_comparison_is_escaped_self_contained_and_repeatable(tmp_path: Path) -> None:
    path, runs, pairs = comparison(tmp_path, ["x", "y", "<i>z"])
    write_comparison("A & B", runs, pairs, path)
    first = path.read_bytes()
    page = Page(first.decode())
    assert "script" not in page.tags
    assert page.addresses == []
    assert f"Verdict: {SCRIPT} is better." in page.text
    assert "A & B" in page.text
    assert "<i>z" in page.text
    write_comparison("A & B", json.loads(json.dumps(runs)), pairs, path)
    assert path.read_bytes() == first


def test_comparison_of_one_run_says_so(tmp_path: Path) -> None:
    path, runs, _ = comparison(tmp_path, ["x", "y"])
    write_comparison("One", runs[:1], [], path)
    assert "nothing to compare" in Page(path.read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("metric", "low", "high", "state"),
    [
        ("accuracy", 0.1, 0.2, "better"),
        ("accuracy", -0.2, -0.1, "worse"),
        ("nll", 0.1, 0.2, "worse"),
        ("accuracy", -0.1, 0.1, "unclear"),
        ("accuracy", None, None, "unclear"),
    ],
)
def test_a_difference_is_judged_by_interval_and_direction(
    metric: str, low: float | None, high: float | None, state: str
) -> None:
    assert judge(metric, {"a": "one", "b": "two"}, {"difference": 0.15, "low": low, "high": high})[0] == state


def test_what_a_smoothing_constant_makes_is_no_difference() -> None:
    """BLEU-4 without a match is 1e-13 or so, steadily more with one method than with another."""
    entry = {"difference": 9e-13, "low": 8e-13, "high": 1e-12}
    assert judge("bleu_4", {"a": "one", "b": "two"}, entry) == ("unclear", "no clear difference")
    assert numbers.percent(2e-10) == "0.0 %"
    assert numbers.percent(2e-6) != "0.0 %"
