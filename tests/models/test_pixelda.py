"""The three networks of PixelDA against the report's counts, and the shortcut of its noise."""

import pytest
import torch
from torch.nn import functional

from finesight.models import PixelDAClassifier, PixelDADiscriminator, PixelDAGenerator
from finesight.models.dann import DomainHead
from finesight.models.pixelda import NoisyDropout


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_classifier_has_the_reports_parameters() -> None:
    model = PixelDAClassifier()
    assert count(model) == 359_290
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_generator_keeps_shape_and_range_and_listens_to_its_noise() -> None:
    model = PixelDAGenerator().eval()
    # z to a plane 11,264; first conv 2,368; six blocks of 74,112; last conv 1,731.
    assert count(model) == 11_264 + 2_368 + 6 * 74_112 + 1_731
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    one, other = model(images, model.draw(3)), model(images, model.draw(3))
    assert one.shape == images.shape
    assert one.abs().max() <= 1
    assert not torch.equal(one, other)


def test_the_noise_is_uniform_in_its_range_and_not_gaussian() -> None:
    noise = PixelDAGenerator().draw(20_000).flatten()
    assert -1 <= noise.min() < -0.999
    assert 0.999 < noise.max() <= 1
    # Uniform: variance 1/3, kurtosis 1.8; a Gaussian has kurtosis 3.
    assert noise.var().item() == pytest.approx(1 / 3, rel=0.01)
    assert (noise**4).mean().item() / noise.var().item() ** 2 == pytest.approx(1.8, rel=0.02)


@pytest.mark.parametrize(("stride", "side"), [(1, 4), (2, 2)])
def test_the_discriminator_gives_one_logit_with_either_first_stride(stride: int, side: int) -> None:
    model = PixelDADiscriminator(first_stride=stride)
    assert model.layers[-1].in_features == 512 * side * side
    assert model(torch.zeros(5, 3, 32, 32)).shape == (5,)


def test_weights_begin_as_small_normals() -> None:
    for model in (PixelDAClassifier(), PixelDAGenerator(), PixelDADiscriminator()):
        weight = torch.cat([p.flatten() for name, p in model.named_parameters() if p.ndim > 1])
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_noisy_dropout_has_the_moments_of_its_two_parts() -> None:
    torch.manual_seed(0)
    layer = NoisyDropout(0.2, 0.1)
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.full((16, 64, 31, 31), 3.0, dtype=dtype).to(memory_format=torch.channels_last)
        seen = layer(values)
        assert seen.dtype == dtype
        assert seen.is_contiguous(memory_format=torch.channels_last)
        dropped = seen == 0
        assert dropped.double().mean().item() == pytest.approx(0.1, abs=0.001)
        kept = seen[~dropped].double()
        assert kept.mean().item() == pytest.approx(3 / 0.9, rel=0.003)
        assert kept.std().item() == pytest.approx(0.2 / 0.9, rel=0.03)


def test_noisy_dropout_drops_what_it_passes_no_gradient_to_and_rests_in_evaluation() -> None:
    layer = NoisyDropout(0.2, 0.5)
    values = torch.ones(8, 4, 5, 5, requires_grad=True)
    seen = layer(values)
    seen.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.where(seen == 0, 0.0, 2.0))
    assert torch.equal(layer.eval()(values), values)


def test_noisy_dropout_repeats_with_the_seed_and_neighbours_are_independent() -> None:
    layer = NoisyDropout(0.0, 0.5)
    torch.manual_seed(3)
    first = layer(torch.ones(100_000))
    torch.manual_seed(3)
    assert torch.equal(first, layer(torch.ones(100_000)))
    signs = (first > 0).double() * 2 - 1
    for lag in range(1, 9):
        assert abs((signs[lag:] * signs[:-lag]).mean().item()) < 0.02


def test_the_domain_head_reverses_the_gradient_by_its_strength() -> None:
    head = DomainHead(6)
    features = torch.randn(4, 6, requires_grad=True)
    functional.softplus(head(features, 0.0)).sum().backward()
    assert features.grad is not None
    assert features.grad.abs().max() == 0
    assert head.layers[0].weight.grad.abs().max() > 0
    gradients = []
    for strength in (-1.0, 0.25):
        features.grad = None
        functional.softplus(head(features, strength)).sum().backward()
        gradients.append(features.grad.clone())
    torch.testing.assert_close(gradients[1], -0.25 * gradients[0])
