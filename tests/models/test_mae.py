"""The masked autoencoder: strict loading, positions, masks, and the way back to pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from finesight.data import draws
from finesight.errors import ModelError
from finesight.models import mae
from finesight.models.mae import MAEConfig, MaskedAutoencoder, build

TINY = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32,
    "patch_size": 8, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}  # fmt: skip


def save(folder: Path, **changed: Any) -> Any:
    """A random ViT-MAE written to `folder`; returns the transformers model."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    net = ViTMAEForPreTraining(ViTMAEConfig(**{**TINY, **changed})).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    net.save_pretrained(folder)
    return net


def small(**changed: Any) -> MaskedAutoencoder:
    return build(MAEConfig(name="vit-mae-small", image_size=32, patch_size=8, **changed), 0.75)


def test_the_base_configuration_has_the_published_size() -> None:
    from accelerate import init_empty_weights
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    with init_empty_weights():
        net = ViTMAEForPreTraining(ViTMAEConfig(**mae.NAMED["vit-mae-base"]))
    assert sum(parameter.numel() for parameter in net.parameters()) == 111_907_840
    assert (net.config.image_size // net.config.patch_size) ** 2 == 196


def test_a_folder_gives_the_outputs_of_transformers(tmp_path: Path) -> None:
    net = save(tmp_path / "mae")
    model = build(MAEConfig(name=str(tmp_path / "mae"), attention="eager"), 0.75).eval()
    images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    with torch.inference_mode():
        predicted, mask = model(images, noise)
        reference = net(images, noise=noise)
    torch.testing.assert_close(predicted, reference.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(mask, reference.mask)
    errors = (predicted - model.targets(images, False)).square().mean(-1)
    assert ((errors * mask).sum() / mask.sum()).item() == pytest.approx(reference.loss.item(), rel=1e-5)


def test_the_fixed_positions_are_trained_in_no_case(tmp_path: Path) -> None:
    """transformers 5 makes them trainable when it loads weights."""
    save(tmp_path / "mae")
    for model in (build(MAEConfig(name=str(tmp_path / "mae")), 0.75), small()):
        fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        assert fixed == ["net.vit.embeddings.position_embeddings", "net.decoder.decoder_pos_embed"]


def test_the_normalised_loss_is_that_of_transformers(tmp_path: Path) -> None:
    net = save(tmp_path / "mae", norm_pix_loss=True)
    model = build(MAEConfig(name=str(tmp_path / "mae"), attention="eager"), 0.75).eval()
    images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    with torch.inference_mode():
        predicted, mask = model(images, noise)
        loss = net(images, noise=noise).loss.item()
    errors = (predicted - model.targets(images, True)).square().mean(-1)
    assert ((errors * mask).sum() / mask.sum()).item() == pytest.approx(loss, rel=1e-5)


def test_a_model_from_scratch_knows_where_its_patches_lie() -> None:
    """transformers 5 leaves the fixed positions at zero: a model from scratch could not tell its patches apart."""
    model = small()
    positions = model.net.vit.embeddings.position_embeddings[0], model.net.decoder.decoder_pos_embed[0]
    for table in positions:
        assert not table.requires_grad
        assert (table[0] == 0).all()
        assert (torch.cdist(table[1:], table[1:]) + torch.eye(len(table) - 1) > 0.1).all()
    # Equation of the original: sine and cosine of the column first, then of the row; patch 0 lies at (0, 0).
    width = positions[0].shape[1] // 4
    expected = torch.cat([torch.zeros(width), torch.ones(width)] * 2)
    torch.testing.assert_close(positions[0][1], expected)
    omega = 1 / 10000 ** (torch.arange(width) / width)
    torch.testing.assert_close(positions[0][2][:width], torch.sin(omega))


def test_147_of_196_patches_are_hidden_and_the_mask_is_that_of_the_sample() -> None:
    model = build(MAEConfig(name="vit-mae-small", image_size=224, patch_size=16), 0.75).eval()
    ids = ["a", "b", "c"]
    noise = torch.from_numpy(draws.uniform(ids, model.patches, 0, 0))
    with torch.inference_mode():
        _, mask = model(torch.zeros(3, 3, 224, 224), noise)
        _, alone = model(torch.zeros(1, 3, 224, 224), noise[1:2])
    assert mask.sum(1).tolist() == [147] * 3
    torch.testing.assert_close(mask[1:2], alone)
    assert not torch.equal(mask[0], mask[1])


def test_hidden_pixels_are_those_of_hidden_patches() -> None:
    model = small()
    mask = torch.zeros(1, 16)
    mask[0, 6] = 1  # row 1, column 2 of 4 x 4
    hidden = model.pixel_mask(mask)[0]
    assert hidden[8:16, 16:24].all()
    assert hidden.sum() == 64


@pytest.mark.parametrize("normalised", [False, True])
def test_a_perfect_prediction_gives_the_image_back(normalised: bool) -> None:
    model = small()
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (model.mean, model.std))
    images = (pixels - mean) / std
    perfect = model.targets(images, normalised)
    torch.testing.assert_close(model.images(perfect, images, normalised), pixels, rtol=0, atol=1e-5)
    if normalised:  # the mistake: a standardised prediction taken for pixels
        assert (model.images(perfect, images, False) - pixels).abs().mean() > 0.05


def test_missing_weights_are_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "mae")
    file = tmp_path / "mae" / "model.safetensors"
    tensors = load_file(file)
    del tensors["decoder.decoder_pred.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="decoder_pred.weight"):
        build(MAEConfig(name=str(tmp_path / "mae")), 0.75)


def test_missing_positions_and_grey_models_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "mae")
    file = tmp_path / "mae" / "model.safetensors"
    tensors = load_file(file)
    del tensors["decoder.decoder_pos_embed"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="decoder_pos_embed"):
        build(MAEConfig(name=str(tmp_path / "mae")), 0.75)
    save(tmp_path / "grey", num_channels=1)
    with pytest.raises(ModelError, match="1 channels"):
        build(MAEConfig(name=str(tmp_path / "grey")), 0.75)


def test_an_encoder_alone_is_refused(tmp_path: Path) -> None:
    from tests.models import folders

    folders.save("vit", tmp_path / "vit", ["a", "b"])
    with pytest.raises(ModelError, match="a vit model, not a masked autoencoder"):
        build(MAEConfig(name=str(tmp_path / "vit")), 0.75)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"image_size": 30}, "no multiple of the patch size"),
        ({"name": "vit-mae-smal"}, "vit-mae-small"),
    ],
)
def test_impossible_choices_are_explained(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(MAEConfig(**{"name": "vit-mae-small", "patch_size": 8, **changed}), 0.75)


def test_weights_have_one_image_size(tmp_path: Path) -> None:
    save(tmp_path / "mae")
    with pytest.raises(ModelError, match="image_size 64"):
        build(MAEConfig(name=str(tmp_path / "mae"), image_size=64), 0.75)
    scratch = build(MAEConfig(name=str(tmp_path / "mae"), image_size=64, pretrained=False), 0.75)
    assert scratch.patches == 64


def test_the_architecture_is_rebuilt_from_its_specification(tmp_path: Path) -> None:
    model = small()
    model.save_spec(tmp_path / "spec")
    again = build(MAEConfig(), 0.75, saved=tmp_path / "spec")
    again.load_state_dict(model.state_dict())
    images, noise = torch.randn(1, 3, 32, 32), torch.from_numpy(np.random.default_rng(0).random((1, 16)))
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(images, noise)[0], model.eval()(images, noise)[0])
