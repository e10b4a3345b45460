"""Adversarial images of one model, judged by another."""

import functools

import pytest
import torch

from finesight.attacks import Normalized, pgd, predictions, transfer_attack
from finesight.errors import DataError, ModelError
from tests.attacks.digits import Net, accuracy, digits, held_out, seeded, trained


@functools.cache
def other() -> Normalized:
    """A model with another width, resolution and seed, trained on the same digits."""
    images, labels = digits()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Normalized(torch.nn.Sequential(torch.nn.AvgPool2d(2), Net(width=12)), [0.5], [0.5], size=16)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for _ in range(3):
            for batch in torch.randperm(1500).split(50):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
    return model.eval()


def test_transferred_attacks_lie_between_clean_and_white_box() -> None:
    surrogate, victim, (images, labels) = trained(), other(), held_out()
    attack = functools.partial(pgd, eps=0.15, step=0.04, iters=10, generator=seeded(0))
    result = transfer_attack(attack, surrogate, victim, images, labels, batch_size=64)
    assert torch.equal(result.surrogate, surrogate(result.images).argmax(1))
    assert torch.equal(result.victim, victim(result.images).argmax(1))
    transferred = (result.victim == labels).double().mean().item()
    white_box = transfer_attack(attack, victim, victim, images, labels)
    assert torch.equal(white_box.surrogate, white_box.victim)
    assert (white_box.victim == labels).double().mean().item() < transferred - 0.05
    assert transferred < accuracy(victim, images, labels) - 0.05
    assert (result.images - images).abs().max() <= 0.15 + 1e-6


def test_both_models_take_pixels_and_other_images_are_refused() -> None:
    """The report fed its surrogate with 224 x 224 images normalised for CLIP."""
    images, labels = held_out(4)
    with pytest.raises(DataError, match="Normalized"):
        transfer_attack(functools.partial(pgd, eps=0.1, step=0.1, iters=1), trained(), other(), images * 4 - 2, labels)
    with pytest.raises(DataError, match="not within"):
        transfer_attack(lambda model, images, labels: images * 2, trained(), other(), images, labels)


def test_predictions_are_those_of_evaluation_mode_in_any_batches() -> None:
    model, (images, _) = trained(), held_out(50)
    expected = model(images).argmax(1)
    model.train()
    try:
        assert torch.equal(predictions(model, images, batch_size=7), expected)
        assert model.training
    finally:
        model.eval()
    with pytest.raises(ModelError, match="logits"):
        predictions(lambda images: images, images)
