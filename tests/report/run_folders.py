"""Small finished run folders, as `finesight.experiment` leaves them, without training."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from finesight.files import write_json, write_text
from finesight.metrics.bootstrap import intervals
from finesight.metrics.classification import ClassificationMetric
from finesight.report import figures


def probabilities(samples: int, classes: int, labels: Any, certainty: float, seed: int = 0) -> Any:
    """float64 [N, C]; a certainty of 50 makes no mistake."""
    logits = np.random.default_rng(seed).normal(size=(samples, classes))
    logits[np.arange(samples), labels] += certainty
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def make(folder: Path, classes: list[str], certainty: float = 2.0, samples: int = 60, per_group: int = 1) -> Path:
    """A run folder with every file of a finished run but its weights."""
    folder.mkdir(parents=True)
    metric = ClassificationMetric(classes)
    labels = np.arange(samples) % len(classes)
    groups = [f"leaf {row // per_group}" for row in range(samples)]
    scores = probabilities(samples, len(classes), labels, certainty)
    together = groups if per_group > 1 else None

    def measured(rows: Any) -> dict[str, Any]:
        return intervals(metric, metric.statistics(rows, labels), groups=together, resamples=100)

    constant = np.tile(np.eye(len(classes))[0], (samples, 1))
    tested = measured(scores)
    write_json(
        folder / "metrics.json",
        {"test": tested, "validation": tested, "baselines": {"majority class": {"test": measured(constant)}}},
    )
    parts = [
        pa.table(
            {
                "id": [f"{split}/{row}" for row in range(samples)],
                "split": [split] * samples,
                "group": groups,
                "reference": [classes[label] for label in labels],
                "prediction": [classes[label] for label in scores.argmax(1)],
                "scores": scores.tolist(),
            }
        )
        for split in ("validation", "test")
    ]
    pq.write_table(pa.concat_tables(parts), folder / "predictions.parquet")
    counts = {split: dict.fromkeys(classes, 20) for split in ("train", "validation", "test")}
    write_json(folder / "run.json", provenance(classes, counts))
    write_text(
        folder / "config.yaml", "train:\n  epochs: 3\n  lr: 0.003\n  batch_size: 8\nevaluation:\n  level: 0.95\n"
    )
    history = (
        '{"epoch": 1, "step": 8, "lr": 0.003, "train": {"loss": 1.0}, "validation": {"loss": 1.1}, "best": true}\n'
    )
    write_text(folder / "history.jsonl", history)
    drawn = figures.class_chart(counts)
    figures.save({"classes": (drawn, "Images per class", "Counts of each split.")}, folder / "figures")
    return folder


def provenance(classes: list[str], counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    return {
        "recipe": "toy",
        "task": "classification",
        "status": "finished",
        "classes": classes,
        "command": "finesight run toy --data.root 'my leaves'",
        "versions": {"finesight": "0.1.0", "torch": "2.9.0"},
        "git": None,
        "seeds": {"seed": 7},
        "threads": 2,
        "processes": 1,
        "device": "cpu",
        "precision": "fp32",
        "hardware": {"platform": "Linux", "processor": "P", "cores": 2, "memory_bytes": 8_000_000_000, "gpus": []},
        "started": "2026-01-02T03:04:05+0000",
        "data": {"root": "my leaves", "fingerprint": "f1f2f3", "counts": counts, "notes": ["Split anew."]},
        "model": {
            "name": "small-cnn",
            "trainable": 10,
            "total": 40,
            "adapted": ["head"],
            "frozen_random": ["pooler.weight"],
            "audit": ["Trained: 10 of 40 parameters (25.00%).", "  head"],
        },
        "alarms": ["Too good & <b>suspicious</b>."],
        "best_epoch": 1,
        "epochs": 3,
        "steps": 24,
        "selection": {"metric": "accuracy", "split": "validation", "value": 0.9},
        "peak_memory_bytes": 1_200_000_000,
        "timing": {"wall_s": 3725.2},
    }
