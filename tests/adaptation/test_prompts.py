"""Visual prompts: where they stand, what they leave as it was, what is trained, and runs that keep them."""

import copy
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finesight import adaptation, config
from finesight.adaptation import AdaptConfig, VisualPrompts, apply, audit
from finesight.adaptation.prompts import insert
from finesight.cli import main
from finesight.errors import ConfigError, ModelError
from finesight.models import weights
from finesight.models.backbones import ModelConfig, build
from finesight.models.classifier import Classifier
from tests import pictures

CLASSES = ["ant", "bee", "cat"]
COUNT = 3
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
KINDS = ["vit", "deit", "beit", "beit-cls", "clip", "siglip", "dinov2", "registers"]


def settings_of(kind: str) -> Any:
    """A transformers configuration with a few thousand parameters."""
    import transformers as t

    made = {
        "vit": lambda: t.ViTConfig(**SMALL),
        "deit": lambda: t.DeiTConfig(**SMALL, architectures=["DeiTForImageClassification"]),
        "beit": lambda: t.BeitConfig(**SMALL, use_relative_position_bias=True, layer_scale_init_value=0.5),
        "beit-cls": lambda: t.BeitConfig(**SMALL, use_shared_relative_position_bias=True, use_mean_pooling=False),
        "clip": lambda: t.CLIPConfig(vision_config=SMALL, text_config={"hidden_size": 16, "num_attention_heads": 2}),
        "siglip": lambda: t.SiglipConfig(vision_config=SMALL, text_config={}),
        "dinov2": lambda: t.Dinov2Config(**SMALL),
        "registers": lambda: t.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=2),
    }
    return made[kind]()


def saved(kind: str, folder: Path) -> Path:
    """A random classifier of that kind, none of whose tokens or biases is zero."""
    from transformers import AutoModelForImageClassification

    settings = settings_of(kind)
    settings.id2label = dict(enumerate(["p", "q", "r", "s", "t"]))
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def made(kind: str, folder: Path, attention: str = "eager", size: int | None = None) -> Classifier:
    model = ModelConfig(name=str(saved(kind, folder / kind)), attention=attention, image_size=size)
    return build(model, CLASSES)


def prompted(model: Classifier, count: int = COUNT) -> VisualPrompts:
    """Prompts in `model`, as large as the tokens, so that they matter."""
    prompts = insert(model.backbone, count)
    with torch.no_grad():
        prompts.tokens.normal_(generator=torch.Generator().manual_seed(7))
    return prompts


def images_of(model: Classifier, count: int = 2) -> Tensor:
    return torch.randn(count, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(1))


def joined(sequence: Tensor, prompts: Tensor, at: int) -> Tensor:
    parts = [sequence[:, :at], prompts.expand(len(sequence), -1, -1), sequence[:, at:]]
    return torch.cat(parts, dim=1)


# --- written by hand from the paper: tokens beside tokens, nothing of `VisualPrompts`


def vit_tokens(model: Any, images: Tensor, prompts: Tensor, at: int) -> Tensor:
    sequence = joined(model.vit.embeddings(images), prompts, at)
    for layer in model.vit.layers:
        sequence = layer(sequence, None)
    return model.vit.layernorm(sequence)


def clip_tokens(model: Any, images: Tensor, prompts: Tensor, at: int) -> Tensor:
    sequence = model.vision_model.pre_layrnorm(joined(model.vision_model.embeddings(images), prompts, at))
    for layer in model.vision_model.encoder.layers:
        sequence = layer(sequence, None)
    return sequence


def beit_tokens(model: Any, images: Tensor, prompts: Tensor, at: int) -> Tensor:
    sequence = joined(model.beit.embeddings(images), prompts, at)
    for layer in model.beit.layers:
        shared = model.beit.shared_position_bias
        table = (shared or layer.relative_position_bias).relative_position_bias_table
        bias = beit_bias(table, images.shape[-1] // 8, len(prompts), at)
        mixed, _ = layer.attention(layer.layernorm_before(sequence), attention_mask=bias)
        sequence = sequence + layer.lambda_1 * mixed
        sequence = sequence + layer.lambda_2 * layer.mlp(layer.layernorm_after(sequence))
    return model.beit.layernorm(sequence)


def beit_bias(table: Tensor, side: int, count: int, at: int) -> Tensor:
    """[1, H, N + n, N + n] entry by entry: the table's last three rows are [CLS] to token, token to [CLS], [CLS]."""
    length = side * side + 1
    bias = torch.zeros(1, table.shape[1], length + count, length + count)
    for query in range(length):
        for key in range(length):
            (y, x), (v, u) = divmod(query - 1, side), divmod(key - 1, side)
            row = (y - v + side - 1) * (2 * side - 1) + x - u + side - 1
            if 0 in (query, key):
                row = -1 if query == key else -3 if query == 0 else -2
            places = [token + count if token >= at else token for token in (query, key)]
            bias[0, :, places[0], places[1]] = table[row]
    return bias


TOKENS = {"vit": vit_tokens, "clip": clip_tokens, "beit": beit_tokens, "beit-cls": beit_tokens}


def pooled(kind: str, model: Any, tokens: Tensor, first: int, patches: slice) -> Tensor:
    """What the classifier of that kind makes of the last tokens: [CLS] at `first`, or the mean of `patches`."""
    if kind == "clip":
        return tokens[:, patches].mean(1)
    return model.beit.pooler.layernorm(tokens[:, patches].mean(1)) if kind == "beit" else tokens[:, first]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", TOKENS)
def test_equals_a_forward_pass_written_by_hand(kind: str, attention: str, tmp_path: Path) -> None:
    model = made(kind, tmp_path, attention)
    images, plain = images_of(model), copy.deepcopy(model.backbone.model)
    before = model.features(images)
    tokens = prompted(model).tokens
    with torch.no_grad():
        found = model.features(images)
        by_hand = TOKENS[kind](plain, images, tokens, 1)
        assert by_hand.shape[1] == 1 + COUNT + 16
        right = pooled(kind, plain, by_hand, 0, slice(1 + COUNT, None))
        assert (found - right).abs().max() < 1e-6
        # The mistakes: prompts averaged in, and prompts before [CLS], which is then read where it is not.
        if kind in ("beit", "clip"):
            assert (found - pooled(kind, plain, by_hand, 0, slice(1, None))).abs().max() > 1e-2
        moved = TOKENS[kind](plain, images, tokens, 0)
        wrong = pooled(kind, plain, moved, 0, slice(1, 17))
        assert (found - wrong).abs().max() > 1e-2
        # Without positions the place alone says nothing: read at its new place, [CLS] is the same.
        assert (moved[:, COUNT] - by_hand[:, 0]).abs().max() < 1e-5
    assert (found - before).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_nobody_attends_to_change_nothing(kind: str, attention: str, tmp_path: Path) -> None:
    """With a mask over exactly the places of the prompts the original output must come back, however it is pooled."""
    model = made(kind, tmp_path, attention)
    images = images_of(model)
    with torch.no_grad():
        original = model.features(images)
        prompts = prompted(model)
        length = 16 + COUNT + {"siglip": 0, "deit": 2, "registers": 3}.get(kind, 1)
        mask = torch.zeros(len(images), 1, length, length)
        mask[..., prompts.ahead : prompts.ahead + COUNT] = torch.finfo(torch.float32).min
        masked = model.backbone.model(pixel_values=images, attention_mask=mask).logits
        assert masked.shape == original.shape
        assert (masked - original).abs().max() < 1e-6
        mask = mask.roll(1, dims=-1)
        elsewhere = model.backbone.model(pixel_values=images, attention_mask=mask).logits
        assert (elsewhere - original).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_follow_cls_and_the_output_has_the_original_length(kind: str, tmp_path: Path) -> None:
    model = made(kind, tmp_path)
    images, seen = images_of(model), {}
    embeddings = next(module for module in model.modules() if type(module).__name__.endswith("Embeddings")
                      and "Patch" not in type(module).__name__)  # fmt: skip
    before = embeddings(images)
    prompts = prompted(model)
    after = embeddings(images)
    ahead = 0 if kind == "siglip" else 1
    assert torch.equal(after[:, :ahead], before[:, :ahead])
    assert torch.equal(after[:, ahead : ahead + COUNT], prompts.tokens.expand(2, -1, -1))  # no position added
    assert torch.equal(after[:, ahead + COUNT :], before[:, ahead:])
    body = getattr(model.backbone.model, "vision_model", None) or model.backbone.model.base_model
    body.register_forward_hook(lambda _, __, output: seen.update(last=output.last_hidden_state))
    model.features(images)
    assert seen["last"].shape == before.shape


def test_beit_at_another_resolution(tmp_path: Path) -> None:
    """The bias is stretched to the patches of the larger image, and only then padded for the prompts."""
    for kind in ("beit", "beit-cls"):
        model = made(kind, tmp_path, size=48)
        images = images_of(model)
        plain = copy.deepcopy(model.backbone.model)
        with torch.no_grad():
            original = model.features(images)
            prompts = prompted(model)
            found = model.features(images)
            assert (found - original).abs().max() > 1e-2
            mask = torch.zeros(2, 1, 37 + COUNT, 37 + COUNT)
            mask[..., 1 : 1 + COUNT] = torch.finfo(torch.float32).min
            options = {"interpolate_pos_encoding": True, "attention_mask": mask}
            masked = model.backbone.model(pixel_values=images, **options).logits
            assert (masked - original).abs().max() < 1e-6
            module = plain.beit.shared_position_bias or plain.beit.layers[0].relative_position_bias
            small = module((6, 6), True, dim_size=37)
            wide = prompts.widened(small)
        assert wide.shape == (1, 2, 40, 40)
        assert torch.equal(wide[..., [0, *range(4, 40)], :][..., [0, *range(4, 40)]], small)
        assert wide[..., 1:4, :].abs().max() == wide[..., 1:4].abs().max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_prompts_and_the_head_alone(kind: str, tmp_path: Path) -> None:
    model = made(kind, tmp_path)
    total = sum(parameter.numel() for parameter in model.parameters())
    found = apply(model, AdaptConfig(method="prompts", prompts=COUNT))
    assert not model.frozen_backbone  # so that no features are cached
    head = sum(parameter.numel() for parameter in model.head.parameters())
    assert (found.trainable, found.total) == (COUNT * 16 + head, total + COUNT * 16)
    name = next(name for name in found.adapted if name != "head")
    assert name.endswith(".embeddings.prompts")
    assert f"  {name}" in found.lines()
    model.train()
    F.cross_entropy(model(images_of(model, 3)), torch.tensor([0, 1, 2])).backward()
    reached = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {f"{name}.tokens", "head.weight", "head.bias"}
    assert model.get_parameter(f"{name}.tokens").grad.abs().min(1).values.gt(0).all()


def test_ten_prompts_of_clip_b_32_are_7680_parameters() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with torch.device("meta"):
        tower = CLIPVisionModel(CLIPVisionConfig(patch_size=32))
    wrapper = nn.Sequential(nn.ModuleDict({"inside": tower}))
    prompts = insert(wrapper, AdaptConfig().prompts)
    found = audit(wrapper)
    assert (found.trainable, found.total) == (7_680, 87_456_000 + 7_680)
    assert found.adapted == ["0.inside.embeddings.prompts"]
    output = tower(torch.empty(2, 3, 224, 224, device="meta"))
    assert output.last_hidden_state.shape == (2, 50, 768)
    output.pooler_output.sum().backward()
    assert [name for name, p in wrapper.named_parameters() if p.grad is not None] == [f"{found.adapted[0]}.tokens"]
    assert prompts.tokens.grad.shape == (10, 768)


def test_prompts_of_a_whole_clip_model_leave_its_text_tower_alone() -> None:
    from transformers import CLIPModel

    torch.manual_seed(0)
    model = CLIPModel(settings_of("clip")).eval()
    text = torch.tensor([[5, 6, 7, 49407]])
    before = model.get_text_features(input_ids=text).pooler_output
    insert(model, COUNT)
    assert torch.equal(model.get_text_features(input_ids=text).pooler_output, before)
    model.get_image_features(pixel_values=torch.randn(2, 3, 32, 32)).pooler_output.sum().backward()
    reached = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert reached == ["vision_model.embeddings.prompts.tokens"]


def test_they_start_uniform_within_the_bound_of_the_paper() -> None:
    torch.manual_seed(0)
    tokens = VisualPrompts(200, 768, 3 * 16 * 16).tokens
    bound = math.sqrt(6 / (3 * 16**2 + 768))
    assert 0.999 * bound < tokens.abs().max() <= bound
    assert tokens.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert tokens.mean().item() == pytest.approx(0, abs=0.001)


def test_the_bound_is_that_of_the_model_and_the_seed_decides_the_values(tmp_path: Path) -> None:
    model = made("vit", tmp_path)
    torch.manual_seed(3)
    first = insert(copy.deepcopy(model.backbone), 500).tokens
    torch.manual_seed(3)
    assert torch.equal(insert(model.backbone, 500).tokens, first)
    bound = math.sqrt(6 / (3 * 8**2 + 16))
    assert 0.999 * bound < first.abs().max() <= bound


def test_leaf_vit_takes_prompts_at_the_input_of_its_block() -> None:
    model = build(ModelConfig(name="leaf-vit-64"), CLASSES)
    images, plain = images_of(model), copy.deepcopy(model.backbone)
    found = apply(model, AdaptConfig(method="prompts", prompts=COUNT, allow_random_frozen=True))
    assert found.trainable == COUNT * 64 + 3 * 1024 + 3
    assert found.adapted == ["backbone.block.prompts", "head.1"]
    tokens = model.backbone.block.prompts.tokens
    with torch.no_grad():
        tokens.normal_()
        sequence = plain.norm(plain.block(joined(plain.tokens(images), tokens, 0)))[:, COUNT:]
        by_hand = F.gelu(plain.narrow(F.gelu(plain.wide(sequence.flatten(1)))))
        assert (model.eval().features(images) - by_hand).abs().max() < 1e-6
        assert (by_hand - plain.eval()(images)).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["vit", "beit", "clip"])
def test_under_autocast_the_prompts_stay_float32_and_learn(kind: str, tmp_path: Path) -> None:
    for attention in ("eager", "sdpa"):
        model = made(kind, tmp_path / attention, attention)
        tokens = prompted(model).tokens
        images = images_of(model)
        exact = model.features(images)
        with torch.autocast("cpu", torch.bfloat16):
            found = model.features(images)
        assert (found - exact).norm() < 0.03 * exact.norm()
        found.float().square().sum().backward()
        assert tokens.grad.dtype == torch.float32
        assert tokens.grad.abs().min(1).values.gt(0).all()


def test_a_copy_has_prompts_of_its_own(tmp_path: Path) -> None:
    model = made("beit", tmp_path)
    prompted(model)
    images = images_of(model)
    with torch.no_grad():
        before = model.features(images)
        other = copy.deepcopy(model)
        assert torch.equal(other.features(images), before)
        next(module for module in other.modules() if isinstance(module, VisualPrompts)).tokens.zero_()
        assert not torch.allclose(other.features(images), before, atol=1e-3)
        assert torch.equal(model.features(images), before)


@pytest.mark.parametrize("kind", ["vit", "beit", "clip"])
def test_trained_prompts_are_stored_apart_and_restore_a_rebuilt_model(kind: str, tmp_path: Path) -> None:
    adapt = AdaptConfig(method="prompts", prompts=COUNT)
    model = made(kind, tmp_path)
    apply(model, adapt)
    frozen = weights.state_hash(adaptation.frozen_state(model))
    optimizer = torch.optim.SGD(adaptation.trainable_parameters(model), 0.1)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(images_of(model, 3)), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    model.eval()
    trainable = adaptation.trainable_state(model)
    assert sum(tensor.numel() for tensor in trainable.values()) == audit(model).trainable
    assert weights.state_hash(adaptation.frozen_state(model)) == frozen
    model.save_spec(tmp_path)
    rebuilt = build(ModelConfig(attention="eager"), CLASSES, saved=tmp_path)
    apply(rebuilt, adapt)
    weights.load_strict(rebuilt, {**trainable, **adaptation.frozen_state(model)})
    images = images_of(model, 4)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images), model(images))


@pytest.mark.parametrize("kind", TOKENS)
def test_the_gradient_of_the_prompts_is_that_of_the_pass_by_hand(kind: str, tmp_path: Path) -> None:
    model = made(kind, tmp_path)
    images, plain = images_of(model), copy.deepcopy(model.backbone.model)
    tokens = prompted(model).tokens
    by_hand = tokens.detach().clone().requires_grad_()
    pooled(kind, plain, TOKENS[kind](plain, images, by_hand, 1), 0, slice(1 + COUNT, None)).pow(3).sum().backward()
    model.features(images).pow(3).sum().backward()
    assert tokens.grad.norm() > 1e-3
    assert (tokens.grad - by_hand.grad).norm() < 1e-5 * by_hand.grad.norm()


@pytest.mark.parametrize("name", ["small-cnn", "mlp"])
def test_a_backbone_without_tokens_is_refused_with_a_remedy(name: str) -> None:
    model = build(ModelConfig(name=name), CLASSES)
    with pytest.raises(ModelError, match=r"no sequence of tokens.*full, head or lora.*ViT, DeiT, BEiT, CLIP") as caught:
        apply(model, AdaptConfig(method="prompts", allow_random_frozen=True))
    assert caught.value.exit_code == 2
    assert all(parameter.requires_grad for parameter in model.parameters())  # nothing was changed


def test_windowed_and_convolutional_encoders_are_refused(tmp_path: Path) -> None:
    from tests.models import folders

    for kind in ("swin", "convnext", "resnet"):
        folders.save(kind, tmp_path / kind, CLASSES)
        model = build(ModelConfig(name=str(tmp_path / kind)), CLASSES)
        with pytest.raises(ModelError, match="no sequence of tokens"):
            apply(model, AdaptConfig(method="prompts"))


def test_prompts_twice_and_two_encoders_are_refused(tmp_path: Path) -> None:
    model = made("vit", tmp_path)
    two = nn.ModuleList([copy.deepcopy(model.backbone), copy.deepcopy(model.backbone)])
    with pytest.raises(ModelError, match="2 image encoders"):
        insert(two, 1)
    with pytest.raises(ModelError, match="give 1 or more"):
        insert(model.backbone, 0)
    insert(model.backbone, 1)
    with pytest.raises(ModelError, match="has prompts already"):
        insert(model.backbone, 1)


@pytest.mark.parametrize("count", [0, -3])
def test_a_count_below_one_is_refused_by_the_options(count: int) -> None:
    with pytest.raises(ConfigError, match="prompts: input should be greater than or equal to 1"):
        config.build(AdaptConfig, {"method": "prompts", "prompts": count})


# --- through the command line


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder(tmp_path_factory.mktemp("data") / "shapes", each=16)


def words(shapes: Path, kind: str, folder: Path, output: Path) -> list[str]:
    return [
        "run", "classify", "--data.root", str(shapes), "--model.name", str(saved(kind, folder)), "--model.image_size",
        "32", "--adapt.method", "prompts", "--adapt.prompts", "4", "--train.epochs", "2", "--train.batch_size", "8",
        "--train.lr", "0.01", "--evaluation.resamples", "100", "--precision", "fp32", "--output", str(output),
    ]  # fmt: skip


def test_a_run_can_be_measured_used_and_replayed(shapes: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "run"
    assert main(words(shapes, "vit", tmp_path / "vit", output)) == 0
    said = capsys.readouterr().out
    assert "embeddings.prompts" in said
    assert "eatures of" not in said  # nothing is frozen that could be cached
    model = json.loads((output / "run.json").read_text())["model"]
    assert model["trainable"] == 4 * 16 + 3 * 16 + 3
    assert main(["eval", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((output / "metrics.json").read_text())["test"]
    rows = [row for row in pq.read_table(output / "predictions.parquet").to_pylist() if row["split"] == "test"]
    assert main(["predict", str(output), *[str(shapes / row["id"]) for row in rows], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["prediction"] for entry in found] == [row["prediction"] for row in rows]
    for entry, row in zip(found, rows, strict=True):
        assert list(entry["scores"].values()) == pytest.approx(row["scores"], abs=1e-6)
    assert main(["replay", str(output)]) == 0
    assert "bit for bit" in capsys.readouterr().out


def test_a_stopped_run_continues_bit_for_bit(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finesight.train import Loop

    output, whole, step = tmp_path / "run", tmp_path / "whole", Loop.step

    def interrupted(self: Loop, batch: Any) -> None:
        step(self, batch)
        if self.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", interrupted)
        assert main(words(shapes, "beit", tmp_path / "beit", output)) == 130
    assert main(["run", "--resume", "--output", str(output)]) == 0
    assert main(words(shapes, "beit", tmp_path / "beit", whole)) == 0
    for name in ("history.jsonl", "predictions.parquet"):
        assert (output / name).read_bytes() == (whole / name).read_bytes()


def test_the_command_line_refuses_prompts_without_tokens(shapes: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "run"
    given = ["run", "classify", "--data.root", str(shapes), "--adapt.method", "prompts", "--output", str(output)]
    assert main(given) == 2
    assert "no sequence of tokens" in capsys.readouterr().err
    assert not (output / "config.yaml").exists()
    assert main([*given, "--adapt.prompts", "0"]) == 2
    assert "adapt.prompts: input should be greater than or equal to 1" in capsys.readouterr().err
