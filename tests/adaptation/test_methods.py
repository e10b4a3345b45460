"""What full, head and LoRA train: exact tensors, exact counts, frozen statistics, states that restore."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from finesight import adaptation
from finesight.adaptation import AdaptConfig, apply, audit
from finesight.errors import ModelError
from finesight.models import weights
from finesight.models.backbones import ModelConfig, build
from finesight.models.classifier import Classifier
from tests.models.folders import save

CLASSES = ["ant", "bee", "cat"]
METHODS = [AdaptConfig(method="full"), AdaptConfig(method="head"), AdaptConfig(method="lora", rank=2)]


def made(kind: str, folder: Path, adapt: AdaptConfig | None = None) -> Classifier:
    """A pretrained classifier with a fresh head, adapted."""
    torch.manual_seed(0)
    save(kind, folder / kind, [f"{kind} {index}" for index in range(5)])
    model = build(ModelConfig(name=str(folder / kind)), CLASSES)
    if adapt is not None:
        apply(model, adapt)
    return model


def step(model: Classifier, steps: int = 1) -> None:
    """Train for a few steps of plain gradient descent."""
    optimizer = torch.optim.SGD(adaptation.trainable_parameters(model), 0.1)
    generator = torch.Generator().manual_seed(3)
    model.train()
    for _ in range(steps):
        images = torch.randn(6, 3, model.image_size, model.image_size, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.arange(6) % 3).backward()
        optimizer.step()
    model.eval()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("adapt", METHODS, ids=lambda config: config.method)
@pytest.mark.parametrize("kind", ["vit", "beit", "swin", "dinov2"])
def test_gradients_reach_exactly_the_trainable_tensors(kind: str, adapt: AdaptConfig, tmp_path: Path) -> None:
    model = made(kind, tmp_path, adapt)
    if adapt.method == "lora":  # B starts at zero, which hides A from the gradient
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
    model.train()
    images = torch.randn(4, 3, model.image_size, model.image_size)
    F.cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert reached == trainable
    assert {id(parameter) for parameter in adaptation.trainable_parameters(model)} == {
        id(parameter) for parameter in model.parameters() if parameter.requires_grad
    }
    assert audit(model).trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("adapt", METHODS, ids=lambda config: config.method)
@pytest.mark.parametrize("kind", ["vit", "beit"])
def test_training_changes_exactly_the_trainable_state(kind: str, adapt: AdaptConfig, tmp_path: Path) -> None:
    model = made(kind, tmp_path, adapt)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step(model, 2)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    trainable = set(adaptation.trainable_state(model))
    assert changed <= trainable
    assert not changed & set(adaptation.frozen_state(model))
    assert {name for name in trainable if name.startswith("head.")} == {"head.weight", "head.bias"} <= changed


def test_audit_of_full_and_head(tmp_path: Path) -> None:
    model = made("vit", tmp_path)
    full = apply(model, AdaptConfig())
    assert full.trainable == full.total == count(model)
    assert full.frozen_random == []
    head = apply(model, AdaptConfig(method="head"))
    assert (head.trainable, head.total) == (3 * 16 + 3, count(model))
    assert head.adapted == ["head"]


def test_audit_of_lora(tmp_path: Path) -> None:
    """Rank r on a layer of n to m adds r (n + m); query and value of two blocks of width 16, and the head."""
    model = made("vit", tmp_path)
    plain = count(model)
    found = apply(model, AdaptConfig(method="lora", rank=3))
    added = 4 * 3 * (16 + 16)
    assert found.total == plain + added
    assert found.trainable == added + 3 * 16 + 3
    blocks = [f"backbone.model.vit.layers.{i}.attention" for i in range(2)]
    assert found.adapted == [*(f"{block}.{leaf}_proj" for block in blocks for leaf in "qv"), "head"]
    text = "\n".join(found.lines())
    assert "backbone.model.vit.layers.*.attention.q_proj (2 modules)" in text
    assert f"Trained: {found.trainable:,} of {found.total:,}" in text


def test_audit_counts_shared_tensors_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

    model = Shared()
    assert (audit(model).trainable, audit(model).total) == (16, 16)
    assert set(adaptation.trainable_state(model)) == {"first.weight", "second.weight"}


def test_random_parameters_left_frozen_are_refused_by_name() -> None:
    model = build(ModelConfig(name="small-cnn"), CLASSES)
    expected = [f"backbone.{name}" for name, _ in model.backbone.named_parameters()]
    with pytest.raises(ModelError, match=rf"{len(expected)} randomly initialised.*backbone\.stem\.0\.weight"):
        apply(model, AdaptConfig(method="head"))
    found = apply(model, AdaptConfig(method="head", allow_random_frozen=True))
    assert found.frozen_random == expected
    assert any("Random and never trained" in line for line in found.lines())
    assert apply(model, AdaptConfig(method="full")).frozen_random == []


def test_random_frozen_is_seen_through_lora_and_after_a_rebuild(tmp_path: Path) -> None:
    save("vit", tmp_path / "vit", CLASSES)
    config = ModelConfig(name=str(tmp_path / "vit"), pretrained=False)
    adapt = AdaptConfig(method="lora", allow_random_frozen=True)
    model = build(config, CLASSES)
    plain = [name for name, _ in model.backbone.named_parameters()]
    found = apply(model, adapt)
    assert found.frozen_random == [f"backbone.{name}" for name in plain]
    model.save_spec(tmp_path / "spec")
    assert apply(build(config, CLASSES, saved=tmp_path / "spec"), adapt).frozen_random == found.frozen_random
    with pytest.raises(ModelError, match="randomly initialised"):
        apply(build(config, CLASSES, saved=tmp_path / "spec"), AdaptConfig(method="lora"))


@pytest.mark.parametrize("adapt", METHODS, ids=lambda config: config.method)
@pytest.mark.parametrize("kind", ["vit", "swin", "resnet"])
def test_both_states_together_restore_a_rebuilt_model(kind: str, adapt: AdaptConfig, tmp_path: Path) -> None:
    if kind == "resnet" and adapt.method == "lora":
        adapt = AdaptConfig(method="lora", rank=2, targets=["convolution"])
    model = made(kind, tmp_path, adapt)
    step(model, 3)
    trainable, frozen = adaptation.trainable_state(model), adaptation.frozen_state(model)
    assert not set(trainable) & set(frozen)
    assert {**trainable, **frozen}.keys() == model.state_dict().keys()
    model.save_spec(tmp_path)
    rebuilt = build(ModelConfig(), CLASSES, saved=tmp_path)
    apply(rebuilt, adapt)
    weights.load_strict(rebuilt, {**trainable, **frozen})
    images = torch.randn(3, 3, model.image_size, model.image_size)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images), model(images))


def test_batch_statistics_are_trained_in_full_and_frozen_with_the_backbone(tmp_path: Path) -> None:
    full = made("resnet", tmp_path / "a", AdaptConfig())
    assert "running_mean" in " ".join(adaptation.trainable_state(full))
    assert adaptation.frozen_state(full) == {}
    head = made("resnet", tmp_path / "b", AdaptConfig(method="head"))
    before = weights.state_hash(head.backbone)
    step(head, 3)
    head.train()
    head(torch.randn(4, 3, 64, 64))
    assert weights.state_hash(head.backbone) == before
    assert set(adaptation.trainable_state(head)) == {"head.weight", "head.bias"}
    step(full)
    assert weights.state_hash(full.backbone) != before


def test_lora_on_convolutions_keeps_the_frozen_batch_statistics(tmp_path: Path) -> None:
    model = made("resnet", tmp_path, AdaptConfig(method="lora", rank=2, targets=["convolution"]))
    frozen = weights.state_hash(adaptation.frozen_state(model))
    assert any("running_mean" in name for name in adaptation.frozen_state(model))
    step(model, 3)
    assert weights.state_hash(adaptation.frozen_state(model)) == frozen


def test_frozen_backbone_stays_in_evaluation_mode_with_its_dropout_off(tmp_path: Path) -> None:
    model = made("vit", tmp_path, AdaptConfig(method="head"))
    for module in model.backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    assert any(isinstance(module, nn.Dropout) for module in model.backbone.modules())
    model.train()
    assert model.head.training
    assert not any(module.training for module in model.backbone.modules())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.features(images), model.features(images))
    apply(model, AdaptConfig(method="full"))
    model.train()
    assert all(module.training for module in model.modules())
    assert not torch.equal(model.features(images), model.features(images))


def test_copy_keeps_the_audit(tmp_path: Path) -> None:
    model = made("beit", tmp_path, METHODS[2])
    assert audit(copy.deepcopy(model)) == audit(model)
