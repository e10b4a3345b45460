"""The report-defined architectures: exact counts, shapes, what the parts compute."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from finesight.models import MLP, LeafViT, SmallCNN, inception_v3
from finesight.models.leaf_vit import EncoderBlock


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_mlp_is_the_reports() -> None:
    model = MLP().eval()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [
        (3072, 512),
        (512, 256),
        (256, 128),
        (128, 10),
    ]
    assert count(model) == 1_738_890
    images = torch.randn(4, 3, 32, 32)
    hidden = images.flatten(1)
    for layer in layers[:-1]:
        hidden = F.relu(layer(hidden))
    assert torch.allclose(model.features(images), hidden)
    assert torch.allclose(model(images), F.log_softmax(layers[-1](hidden), dim=1))


def test_mlp_drops_before_the_last_layer_only() -> None:
    torch.manual_seed(0)
    model = MLP(dropout=0.5).train()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model.features(images), model.features(images))
    assert not torch.equal(model(images), model(images))


def test_mlp_cross_entropy_of_log_probabilities_is_that_of_logits() -> None:
    model = MLP().eval()
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    logits = model.head[1](model.features(images))
    assert torch.allclose(F.cross_entropy(model(images), labels), F.cross_entropy(logits, labels), atol=1e-6)


@pytest.mark.parametrize(("size", "expected"), [(64, 15_319_754), (256, 15_504_074)])
def test_leaf_vit_counts_and_shapes(size: int, expected: int) -> None:
    model = LeafViT(size).eval()
    assert count(model) == expected
    images = torch.randn(2, 3, size, size)
    assert model.tokens(images).shape == (2, 100, 64)
    assert model.features(images).shape == (2, 1024)
    assert model(images).shape == (2, 10)
    assert torch.equal(model(images), model.head(model.features(images)))


def test_leaf_vit_has_one_block_of_83200_with_attention_256_wide() -> None:
    model = LeafViT()
    blocks = [module for module in model.modules() if isinstance(module, EncoderBlock)]
    assert [count(block) for block in blocks] == [83_200]
    assert blocks[0].query.out_features == blocks[0].out.in_features == 256
    attention = sum(count(getattr(blocks[0], name)) for name in ("query", "key", "value", "out"))
    assert attention == 66_368
    assert blocks[0].up.out_features == 128


def test_leaf_vit_tokens_are_the_overlapping_patches_row_by_row() -> None:
    model = LeafViT(64).eval()
    images = torch.randn(1, 3, 64, 64)
    tokens = model.tokens(images)
    kernel, bias = model.backbone.patches.weight, model.backbone.patches.bias
    for row, column in ((0, 0), (0, 1), (3, 7), (9, 9)):
        patch = images[0, :, 6 * row : 6 * row + 8, 6 * column : 6 * column + 8]
        token = kernel.flatten(1) @ patch.flatten() + bias + model.backbone.position[10 * row + column]
        assert torch.allclose(tokens[0, 10 * row + column], token, atol=1e-5)


def test_leaf_vit_attention_equals_torchs() -> None:
    """Four heads of 64, scaled by 1/8: parity with the explicit formula."""
    block = EncoderBlock(dropout=0.0).eval()
    tokens = torch.randn(2, 100, 64)
    heads = [layer(tokens).view(2, 100, 4, 64) for layer in (block.query, block.key, block.value)]
    weights = torch.einsum("bqhd,bkhd->bhqk", heads[0], heads[1]).div(8).softmax(-1)
    mixed = torch.einsum("bhqk,bkhd->bqhd", weights, heads[2]).flatten(2)
    assert torch.allclose(block._attend(tokens), block.out(mixed), atol=1e-5)


def test_leaf_vit_drops_in_training_only() -> None:
    torch.manual_seed(0)
    model, images = LeafViT(), torch.randn(2, 3, 64, 64)
    model.train()
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_leaf_vit_refuses_another_size() -> None:
    with pytest.raises(ValueError, match="64 and 256"):
        LeafViT(128)


def test_inception_counts_and_parts() -> None:
    model = inception_v3().eval()
    assert count(model) == 22_839_786
    assert not [name for name in model.state_dict() if "AuxLogits" in name or ".fc." in name]
    images = torch.randn(2, 3, 299, 299)
    with torch.no_grad():
        features = model.features(images)
        assert features.shape == (2, 2048)
        assert model.head(features).shape == (2, 10)
    with torch.device("meta"):
        assert count(inception_v3(classes=6)) == 22_839_786 - 4 * 513
        assert count(inception_v3(hidden=256)) == 22_839_786 - 256 * (2049 + 10)


@pytest.mark.parametrize("size", [8, 11, 32, 127, 128, 224])
def test_small_cnn_takes_any_size(size: int) -> None:
    model = SmallCNN(7).eval()
    assert 100_000 < count(model) < 400_000
    with torch.no_grad():
        images = torch.randn(2, 3, size, size)
        assert model.features(images).shape == (2, 128)
        assert model(images).shape == (2, 7)


def test_small_cnn_shrinks_large_images_by_averaging() -> None:
    model = SmallCNN(3).eval()
    images = torch.randn(1, 3, 192, 192)
    with torch.no_grad():
        assert torch.equal(model(images), model(F.avg_pool2d(images, 3)))


def test_small_cnn_learns_digits_quickly() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels / 8 - 1).float().view(-1, 1, 8, 8).expand(-1, 3, -1, -1)
    images = F.interpolate(images, (16, 16), mode="bilinear")
    target = torch.from_numpy(labels)
    torch.manual_seed(0)
    model = SmallCNN(10, width=16)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(2):
        for batch in torch.randperm(1400).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), target[batch]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(images[1400:]).argmax(1) == target[1400:]).float().mean()
    assert accuracy > 0.85


def test_lazy_names() -> None:
    import finesight.models

    with pytest.raises(AttributeError, match="ResNet99"):
        finesight.models.ResNet99  # noqa: B018
