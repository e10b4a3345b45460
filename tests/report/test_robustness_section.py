"""The report of a stress test: every number is shown, names are escaped, damage gives a sentence, figures hold data."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from finesight.files import write_json
from finesight.report import figures, html, robustness_figures
from finesight.report.robustness_section import section, sentence
from tests.report import run_folders
from tests.report.test_html import SECTIONS, Page

SCRIPT = "<script>alert(1)</script>"
CLASSES = ["cat", "dog", SCRIPT]
EPS = {0.5 / 255: (0.9, 0.85), 8 / 255: (0.5, 0.125)}
WITH = [*SECTIONS[: SECTIONS.index("figures")], "robustness", *SECTIONS[SECTIONS.index("figures") :]]


def entry(value: float, n: int = 40) -> dict[str, Any]:
    return {"value": value, "low": max(value - 0.05, 0), "high": min(value + 0.05, 1), "n": n}


def made(kind: str, value: float, n: int = 40, **about: Any) -> dict[str, Any]:
    return {"kind": kind, **about, "accuracy": entry(value, n), "seconds": 1.5}


def about(norm: str = "linf", **changed: Any) -> dict[str, Any]:
    """The content of an attack.json."""
    conditions = {"clean": made("clean", 0.975), "noise eps 8/255": made("noise", 0.95, eps=8 / 255)}
    for eps, (single, many) in EPS.items():
        conditions[f"fgsm eps {255 * eps:g}/255"] = made("fgsm", single, eps=eps)
        conditions[f"pgd eps {255 * eps:g}/255"] = made("pgd", many, eps=eps, iters=20)
    for count, value in ((1, 0.6), (20, 0.3)):
        conditions[f"pgd eps 8/255, {count} steps"] = made("steps", value, 20, eps=8 / 255, iters=count)
    conditions["check eps 127.5/255"] = made("huge", 0.0, 10, eps=0.5, iters=20)
    conditions["transfer eps 8/255"] = made("transfer", 0.775, eps=8 / 255, iters=20)
    for stage, value, last in (("apgd-ce", 0.15, False), ("square", 0.1, True)):
        name = "auto eps 8/255" + ("" if last else f", up to {stage}")
        conditions[name] = made("auto", value, 10, eps=8 / 255, stage=stage, last=last)
    values = {"jpeg": (0.95, 0.9, 0.85, 0.8, 0.75), "contrast": (0.9, 0.8, 0.7, 0.6, 0.45)}
    for kind, of in values.items():
        for level, value in enumerate(of, start=1):
            conditions[f"{kind} {level}"] = made("corruption", value, corruption=kind, severity=level)
    conditions["stored"] = made("stored", 0.15, eps=8 / 255)
    means = {
        "accuracy": entry(0.77), "mean_corruption_error": entry(0.23), "relative": entry(0.205),
        "by_kind": {kind: entry(float(np.mean(of))) for kind, of in values.items()},
        "by_severity": {str(k + 1): entry(float(np.mean([of[k] for of in values.values()]))) for k in range(5)},
    }  # fmt: skip
    return {
        "format": 1, "options": {"norm": norm, "iters": 20, "step": None, "restarts": 2, "seed": 7, "eps": []},
        "classes": CLASSES, "images": 40, "of": 60, "resolution": {"attacked": 64, "model": 32},
        "precision": {"verdicts": "fp32", "steps": "bf16"}, "data": {"fingerprint": "f"},
        "model": {"name": "small-cnn", "weights": "w"}, "alone": {"pgd eps 8/255": 0.15},
        "surrogate": {"name": SCRIPT, "clean": 0.925, "attacked": 0.025}, "conditions": conditions, "corruption": means,
        "alarms": ["Gradient masking & <b>more</b>."], "command": "finesight attack 'my run'", "seconds": 61.2,
        **changed,
    }  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run_folders.make(tmp_path_factory.mktemp("runs") / "toy", CLASSES)
    (folder / "attack").mkdir()
    write_json(folder / "attack" / "attack.json", about())
    figures.save(robustness_figures.drawn(about(), *drawings()), folder / "attack" / "figures")
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "toy"))


def drawings() -> tuple[Any, Any, Any]:
    """Images, the measured conditions that examples are drawn from, and labels."""
    images = torch.randint(20, 230, (12, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = np.arange(12) % 3
    conditions = {
        "clean": SimpleNamespace(predictions=labels.copy()),
        "stored": SimpleNamespace(predictions=labels.copy()),
    }
    conditions["clean"].predictions[0] = 2  # wrong without an attack: no example
    conditions["stored"].predictions[:8] = (labels[:8] + 1) % 3
    return images, SimpleNamespace(conditions=conditions, adversarial=images + 8), labels


def written(folder: Path) -> Page:
    return Page(html.write_report(folder).read_text(encoding="utf-8"))


def test_every_number_is_shown(folder: Path) -> None:
    page = written(folder)
    assert page.sections == WITH
    for fact in (
        "Right on 97.5 % of 40 test images without an attack, on 12.5 % under PGD (eps 8/255, linf), on 10.0 % of 10 "
        "under the ensemble (eps 8/255), and on 77.0 % under corruptions on average.",
        "40 of 60 test images, chosen by seed 7 and id", "64 × 64 in [0, 1], which the model resizes to 32 inside",
        "linf, 20 steps of 2.5 eps / steps, 2 random starts", "steps in bf16, verdicts in fp32",
        "eps 8/255 by itself leaves 15.0 %", "92.5 % without the attack, 2.5 % under it",
        "the ensemble after APGD on the cross-entropy", "By number of steps, eps 8/255", "60.0 %", "77.5 %",
        "45.0 %", "69.0 %",
        "Mean corruption error: 23.0 %", "The corruptions add +20.5 points", "finesight attack 'my run'",
        "The stress test raised 1 alarm: see Robustness", "Gradient masking & <b>more</b>.",
    ):  # fmt: skip
        assert fact in page.text, fact
    assert "script" not in page.tags
    assert SCRIPT in page.text
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.sections)


def test_a_run_that_was_never_attacked_has_no_section(folder: Path) -> None:
    shutil.rmtree(folder / "attack")
    assert written(folder).sections == SECTIONS


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"conditions": {}}'])
def test_a_damaged_file_gives_a_sentence(folder: Path, content: str) -> None:
    (folder / "attack" / "attack.json").write_text(content)
    page = written(folder)
    assert page.sections == WITH
    assert "attack/attack.json cannot be read" in page.text


def test_missing_parts_leave_no_gap(folder: Path) -> None:
    less = about(corruption={}, alarms=[], surrogate=None)
    less["conditions"] = {
        name: c for name, c in less["conditions"].items() if c["kind"] in ("clean", "noise", "fgsm", "pgd", "stored")
    }
    write_json(folder / "attack" / "attack.json", less)
    shutil.rmtree(folder / "attack" / "figures")
    page = written(folder)
    assert "PGD with random noise and PGD with FGSM." in page.text
    assert "may go unseen: more steps of PGD (--steps), the ensemble of attacks (--auto), a transferred" in page.text
    assert "Corruptions" not in page.text
    assert "By number of steps" not in page.text
    assert (
        "ensemble:"
        not in page.text.partition("Files in the folder")[0].partition("Robustness")[2].partition("By budget")[0]
    )


def test_stored_images_of_other_runs_are_listed(folder: Path) -> None:
    source = {"model": {"name": SCRIPT}, "attack": "pgd, eps 8/255", "sha256": "abcdef0123456789"}
    found = {"source": source, "accuracy": entry(0.625), "clean": None, "alarms": ["It may have seen them."]}
    (folder / "stored").mkdir()
    write_json(folder / "stored" / "abcdef012345.json", found)
    (folder / "stored" / "damaged.json").write_text("{")
    for place in (folder / "attack", folder / "nothing"):
        page = written(folder)
        for fact in ("Stored images of other runs", "abcdef012345", "62.5 %", "It may have seen them.", SCRIPT):
            assert fact in page.text, fact
        assert page.sections == WITH
        shutil.rmtree(place, ignore_errors=True)


def test_checks_that_ran_are_named() -> None:
    from finesight.report.robustness_section import _checks

    text = _checks(about()["conditions"])
    assert "PGD with more steps, PGD with the ensemble of attacks and PGD with a transferred attack." in text
    assert "unseen" not in text


def test_the_sentence_takes_the_worst_of_both_attacks() -> None:
    both = about()
    both["conditions"]["worst eps 8/255"] = made("worst", 0.05, 10, eps=8 / 255)
    assert "on 5.0 % of 10 under the worst of PGD and the ensemble (eps 8/255)" in sentence(both)


def test_the_sentence_names_the_largest_budget() -> None:
    text = sentence(about())
    assert "12.5 % under PGD (eps 8/255, linf)" in text


def test_the_same_files_give_the_same_bytes(folder: Path) -> None:
    first = html.write_report(folder).read_bytes()
    assert html.write_report(folder).read_bytes() == first


# ---- figures ----------------------------------------------------------------------------------


def lines(figure: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].get_lines()}


def test_the_curve_by_budget_begins_without_an_attack_and_shows_chance() -> None:
    drawn = lines(robustness_figures.budget_curve(about()["conditions"], "linf", 4))
    assert drawn["PGD"] == (pytest.approx([0, 0.5, 8]), pytest.approx([97.5, 85, 12.5]))
    assert drawn["FGSM, one step"] == (pytest.approx([0, 0.5, 8]), pytest.approx([97.5, 90, 50]))
    assert drawn["chance"][1] == [25, 25]
    assert drawn["ensemble of attacks (n = 10)"][1] == [10]
    assert drawn["transferred attack"][1] == [77.5]
    unscaled = lines(robustness_figures.budget_curve(about()["conditions"], "l2", 4))
    assert unscaled["PGD"][0] == pytest.approx([0, 0.5 / 255, 8 / 255])


def test_the_curve_by_steps_marks_what_was_used() -> None:
    steps = [c for c in about()["conditions"].values() if c["kind"] == "steps"]
    figure = robustness_figures.steps_curve(steps, 20)
    drawn = lines(figure)
    assert ([1, 20], [60, 30]) in [(x, pytest.approx(y)) for x, y in drawn.values()]
    assert drawn["used: 20 steps"][0] == [20, 20]


def test_the_map_of_corruptions_writes_every_number_and_the_means() -> None:
    figure = robustness_figures.corruption_map(about()["conditions"], about()["corruption"])
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said[:6] == ["95.0", "90.0", "85.0", "80.0", "75.0", "85.0"]
    assert said[6:] == ["90.0", "80.0", "70.0", "60.0", "45.0", "69.0"]
    assert "without corruption 97.5, mean 77.0" in figure.axes[0].get_title(loc="left")


def test_examples_are_right_before_and_wrong_after_and_the_change_says_how_amplified() -> None:
    images, found, labels = drawings()
    chosen = robustness_figures.example_rows(found, labels)
    assert len(chosen) == 6
    assert 0 not in chosen
    assert set(chosen) <= set(range(1, 8))
    assert labels[chosen][:3].tolist() in ([1, 2, 0], [0, 1, 2], [1, 0, 2])  # of different classes
    pairs = [tuple(part[row].permute(1, 2, 0).numpy() for part in (images, found.adversarial)) for row in chosen]
    figure = robustness_figures.examples(pairs, ["a"] * 6, ["a"] * 6, ["b"] * 6)
    assert figure.axes[6].get_ylabel() == "change × 15"
    shown = np.asarray(figure.axes[6].get_images()[0].get_array())
    assert (shown == 128 + 15 * 8).all()
    none = SimpleNamespace(conditions=found.conditions | {"stored": found.conditions["clean"]})
    assert len(robustness_figures.example_rows(none, labels)) == 0


def test_a_stress_test_without_steps_corruptions_or_victims_has_one_figure() -> None:
    images, found, labels = drawings()
    less = about(corruption={})
    less["conditions"] = {name: c for name, c in less["conditions"].items() if c["kind"] in ("clean", "fgsm", "pgd")}
    found.conditions["stored"] = found.conditions["clean"]
    assert list(robustness_figures.drawn(less, images, found, labels)) == ["attack_budget"]


def test_the_section_is_plain_data(folder: Path) -> None:
    from finesight.report import contents

    shown = section(contents.read(folder))
    assert shown is not None
    json.dumps(shown)
