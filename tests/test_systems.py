"""S8 and S11 end to end through the command line, on tiny data, and the mistakes of their reports."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from finesight.cli import main
from finesight.data.plantvillage import leaf_id
from tests.models import folders

FEW = ["--evaluation.resamples", "100", "--train.epochs", "1"]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random images in the form of CIFAR-10, as npz."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("cifar") / "cifar10_small.npz"
    arrays: dict[str, Any] = {}
    for split, count in (("train", 200), ("test", 60)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 10
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def beit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "beit"
    folders.save("beit", path, ["x", "y"])
    return path


def read(output: Path, name: str) -> Any:
    return json.loads((output / name).read_text())


def test_cifar10_mlp(cifar: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert main(["run", "cifar10-mlp", "--data.root", str(cifar), "--output", str(output), *FEW]) == 0
    run = read(output, "run.json")
    assert run["model"]["total"] == 3072 * 512 + 512 + 512 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10
    assert run["classes"][0] == "airplane"
    assert read(output, "metrics.json")["test"]["accuracy"]["n"] == 60


@pytest.mark.parametrize("method", ["full", "head", "lora"])
def test_cifar10_beit_from_a_local_folder(cifar: Path, beit: Path, tmp_path: Path, method: str) -> None:
    output = tmp_path / "run"
    words = ["run", "cifar10-beit", "--data.root", str(cifar), "--model.name", str(beit), "--adapt.method", method]
    words += ["--data.limit_train", "80", "--data.limit_test", "40", "--output", str(output), *FEW]
    assert main(words) == 0
    model = read(output, "run.json")["model"]
    assert (model["trainable"] == model["total"]) is (method == "full")
    assert read(output, "metrics.json")["test"]["accuracy"]["n"] == 40
    rows = [row for row in pq.read_table(output / "predictions.parquet").to_pylist() if row["split"] == "test"]
    assert main(["eval", str(output)]) == 0
    assert {row["reference"] for row in rows} <= set(read(output, "run.json")["classes"])


TOMATO = {
    "tomato-vit64": ["--data.limit_train", "60", "--data.limit_test", "30", "--train.balance", "8"],
    "tomato-inception-head": [
        "--data.limit_train", "18", "--data.limit_test", "12", "--data.limit_validation", "12", "--train.balance", "8",
        "--model.image_size", "96", "--adapt.allow_random_frozen",
    ],
}  # fmt: skip


@pytest.mark.parametrize("recipe", list(TOMATO))
def test_tomato_recipes_split_by_leaf(real_data: Path, tmp_path: Path, recipe: str) -> None:
    """S11 split after augmenting, so that copies of one leaf were on both sides, and had no test split."""
    output = tmp_path / "run"
    words = ["run", recipe, "--data.root", str(real_data / "tomato" / "tomato.zip"), "--output", str(output)]
    assert main([*words, *TOMATO[recipe], *FEW]) == 0
    rows = pq.read_table(output / "predictions.parquet").to_pylist()
    leaves = {split: {leaf_id(row["id"]) for row in rows if row["split"] == split} for split in ("validation", "test")}
    assert leaves["test"]
    assert not leaves["test"] & leaves["validation"]
    assert {row["prediction"] for row in rows} <= set(read(output, "run.json")["classes"])
    assert "Tomato___healthy" in read(output, "run.json")["classes"]


def test_splitting_without_leaves_would_put_copies_on_both_sides(real_data: Path) -> None:
    """The mistake itself: on the real files it does happen when leaves are ignored."""
    from finesight.data.config import DataConfig
    from finesight.data.loading import load

    root = str(real_data / "tomato" / "tomato.zip")
    naive, grouped = (load(DataConfig(root=root, splits="new", group=group), 0) for group in (None, "leaf"))

    def shared(data: Any) -> int:
        sides = [{leaf_id(name) for name in data[split]["id"]} for split in ("train", "test")]
        return len(sides[0] & sides[1])

    assert shared(naive) > 10
    assert shared(grouped) == 0


def test_tomato_models_share_one_test_set(real_data: Path) -> None:
    """S11 compared three models on three different test sets."""
    from finesight import config, recipes
    from finesight.data.loading import load

    ids = []
    for name in ("tomato-vit64", "tomato-vit256", "tomato-inception", "tomato-inception-head"):
        _, base = recipes.read(name)
        given = {"data": {"root": str(real_data / "tomato" / "tomato.zip"), "near_duplicates": "ignore"}}
        settings = config.build(recipes.task_class(base).Config, base, given)
        ids.append(load(settings.data, settings.seed)["test"]["id"])
    assert ids[0] == ids[1] == ids[2] == ids[3]
