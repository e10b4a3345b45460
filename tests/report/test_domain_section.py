"""The report of a run on two domains: its section, its names, and the last lines of the command."""

import re
from pathlib import Path
from typing import Any

import pytest

from finesight.files import read_json, write_json, write_text
from finesight.report import html, numbers
from finesight.report.contents import read
from finesight.report.domain_section import of_two_domains, section
from finesight.report.summary import summary_lines
from tests.report import run_folders
from tests.report.test_html import SECTIONS, Page

SCRIPT = "<script>alert(2)</script>"


def two_domains(folder: Path, *, labelled: bool = True, method: str = "pixelda", oracle: bool = True) -> Path:
    """A finished run on two domains, its numbers different in every split."""
    run_folders.make(folder, ["cat", SCRIPT])
    metrics, run = read_json(folder / "metrics.json"), read_json(folder / "run.json")
    accuracies = {"validation": 0.95, "test": 0.65, "target_train": 0.7, "source_test": 0.9}
    for split, value in accuracies.items():
        entry = metrics["test"]["accuracy"] | {"value": value, "low": value - 0.04, "high": value + 0.04}
        metrics[split] = metrics["validation"] | {"accuracy": entry}
    counts = run["data"]["counts"] | {"target_train": {"cat": 0, SCRIPT: 0}, "source_test": {"cat": 9, SCRIPT: 8}}
    if not labelled:
        for split in ("target_train", "source_test"):
            del metrics[split]
        del counts["source_test"]
    write_json(folder / "metrics.json", metrics)
    run |= {"task": "domain-adaptation", "best_epoch": 2, "epochs": 3, "data": run["data"] | {"counts": counts}}
    run["selection"] = {"metric": "adaptation_score", "split": "validation", "value": 0.8125}
    write_json(folder / "run.json", run)
    write_text(folder / "config.yaml", f"method: {method}\ndata:\n  target: x\nevaluation:\n  level: 0.9\n")
    rows = [
        f'{{"epoch": {epoch}, "step": 8, "lr": 0.1, "train": {{}}, "validation": '
        f'{{"accuracy": 0.9{f", {chr(34)}oracle_accuracy{chr(34)}: {value}" if oracle else ""}}}, '
        f'"best": {"true" if epoch < 3 else "false"}}}\n'
        for epoch, value in enumerate((0.5, 0.65, 0.72), start=1)
    ]
    write_text(folder / "history.jsonl", "".join(rows))
    return folder


def page(folder: Path) -> Page:
    return Page(html.write_report(folder).read_text(encoding="utf-8"))


def part(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0]


def test_the_section_stands_between_baselines_and_metrics_and_is_linked(tmp_path: Path) -> None:
    found = page(two_domains(tmp_path / "run"))
    place = SECTIONS.index("metrics")
    assert found.sections == [*SECTIONS[:place], "domains", *SECTIONS[place:]]
    assert {"#domains", "#alarms"} <= set(found.addresses)


def test_a_run_on_one_domain_has_no_such_section(tmp_path: Path) -> None:
    folder = run_folders.make(tmp_path / "one", ["cat", "dog"])
    found = page(folder)
    assert found.sections == SECTIONS
    assert "#alarms" in found.addresses
    assert "Domains" not in found.text
    assert "oracle" not in found.text.lower()
    assert not of_two_domains(read(folder))
    assert section(read(folder)) is None


def test_the_table_holds_the_numbers_of_the_metrics_in_order(tmp_path: Path) -> None:
    folder = two_domains(tmp_path / "run")
    metrics = read_json(folder / "metrics.json")
    text = part(html.write_report(folder).read_text(encoding="utf-8"), '<section id="domains">', "</section>")
    rows = re.findall(r'<tr><th>([^<]*)</th><td class="about">([^<]*)</td>(.*?)</tr>', text, re.DOTALL)
    assert [name for name, _, _ in rows] == ["target test", "target train", "source test", "source validation"]
    for split, (_, _, cells) in zip(("test", "target_train", "source_test", "validation"), rows, strict=True):
        shown = re.findall(r'<td class="num">([^<]+)<span class="interval">([^<]+)</span>', cells)
        entries = [(name, metrics[split][name]) for name in ("accuracy", "macro_f1", "expected_calibration_error")]
        assert shown == [(numbers.number(k, e["value"], e["n"]), numbers.interval(k, e)) for k, e in entries]
        assert '<td class="num">60</td>' in cells
    assert "transductive, the images were trained on without labels" in rows[1][1]
    assert rows[3][1] == "source validation (picked the epoch)"
    assert "accuracy changes by −25.0 points" in text


def test_the_oracles_gap_is_stated_in_points(tmp_path: Path) -> None:
    folder = two_domains(tmp_path / "run")
    text = page(folder).text
    assert "Epoch 2 of 3 was kept by adaptation score: 81.2 %." in text
    assert (
        "never used) would have picked epoch 3: 72.0 % on the target test instead of 65.0 %, a gap of 7.0 points."
        in text
    )
    assert "Bridle et al. 1992; Shi & Sha 2012" in text


def test_without_the_oracles_values_nothing_is_claimed(tmp_path: Path) -> None:
    text = page(two_domains(tmp_path / "run", oracle=False)).text
    assert "What the target's labels would have picked is not known." in text
    assert "points below the best" not in text


def test_a_target_without_labels_is_no_target_test(tmp_path: Path) -> None:
    folder = two_domains(tmp_path / "run", labelled=False, oracle=False)
    found = page(folder)
    assert "domains" in found.sections
    assert "Source test accuracy: the target has no labels" in found.text
    assert "The accuracy on the target is unknown" in found.text
    assert "target test" not in found.text.replace("the target test labels", "")
    data = part((folder / "report.html").read_text(encoding="utf-8"), '<section id="data">', "</section>")
    heads = re.findall(r'<th class="num">([^<]*)(<span class="interval">no labels</span>)?</th>', data)
    assert [(name, bool(mark)) for name, mark in heads] == [
        ("source train", False), ("source validation", False), ("source test", False), ("target train", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("target-only", "the model learnt from most of them with their labels"),
        ("source-only", "the model never saw them"),
        ("dann", "trained on without labels"),
    ],
)
def test_what_was_trained_on_is_said_for_each_method(tmp_path: Path, method: str, words: str) -> None:
    text = page(two_domains(tmp_path / "run", method=method)).text
    assert words in text
    assert ("target validation (picked the epoch)" in text) == (method == "target-only")


def test_names_are_escaped_and_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    folder = two_domains(tmp_path / "run")
    run = read_json(folder / "run.json")
    write_json(folder / "run.json", run | {"selection": {"metric": SCRIPT, "value": 0.5, "split": "validation"}})
    first = html.write_report(folder).read_bytes()
    assert b"<script" not in first
    assert SCRIPT in Page(first.decode()).text
    assert html.write_report(folder).read_bytes() == first


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "history.jsonl", "metrics.json"])
@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_a_missing_or_damaged_file_still_gives_a_page(tmp_path: Path, name: str, state: str) -> None:
    folder = two_domains(tmp_path / "run")
    if state == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(b"{\xff")
    found = page(folder)
    assert "domains" in found.sections
    assert f"{name} {'is not in the run folder' if state == 'missing' else 'cannot be read'}" in found.text


def summary(folder: Path, **changed: Any) -> list[str]:
    found = read(folder)
    return summary_lines(found.metrics, found.run | changed, found.config, found.history)


def test_the_summary_names_every_split_and_the_oracle(tmp_path: Path) -> None:
    lines = summary(two_domains(tmp_path / "run"), alarms=["said once"])
    assert lines[0] == "Target test accuracy 65.0 % (90 % interval 61.0 to 69.0 %, n = 60)"
    assert lines[1].startswith("Source validation accuracy 95.0 %")
    assert lines[2] == "Source test accuracy 90.0 % (90 % interval 86.0 to 94.0 %, n = 60)"
    assert lines[3].startswith("Target training images (transductive) accuracy 70.0 %")
    assert "Kept epoch 2 of 3" in lines
    assert "Oracle epoch 3 of 3 would have given 72.0 % (never used)" in lines
    assert [line for line in lines if line.startswith("ALARM")] == ["ALARM: said once"]


def test_the_summary_of_an_unlabelled_target_does_not_call_the_test_the_targets(tmp_path: Path) -> None:
    lines = summary(two_domains(tmp_path / "run", labelled=False, oracle=False))
    assert lines[0].startswith("Source test (the target has no labels) accuracy 65.0 %")
    assert not any("Oracle" in line or "transductive" in line for line in lines)


def test_alarms_do_not_crowd_out_the_summary(tmp_path: Path) -> None:
    lines = summary(two_domains(tmp_path / "run"), alarms=[f"alarm {number}" for number in range(9)])
    alarms = [line for line in lines if line.startswith("ALARM")]
    assert len(alarms) == 4
    assert alarms[-1] == "ALARM: and 6 more, in the report"
