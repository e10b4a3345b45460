"""Domain adaptation: the order of its steps, what each touches, and what the target's labels never reach."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finesight import config
from finesight.checkpoint import opened, path_of
from finesight.cli import main
from finesight.engine import Engine
from finesight.errors import ConfigError
from finesight.losses.content import content_similarity
from finesight.metrics.information import information
from finesight.tasks.domain_adaptation import DomainAdaptation, DomainAdaptationConfig

SMALL = {
    "data.source": "sklearn:digits",
    "data.backgrounds": "sklearn:photographs",
    "data.limit_train": 60,
    "data.limit_validation": 20,
    "data.limit_test": 40,
    "model.image_size": 16,
    "model.name": "pixelda",
    "pixelda.width": 8,
    "pixelda.blocks": 1,
    "precision": "fp32",
    "train.batch_size": 16,
    "train.select": "adaptation_score",
}


def prepared(**options: Any) -> DomainAdaptation:
    settings = config.build(DomainAdaptationConfig, config.nest({**SMALL, **options}))
    data = DomainAdaptation.load(settings)
    task = DomainAdaptation(settings, data["train"].features["label"].names, Engine("fp32"), lambda _: None)
    task.prepare(data)
    for module in task.modules.values():
        module.train()
    return task


@pytest.fixture(scope="module")
def task() -> DomainAdaptation:
    return prepared()


def batch_of(task: DomainAdaptation) -> dict[str, Any]:
    return next(iter(task.train.epoch(0)))


def copies(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def test_the_generators_step_touches_neither_the_other_weights_nor_their_batch_statistics(
    task: DomainAdaptation,
) -> None:
    steps = task.train_step(batch_of(task))
    first = next(steps)
    assert first.optimizer == "discriminator"
    first.loss.backward()
    assert all(p.grad is None for p in task.generator.parameters())
    for module in task.modules.values():
        module.zero_grad(set_to_none=True)
    before = {name: copies(module) for name, module in task.modules.items()}
    second = next(steps)
    second.loss.backward()
    assert second.optimizer == "generator"
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in task.generator.blocks.parameters() if p.ndim > 1)
    for name in ("discriminator", "model"):
        assert all(p.grad is None and p.requires_grad for p in task.modules[name].parameters())
        assert changed(task.modules[name], before[name]) == set()
    assert next(steps, None) is None


def test_the_discriminators_step_measures_its_batch_statistics(task: DomainAdaptation) -> None:
    before = copies(task.discriminator)
    next(task.train_step(batch_of(task)))
    assert any("running_mean" in name for name in changed(task.discriminator, before))


def test_the_generator_is_judged_by_the_discriminator_after_its_step(task: DomainAdaptation) -> None:
    """Against the stale graph of the report, all losses in one pass: the second loss must see the first step."""

    def fooling(step_between: bool) -> float:
        torch.manual_seed(0)
        steps = task.train_step(batch_of(task))
        next(steps)
        if step_between:
            with torch.no_grad():
                task.discriminator.layers[-1].bias.add_(5.0)
        value = next(steps).observed["fooling"].item()
        with torch.no_grad():
            if step_between:
                task.discriminator.layers[-1].bias.sub_(5.0)
        return value

    torch.manual_seed(0)
    # A discriminator that now finds everything real is fooled: -log D falls by nearly 5.
    assert fooling(False) - fooling(True) > 0.5


class Affine(torch.nn.Module):
    """Stands for a network: a fixed linear map of the image's mean of each channel, [B, 3, S, S] -> [B, outputs]."""

    def __init__(self, outputs: int, seed: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(outputs, 3, generator=torch.Generator().manual_seed(seed)))

    def features(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images) @ self.weight.T


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Written out: mean of log-sum-exp minus the logit of the label."""
    return (logits.exp().sum(1).log() - logits[torch.arange(len(labels)), labels]).mean().item()


def test_both_losses_of_pixelda_equal_the_papers_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"discriminator": 0.3, "adversarial": 0.7, "task": 0.2, "content": 0.9}
    task = prepared(**{f"pixelda.{name}_weight": value for name, value in weights.items()})
    classifier, judge = Affine(10, 1), Affine(1, 2)
    monkeypatch.setattr(task.model, "forward", classifier.forward)
    monkeypatch.setattr(task.discriminator, "forward", lambda images: judge(images).squeeze(1))
    painted = torch.nn.Parameter(torch.tensor(0.5))
    monkeypatch.setattr(task.generator, "forward", lambda images, _: images * painted + 0.1)
    batch = batch_of(task)
    labels = batch["label"]
    source, target = (batch[name].float() / 127.5 - 1 for name in ("image", "target_image"))
    fake = source * 0.5 + 0.1
    real_share, fake_share = judge(target).squeeze(1).sigmoid(), judge(fake).squeeze(1).sigmoid()

    steps = task.train_step(batch)
    told_apart = -(real_share.log().mean() + (1 - fake_share).log().mean()).item()
    taught = cross_entropy(classifier(source), labels) + cross_entropy(classifier(fake), labels)
    assert next(steps).loss.item() == pytest.approx(0.3 * told_apart + taught, rel=1e-4)

    difference = source - fake
    values = []
    for one, bright in zip(difference, source > 2 * 0.2 - 1, strict=True):
        counted = one[bright]
        values.append((counted.square().mean() - counted.mean().square()).item())
    expected = 0.7 * -fake_share.log().mean().item() + 0.2 * cross_entropy(classifier(fake), labels)
    expected += 0.9 * float(np.mean(values))
    assert next(steps).loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_loss_of_dann_equals_the_papers_formula_and_its_strength_grows() -> None:
    task = prepared(method="dann", **{"train.epochs": 10})
    task.model.eval()
    batch = batch_of(task)
    labels = batch["label"]
    with torch.no_grad():
        source, target = (task.model.features(batch[name].float() / 127.5 - 1) for name in ("image", "target_image"))
        of_source, of_target = (task.domain(features, 0.0).sigmoid() for features in (source, target))
        expected = cross_entropy(task.model.head(source), labels)
        expected -= ((1 - of_source).log().mean() + of_target.log().mean()).item()
    (loss,) = task.train_step(batch)
    assert loss.loss.item() == pytest.approx(expected, rel=1e-4)

    def gradient_of_features(progress: float) -> float:
        task.model.zero_grad()
        batch["progress"] = torch.full((len(labels),), progress)
        (loss,) = task.train_step(batch)
        (loss.loss - torch.nn.functional.cross_entropy(task.model.head(source_features(batch)), labels)).backward()
        return next(task.model.parameters()).grad.norm().item()

    def source_features(batch: dict[str, Any]) -> Tensor:
        return task.model.features(batch["image"].float() / 127.5 - 1)

    none, half, whole = (gradient_of_features(progress) for progress in (0.0, 1.0, 10.0))
    assert none == pytest.approx(0, abs=1e-5)
    # 2 / (1 + exp(-10 p)) - 1 at p = 0.1 and at p = 1.
    assert half / whole == pytest.approx(0.46212 / 0.99991, rel=0.02)


def test_each_optimiser_holds_its_networks_and_no_other(task: DomainAdaptation) -> None:
    held = {
        name: {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, optimizer in task.optimizers().items()
    }
    of = {name: {id(p) for p in module.parameters()} for name, module in task.modules.items()}
    assert held == {"discriminator": of["discriminator"] | of["model"], "generator": of["generator"]}
    dann = prepared(method="dann")
    (optimizer,) = dann.optimizers().values()
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
        id(p) for module in (dann.model, dann.domain) for p in module.parameters()
    }


def test_the_validators_look_at_repainted_source_and_at_target_training_images(task: DomainAdaptation) -> None:
    assert set(task.held_out("judged").ids) <= set(task.held_out("target_train").ids)
    assert task.held_out("generated").ids == task.held_out("validation").ids
    for module in task.modules.values():
        module.eval()
    batch = task.held_out("generated").take(np.arange(4))
    with torch.inference_mode():
        repainted = task.predict(batch)
        expected = task.predict({"image": batch["image"]})
        other = task.predict(batch | {"noise": -batch["noise"]})
    for module in task.modules.values():
        module.train()
    assert not np.allclose(repainted, expected)
    assert not np.array_equal(repainted, other)


def test_target_only_learns_from_the_target_and_says_so() -> None:
    task = prepared(method="target-only")
    names = task.held_out("train").ids
    assert all(name.startswith("mnist-m/") for name in names)
    assert "target_train" not in task.measured
    notes = task.config.data.notes(DomainAdaptation.load(task.config))
    assert "upper bound" in notes[0]


@pytest.mark.parametrize("recipe", ["mnistm-pixelda", "mnistm-dann", "mnistm-source-only", "mnistm-target-only"])
def test_an_option_of_a_section_leaves_the_sections_other_defaults(recipe: str) -> None:
    from finesight import recipes

    _, base = recipes.read(recipe)
    built = config.build(DomainAdaptationConfig, base, config.nest({"model.image_size": 16, "train.epochs": 1}))
    assert built.model.name == "pixelda"
    assert built.train.select == ("accuracy" if recipe.endswith("only") else "adaptation_score")


def test_a_backbone_of_another_range_sees_its_own_range_and_the_generator_the_signed_one() -> None:
    task = prepared()
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 16, 16)
    signed = task.prepared(images)
    assert signed.min() == -1
    assert signed.max() == 1
    assert torch.equal(task.normalised(signed), signed)
    task.model.mean, task.model.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    seen = task.normalised(signed)[:, :, 0, 0]
    torch.testing.assert_close(seen[2], (1 - torch.tensor(task.model.mean)) / torch.tensor(task.model.std))
    torch.testing.assert_close(seen[0], -torch.tensor(task.model.mean) / torch.tensor(task.model.std))


def test_a_discriminator_that_ends_in_one_pixel_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="first_stride 1"):
        prepared(**{"pixelda.first_stride": 2})


def test_what_is_not_measured_cannot_choose_the_epoch() -> None:
    assert "generated_accuracy" in prepared().selectable
    assert "generated_accuracy" not in prepared(method="dann").selectable


def test_ragged_last_batches_train(task: DomainAdaptation) -> None:
    sizes = []
    for batch in task.train.epoch(0):
        sizes.append(len(batch["label"]))
        assert len(batch["target_image"]) == sizes[-1]
        for loss in task.train_step(batch):
            assert torch.isfinite(loss.loss)
    assert len(set(sizes)) > 1
    assert sum(sizes) == task.train.samples


@pytest.mark.parametrize("method", ["pixelda", "dann", "source-only"])
def test_no_target_label_is_in_what_training_sees(method: str) -> None:
    task = prepared(method=method)
    expected = {"image", "label", "id", "items", "progress"} | (set() if method == "source-only" else {"target_image"})
    assert set(batch_of(task)) == expected
    # Wrong target labels change neither a loss nor what the epoch is chosen by; only the oracle sees them.
    numbers = []
    for shift in (0, 3):
        for split in ("target_train", "test"):
            task.labels[split] = (task.labels[split] + shift) % 10
        torch.manual_seed(0)
        losses = [loss.loss.item() for loss in task.train_step(batch_of(task))]
        for module in task.modules.values():
            module.eval()
        numbers.append((losses, task.validators({"accuracy": 0.5})))
        for module in task.modules.values():
            module.train()
    (losses_a, one), (losses_b, other) = numbers
    assert losses_a == losses_b
    assert {k: v for k, v in one.items() if k != "oracle_accuracy"} == {
        k: v for k, v in other.items() if k != "oracle_accuracy"
    }


def test_target_test_labels_cannot_choose_the_epoch(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["run", "mnistm-pixelda", "--data.source", "sklearn:digits", "--data.backgrounds", "sklearn:photographs"]
    assert main([*words, "--train.select", "oracle_accuracy", "--output", str(tmp_path / "run")]) == 2
    assert "never choose the epoch" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_information_is_one_for_sure_and_spread_and_zero_for_one_class_or_no_idea() -> None:
    sure = np.eye(4)
    assert information(sure) == pytest.approx(1)
    assert information(np.tile(sure[:1], (9, 1))) == pytest.approx(0)
    assert information(np.full((9, 4), 0.25)) == pytest.approx(0)
    # Half sure of one of two classes each: ln 2 of ln 4.
    assert information(np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])) == pytest.approx(0.5)


def test_content_similarity_ignores_a_constant_and_what_is_masked() -> None:
    source = torch.rand(2, 3, 8, 8)
    content = torch.zeros_like(source, dtype=torch.bool)
    content[..., :4] = True
    shifted = source + 0.3
    assert content_similarity(source, shifted, content).item() == pytest.approx(0, abs=1e-6)
    other = source.clone()
    other[..., 4:] = 9
    assert content_similarity(source, other, content).item() == pytest.approx(0, abs=1e-6)
    other = source.clone()
    other[..., :2] += 1  # half of the mask differs by 1: variance of {0, 1} is 1/4
    assert content_similarity(source, other, content).item() == pytest.approx(0.25, abs=1e-5)


def test_minimax_is_the_papers_loss() -> None:
    values = {}
    for kind in ("non-saturating", "minimax"):
        task = prepared(**{"pixelda.adversarial": kind})
        torch.manual_seed(1)
        *_, last = task.train_step(batch_of(task))
        values[kind] = last.observed["fooling"].item()
    assert values["non-saturating"] > 0 > values["minimax"]


def test_a_margin_puts_28_pixels_into_32_unchanged() -> None:
    task = prepared(**{"model.image_size": 32, "data.margin": 2})
    plain = prepared(**{"model.image_size": 28, "data.margin": 0})
    held, border = task.pixels["train"], task.pixels["train"].clone()
    border[..., 2:-2, 2:-2] = 0
    assert border.max() == 0
    torch.testing.assert_close(held[..., 2:-2, 2:-2], plain.pixels["train"])


def run(output: Path, *extra: str) -> int:
    words = ["run", "mnistm-pixelda", "--output", str(output), "--evaluation.resamples", "100", "--train.epochs", "2"]
    flags = [word for key, value in {**SMALL, "data.margin": 0}.items() for word in (f"--{key}", str(value))]
    return main([*words, *flags, *extra])


def tensors(output: Path) -> Iterator[tuple[str, Tensor]]:
    state = json.loads((output / "run.json").read_text())
    checkpoint = opened(path_of(output / "checkpoints", state["steps"]))
    for path in sorted(checkpoint.path.glob("*.safetensors")):
        yield from ((f"{path.stem}/{name}", value) for name, value in sorted(checkpoint.tensors(path.stem).items()))


def test_a_stopped_run_with_three_networks_and_two_optimisers_continues_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from finesight.errors import Stopped
    from finesight.train import Loop

    assert run(tmp_path / "whole") == 0
    step, saved = Loop.step, Loop.save

    def stopping(self: Loop, batch: Any) -> None:
        step(self, batch)
        if self.state.step == 4:
            self.state.step, self.state.batch = 5, self.state.batch + 1
            saved(self)
            raise Stopped(15, "stopped")

    monkeypatch.setattr(Loop, "step", stopping)
    assert run(tmp_path / "cut") == 143
    monkeypatch.setattr(Loop, "step", step)
    assert run(tmp_path / "cut", "--resume") == 0
    whole, cut = dict(tensors(tmp_path / "whole")), dict(tensors(tmp_path / "cut"))
    assert set(whole) == set(cut)
    assert {name.split("/")[0] for name in whole} == {
        "model.model", "model.generator", "model.discriminator", "optimizer.discriminator", "optimizer.generator",
    }  # fmt: skip
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    for name in ("history.jsonl", "metrics.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()

    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert {"validation", "test", "source_test", "target_train", "baselines"} == set(metrics)
    capsys.readouterr()
    image = tmp_path / "digit.png"
    from PIL import Image

    Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(image)
    assert main(["predict", str(tmp_path / "whole"), str(image), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["prediction"] in list("0123456789")
    assert main(["eval", str(tmp_path / "whole"), "--json", "--evaluation.resamples", "100"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == metrics["test"]["accuracy"]


def test_bad_options_are_refused_before_work() -> None:
    with pytest.raises(ConfigError, match="not known"):
        config.build(DomainAdaptationConfig, {"train": {"balance": 3}})
    with pytest.raises(ConfigError, match="border"):
        config.build(DomainAdaptationConfig, {"data": {"margin": 9}})


def test_an_unknown_selection_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", "--train.select", "foo") == 2
    assert "Known: loss, accuracy" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()
