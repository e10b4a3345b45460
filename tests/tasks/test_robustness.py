"""Zero-shot classification and its defences (S12): counts, losses, what stays frozen, and the mistakes to exclude."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from finesight import config as configuration
from finesight import experiment
from finesight.adaptation import zero_shot
from finesight.adaptation.zero_shot import ZeroShotAdaptConfig
from finesight.attacks import Normalized
from finesight.cli import main
from finesight.engine import Engine
from finesight.errors import ConfigError, ModelError
from finesight.losses import tecoa_loss
from finesight.models import clip
from finesight.models.clip import ClipConfig
from finesight.reopen import quiet
from finesight.tasks import retention, robustness
from finesight.tasks.defence import ADVERSARIAL, DefenceConfig
from finesight.tasks.robustness import Robustness, RobustnessConfig
from tests.models import folders

CLASSES = ["airplane", "cat", "frog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "clip"
    folders.clip_folder(path, [f"a photo of a {name}." for name in CLASSES])
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise around one brightness a class, 16 x 16, as npz."""
    draws = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("images") / "small.npz"
    arrays: dict[str, Any] = {"classes": np.array(CLASSES)}
    for split, count in (("train", 30), ("validation", 12), ("test", 12)):
        labels = np.arange(count) % 3
        noise = draws.integers(0, 60, (count, 16, 16, 3))
        arrays[f"{split}_images"] = (noise + 60 * labels[:, None, None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    np.savez(path, **arrays)
    return path


def made(folder: Path, images: Path, tmp_path: Path, **given: Any) -> Robustness:
    given.setdefault("defence__method", "cross-entropy")
    options = {
        "data.root": str(images), "data.cache_dir": str(tmp_path), "data.size": 16, "model.name": str(folder),
        "train.epochs": 1, "train.batch_size": 6, "adapt.method": "lora", "adapt.rank": 2, "adapt.dropout": 0.0,
        "precision": "fp32", **{name.replace("__", "."): value for name, value in given.items()},
    }  # fmt: skip
    settings = configuration.build(RobustnessConfig, configuration.nest(options))
    data = Robustness.load(settings)
    task = Robustness(settings, list(data["train"].features["label"].names), Engine("fp32"), quiet)
    task.prepare(data)
    return task


def losses_of(task: Robustness, seed: int = 0, **changed: Any) -> torch.Tensor:
    batch = task.train.take(np.arange(6)) | changed
    torch.manual_seed(seed)
    return next(task.train_step(batch)).loss


# ---- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "trainable", "total"), [("lora", 442_368, 87_898_368), ("prompts", 7_680, 87_463_680)]
)
def test_the_counts_of_the_report_and_what_gradients_reach(method: Any, trainable: int, total: int) -> None:
    """S12 froze the vision tower alone, so that projections and temperature trained too."""
    model = clip.build(ClipConfig(name="clip-vit-base-patch32"), CLASSES)
    found = zero_shot.apply(model, ZeroShotAdaptConfig(method=method, allow_random_frozen=True))
    assert (found.trainable, found.total) == (trainable, total)
    reached = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum(model.get_parameter(name).numel() for name in reached) == trainable
    assert all("lora_" in name or name.endswith("embeddings.prompts.tokens") for name in reached)
    for name in reached:  # B starts at zero, and would hide A from the gradient
        nn.init.normal_(model.get_parameter(name), std=0.02)
    model(torch.randn(1, 3, 224, 224)).square().sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == reached
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in reached)  # type: ignore[union-attr]


def test_projection_and_temperature_train_only_when_asked(folder: Path) -> None:
    for projection, temperature, more in ((False, False, 0), (True, False, 8 * 16), (True, True, 8 * 16 + 1)):
        model = clip.build(ClipConfig(name=str(folder)), CLASSES)
        settings = ZeroShotAdaptConfig(method="lora", rank=1, projection=projection, temperature=temperature)
        found = zero_shot.apply(model, settings)
        assert found.trainable == 2 * 3 * (16 + 16) + more
        trained = {name for name, parameter in model.head.named_parameters() if parameter.requires_grad}
        assert ("projection.weight" in trained, "log_scale" in trained) == (projection, temperature)


def test_random_weights_that_would_stay_are_refused() -> None:
    model = clip.build(ClipConfig(name="small-clip"), CLASSES)
    with pytest.raises(ModelError, match="allow_random_frozen"):
        zero_shot.apply(model, ZeroShotAdaptConfig(method="lora"))


@pytest.mark.parametrize(
    "given",
    [{"defence__method": "fare"}, {"defence__method": "coprompt"}, {"retention__labels": dict.fromkeys(CLASSES, "x")}],
)
def test_the_model_before_training_must_have_weights(
    folder: Path, images: Path, tmp_path: Path, given: dict[str, Any]
) -> None:
    """A random one would be drawn anew, and be another."""
    if "retention__labels" in given:
        given = {"retention__labels": {**given["retention__labels"], "cat": "y"}}
    for model in ({"model__name": "small-clip"}, {"model__pretrained": False}):
        with pytest.raises(ModelError, match="drawn anew"):
            made(folder, images, tmp_path, adapt__allow_random_frozen=True, **given, **model)


def test_a_folder_with_the_name_of_a_built_in_model_is_not_passed_over(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "small-clip")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"\./small-clip"):
        clip.build(ClipConfig(name="small-clip"), CLASSES)
    named = clip.build(ClipConfig(name="./small-clip"), CLASSES)
    expected = clip.build(ClipConfig(name=str(folder)), CLASSES)
    assert torch.equal(named.head.class_vectors, expected.head.class_vectors)  # type: ignore[arg-type]


# ---- one function of pixels -----------------------------------------------------------------------


def test_predictions_are_those_of_the_function_that_attacks_see(folder: Path, images: Path, tmp_path: Path) -> None:
    task = made(folder, images, tmp_path)
    batch = task.held_out("test").take(np.arange(12))
    assert batch["image"].shape[-1] == 16  # attacked as held; the model resizes to 32 inside
    with torch.inference_mode():
        seen = task.predict(batch)
    pixels = batch["image"].float() / 255
    resized = functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (task.model.mean, task.model.std))
    direct = task.model((resized - mean) / std).double().softmax(1)
    np.testing.assert_allclose(seen, direct.detach().numpy(), atol=1e-6)


# ---- losses ---------------------------------------------------------------------------------------


def test_tecoa_is_its_loss_on_attacked_images_and_no_less_than_on_clean_ones(
    folder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = made(folder, images, tmp_path, defence__method="tecoa", defence__eps="8/255", defence__iters=5)
    clean = made(folder, images, tmp_path, defence__method="cross-entropy")
    shown: list[torch.Tensor] = []
    true = robustness.pgd

    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        shown.append(true(*arguments, **options))
        return shown[-1]

    monkeypatch.setattr(robustness, "pgd", watched)
    attacked = losses_of(task)
    assert attacked > losses_of(clean) + 1e-4
    batch = task.train.take(np.arange(6))
    moved = (shown[0] - batch["image"].float() / 255).abs().max()
    assert 4 / 255 < moved <= 8 / 255 + 1e-6
    features = functional.normalize(task.pixels_to_features(shown[0]), dim=-1)
    expected = tecoa_loss(features, task.model.head.class_vectors, batch["label"], task.scale)  # type: ignore[arg-type]
    torch.testing.assert_close(attacked, expected)


def test_fare_needs_no_label_and_its_original_features_are_cached(folder: Path, images: Path, tmp_path: Path) -> None:
    task = made(folder, images, tmp_path, defence__method="fare", defence__eps="4/255")
    batch = task.train.take(np.arange(6))
    assert batch["original"].shape == (6, 8)
    torch.testing.assert_close(batch["original"], task.features_before(batch["image"].float() / 255))
    assert losses_of(task) == losses_of(task, label=torch.zeros(6, dtype=torch.int64))
    assert losses_of(task) > 1e-6
    augmented = made(folder, images, tmp_path, defence__method="fare", defence__eps="4/255", augment__flip=1.0)
    assert "original" not in augmented.train.columns


def test_fare_starts_at_zero_without_an_attack(folder: Path, images: Path, tmp_path: Path) -> None:
    task = made(folder, images, tmp_path, defence__method="fare", defence__eps="0.0000001")
    assert losses_of(task).item() == pytest.approx(0, abs=1e-6)


def test_coprompt_starts_as_consistent_as_the_changes_let_it(
    folder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = made(folder, images, tmp_path, defence__method="coprompt")
    assert losses_of(task) > losses_of(made(folder, images, tmp_path, defence__method="cross-entropy"))
    monkeypatch.setattr(robustness, "_changed", lambda images: images)
    pixels = task.train.take(np.arange(6))["image"].float() / 255
    assert task._inconsistency(pixels).item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        task.model.head.offset.add_(torch.randn_like(task.model.head.offset))  # type: ignore[operator,arg-type]
    assert task._inconsistency(pixels) > 0.05


@pytest.mark.parametrize("method", ["cross-entropy", "tecoa", "fare", "coprompt"])
@pytest.mark.parametrize("adapt", ["lora", "prompts", "full"])
def test_steps_move_what_trains_and_nothing_else(
    folder: Path, images: Path, tmp_path: Path, method: str, adapt: str
) -> None:
    task = made(folder, images, tmp_path, defence__method=method, adapt__method=adapt)
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    trained = {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    optimizer = task.optimizers()["model"]
    task.model.train()
    for _ in range(2):  # in the first step B of LoRA is zero, so that A stays
        losses_of(task).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, tensor in task.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved <= trained
    assert moved
    assert ("head.offset" in moved) is (method == "coprompt")
    assert not [name for name in moved if name.startswith("head.") and name != "head.offset"]


def test_adversarial_accuracy_is_below_the_clean_one_and_repeats(folder: Path, images: Path, tmp_path: Path) -> None:
    task = made(folder, images, tmp_path, defence__method="tecoa", defence__eps="16/255")
    first = task.validators({})[ADVERSARIAL]
    assert first == task.validators({})[ADVERSARIAL]
    with torch.inference_mode():
        clean = task.predict(task.held_out("validation").take(np.arange(12))).argmax(1)
    assert first <= (clean == task.labels["validation"]).mean()


# ---- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {"adapt": {"method": "lora"}, "train": {"epochs": 1}},
        {"defence": {"method": "tecoa"}, "train": {"epochs": 1}},
        {"adapt": {"method": "lora"}, "defence": {"method": "tecoa"}, "train": {"epochs": 0}},
        {"train": {"epochs": 2}},
    ],
)
def test_a_defence_needs_parameters_and_epochs(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="do not go together"):
        configuration.build(RobustnessConfig, given)


def test_the_attack_that_follows_changes_no_number_of_the_run() -> None:
    """So that a run whose attack was impossible is continued with another."""
    given: dict[str, Any] = {"train": {"epochs": 0}}
    before, other = (
        configuration.build(RobustnessConfig, given, {"attack": attack}) for attack in ({}, {"iters": 7, "eps": [0.1]})
    )
    assert experiment.changes(before, other) == []
    assert experiment.changes(before, configuration.build(RobustnessConfig, given, {"seed": 1})) != []


def test_lengths_are_fractions_of_the_range() -> None:
    assert DefenceConfig(eps="4/255", iters=3).stride == pytest.approx(2.5 * 4 / 255 / 3)
    assert DefenceConfig(eps="4/255", iters=1).stride == pytest.approx(4 / 255)
    with pytest.raises(ConfigError, match="8/255"):
        configuration.build(DefenceConfig, {"eps": 8})


# ---- through the command line ---------------------------------------------------------------------


QUICK = [
    "--data.size", "16", "--data.limit_train", "none", "--train.batch_size", "10", "--evaluation.resamples", "100",
    "--attack.images", "12", "--attack.eps", "2/255,8/255", "--attack.iters", "3", "--attack.auto", "6",
    "--attack.auto_iters", "5", "--attack.queries", "20", "--attack.steps", "1,3", "--attack.steps_images", "12",
    "--attack.corruptions", "contrast", "--defence.validated", "6",
]  # fmt: skip


def test_a_run_from_data_to_attack(folder: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
    """Trains, measures, attacks; stops, continues and repeats bit for bit; says what it loses on other labels."""
    output = tmp_path / "run"
    words = [
        "run",
        "clip-vpt",
        "--data.root",
        str(images),
        "--model.name",
        str(folder),
        *QUICK,
        "--output",
        str(output),
    ]
    words += ["--retention.labels", '{"airplane": "machine", "cat": "animal", "frog": "animal"}']
    assert main([*words, "--train.max_steps", "2"]) == 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["test"]["accuracy"]["n"] == 12
    assert metrics["baselines"]["before training"]["test"]["accuracy"]["n"] == 12
    assert set(metrics["retention"]) == {"before", "after", "difference", "images"}
    attacked = json.loads((output / "attack" / "attack.json").read_text())
    assert attacked["conditions"]["clean"]["accuracy"]["n"] == 12
    assert '<section id="robustness">' in (output / "report.html").read_text()
    capsys.readouterr()
    assert main(["eval", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == metrics["test"]["accuracy"]
    assert main(["replay", str(output)]) == 0
    assert "bit for bit" in capsys.readouterr().out


def test_a_wrong_second_label_set_costs_no_training(folder: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["run", "clip-vpt", "--data.root", str(images), "--model.name", str(folder), *QUICK]
    words += ["--output", str(tmp_path / "run"), "--retention.root", str(tmp_path / "typo.npz")]
    assert main(words) == 2
    assert "typo.npz" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_second_set_of_images_is_read_before_the_first_step(folder: Path, images: Path, tmp_path: Path) -> None:
    task = made(folder, images, tmp_path, retention__root=str(images))
    assert task.second is not None
    assert (len(task.second.labels), task.second.classes) == (12, CLASSES)
    found = retention.measured(task, ["0"] * 12)["retention"]
    assert found["images"].startswith(f"12 images of 3 classes from {images}, fingerprint ")
    assert found["before"]["n"] == 12


def test_zero_shot_needs_no_training(folder: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    words = ["run", "clip-zero-shot", "--data.root", str(images), "--model.name", str(folder), *QUICK]
    assert main([*words, "--output", str(output)]) == 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert "improvement" not in metrics
    run = json.loads((output / "run.json").read_text())
    assert (run["epochs"], run["steps"], run["best_epoch"]) == (0, 0, None)
    model = clip.build(ClipConfig(name=str(folder)), CLASSES)
    stored = np.load(images)
    pixels = torch.from_numpy(stored["test_images"]).permute(0, 3, 1, 2).float() / 255
    seen = Normalized(model, model.mean, model.std, model.image_size)(pixels).argmax(1).numpy()
    assert metrics["test"]["accuracy"]["value"] == pytest.approx((seen == stored["test_labels"]).mean())


def test_a_second_label_set_is_told_apart_by_the_text_tower(folder: Path, images: Path, tmp_path: Path) -> None:
    labels = {"airplane": "machine", "cat": "animal", "frog": "animal"}
    task = made(folder, images, tmp_path, retention__labels=labels)
    found = retention.measured(task, [str(number) for number in range(12)])["retention"]
    assert found["before"] == found["after"]  # LoRA has not moved yet
    model = clip.build(ClipConfig(name=str(folder)), ["animal", "machine"])
    pixels = task.pixels["test"].float() / 255
    with torch.no_grad():
        seen = Normalized(model, model.mean, model.std, model.image_size)(pixels).argmax(1).numpy()
    names = np.array(["animal", "machine"])[seen]
    truth = [labels[CLASSES[label]] for label in task.labels["test"]]
    assert found["after"]["value"] == pytest.approx((names == truth).mean())
    with pytest.raises(ConfigError, match=r"without one: cat;"):
        retention._renamed(CLASSES, {"airplane": "machine", "frog": "animal"})
