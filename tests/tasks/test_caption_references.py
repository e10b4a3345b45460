"""Captioning with several references an image and with BERTScore: what is learnt, likelihoods, scores, whole runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from finesight import config
from finesight.cli import main
from finesight.engine import Engine
from finesight.evaluate import evaluate, predict
from finesight.metrics import captions
from finesight.metrics.bertscore import NAMES, BertScore
from finesight.tasks import caption_controls, caption_splits
from finesight.tasks.captioning import Captioning, CaptioningConfig
from finesight.tasks.generation import token_losses
from tests import pictures
from tests.metrics.test_bertscore import save_bert

TEXTS = (
    ["a red dog", "the dog runs on the grass"],
    ["a cat"],
    ["two cars on the street", "a car", "cars near the tree"],
)
SMALL = {"precision": "fp32", "model.image_size": 24, "generation.max_tokens": 12, "evaluation.resamples": 100}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes with one to three captions."""
    root = pictures.folder(tmp_path_factory.mktemp("data") / "shapes", each=10)
    files = sorted(root.rglob("*.png"))
    rows = [f"{file.relative_to(root)},{text}" for number, file in enumerate(files) for text in TEXTS[number % 3]]
    (root / "table.csv").write_text("\n".join(["image,caption", *rows]))
    return root / "table.csv"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


def prepared(table: Path, cache: Path, **options: Any) -> Captioning:
    flat = {
        "data.root": str(table), "data.cache_dir": str(cache), "train.batch_size": 4, "evaluation.batch_size": 4,
        **SMALL, **options,
    }  # fmt: skip
    settings = config.build(CaptioningConfig, config.nest(flat))
    task = Captioning(settings, ["image"], Engine("fp32"), lambda _text: None)
    task.prepare(Captioning.load(settings))
    return task


def test_training_shows_every_caption_of_an_image(table: Path, tmp_path: Path) -> None:
    task = prepared(table, tmp_path)
    seen: dict[str, set[str]] = {}
    for epoch in range(12):
        for batch in task.train.epoch(epoch):
            for name, tokens, length in zip(batch["id"], batch["tokens"], batch["length"], strict=True):
                text = task.model.tokenizer.decode(tokens[: int(length) - 1].tolist())
                seen.setdefault(name, set()).add(text)
    truth = dict(zip(task.train.ids, task.references("train"), strict=True))
    assert {name: sorted(texts) for name, texts in seen.items()} == truth
    assert {len(texts) for texts in seen.values()} == {1, 2, 3}


def test_the_likelihood_is_that_of_all_references(table: Path, tmp_path: Path) -> None:
    task = prepared(table, tmp_path)
    rows = predict(task, "test", task.engine)
    batches = task.held_out("test")
    for row, (texts, name) in enumerate(zip(task.references("test"), batches.ids, strict=True)):
        states = task.states(batches.take(np.array([row])))
        total, count = 0.0, 0
        for text in texts:
            tokens = torch.tensor(caption_splits.tokens(task, [text], "test"))
            with torch.inference_mode():
                losses, _ = token_losses(task.model, states, tokens, torch.tensor([tokens.shape[1]]))
            total, count = total + float(losses.double().sum()), count + len(losses)
        assert rows[row, 1] == count, name
        assert rows[row, 0] == pytest.approx(total, rel=1e-5), name
    scores = task.metric.reduce(task.metric.statistics(rows, task.references("test")).sum(0))
    assert scores["nll"] == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum())


def test_scores_are_those_of_all_references(table: Path, tmp_path: Path, bert: Path) -> None:
    task = prepared(table, tmp_path, **{"evaluation.bertscore": str(bert), "evaluation.bertscore_layer": 2})
    rows = predict(task, "test", task.engine)
    ids, written = list(task.held_out("test").ids), task.texts(rows)
    written[:3] = ["a red dog", "cars", "a cat on the grass"]  # the untrained model shares no word with anything
    task.metric.texts = lambda _rows: written
    found = evaluate(task, {"test": rows}, {"test": ids}, task.config.evaluation, 0, baselines=False)["test"]
    truth = dict(zip(ids, task.references("test"), strict=True))
    assert max(map(len, truth.values())) > 1
    expected = captions.score(dict(zip(ids, written, strict=True)), truth, resamples=100, bertscore=BertScore(bert, 2))
    assert {name: entry for name, entry in expected.items() if name != "signature"} == {
        name: entry for name, entry in found.items() if name != "nll"
    }
    first = captions.score(dict(zip(ids, written, strict=True)), {name: texts[:1] for name, texts in truth.items()})
    assert first["bleu_1"]["value"] < expected["bleu_1"]["value"]


def test_the_most_frequent_caption_is_counted_over_all(table: Path, tmp_path: Path) -> None:
    task = prepared(table, tmp_path)
    lists = task.references("train")
    every = [text for texts in lists for text in texts]
    predict(task, "test", task.engine)
    frequent = caption_controls.controls(task)[caption_controls.FREQUENT]["test"][0]
    assert every.count(frequent) == max(map(every.count, every))
    assert set(caption_controls.controls(task)[caption_controls.NEAREST]["test"]) <= set(every)


def test_the_tokenizer_knows_all_captions(table: Path, tmp_path: Path) -> None:
    task = prepared(table, tmp_path)
    assert len(task.model.tokenizer.encode("street")) <= 2  # a word of further captions only


# ---- whole runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(table: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    options = {"data.root": table, **SMALL, "train.epochs": 2, "evaluation.bertscore": bert,
               "evaluation.bertscore_idf": "true", "train.select": "bertscore_f1"}  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert main(["run", "caption", *words, "--output", str(output)]) == 0
    return output


def read(output: Path, name: str) -> Any:
    return json.loads((output / name).read_text())


def test_a_run_measures_and_selects_by_bertscore(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics, run = read(finished, "metrics.json"), read(finished, "run.json")
    for name in NAMES:
        assert 0 < metrics["test"][name]["low"] <= metrics["test"][name]["value"] <= metrics["test"][name]["high"] <= 1
        assert all(splits["test"][name]["value"] is not None for splits in metrics["baselines"].values())
    assert "layer 3/3, idf of these references" in run["conditions"]["caption metrics"]
    history = [json.loads(line)["validation"] for line in (finished / "history.jsonl").read_text().splitlines()]
    assert run["selection"]["value"] == max(row["bertscore_f1"] for row in history)
    assert metrics["validation"]["bertscore_f1"]["value"] == run["selection"]["value"]
    rows = pq.read_table(finished / "predictions.parquet").to_pylist()
    assert {len(row["reference"]) for row in rows} == {1, 2, 3}
    assert "BERTScore F1" in (finished / "report.html").read_text(encoding="utf-8")
    assert any("captions of 30 images, 1 to 3 each" in note for note in run["data"]["notes"])
    capsys.readouterr()
    assert main(["compare", str(finished), str(finished)]) == 0
    assert "bertscore_f1 (higher is better)" in capsys.readouterr().out


def test_a_replay_is_bit_identical_and_eval_measures_with_another_layer(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(finished)]) == 0
    stored = read(finished, "metrics.json")["test"]
    for layer, same in ((3, True), (1, False)):
        capsys.readouterr()
        assert main(["eval", str(finished), "--evaluation.bertscore_layer", str(layer), "--json"]) == 0
        text = capsys.readouterr().out
        again = json.loads(text[text.index("{") :])
        assert (again["bertscore_f1"] == stored["bertscore_f1"]) == same
        assert again["cider"] == stored["cider"]


def test_bertscore_changes_nothing_of_training(finished: Path, table: Path, tmp_path: Path) -> None:
    options = {"data.root": table, **SMALL, "train.epochs": 2}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert main(["run", "caption", *words, "--output", str(tmp_path / "run")]) == 0
    losses = [
        [json.loads(line)["train"]["loss"] for line in (output / "history.jsonl").read_text().splitlines()]
        for output in (finished, tmp_path / "run")
    ]
    assert losses[0] == losses[1]
    assert not set(NAMES) & set(read(tmp_path / "run", "metrics.json")["test"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--evaluation.bertscore", "./nowhere/bert"], "no such folder"),
        (["--evaluation.bertscore", "BERT", "--evaluation.bertscore_layer", "4"], "has 3 layers; give 0 to 3"),
        (["--evaluation.bertscore_layer", "2"], "BERTScore is not measured"),
        (["--train.select", "bertscore_f1"], "bertscore_f1"),
    ],
)
def test_impossible_options_are_refused_before_work(
    options: list[str], said: str, table: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(bert) if word == "BERT" else word for word in options]
    assert main(["run", "caption", "--data.root", str(table), *words, "--output", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
