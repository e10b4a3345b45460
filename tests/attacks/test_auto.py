"""APGD and Square against the authors' code (the `autoattack` that torchattacks carries), and their ensemble."""

import copy
from collections.abc import Iterator

import pytest
import torch
from autoattack.autopgd_pt import APGDAttack, APGDAttack_targeted
from autoattack.square import SquareAttack

from finesight.attacks import Normalized, apgd, apgd_targeted, auto_attack, pgd, square
from finesight.attacks.budget import distances
from finesight.errors import ConfigError
from tests.attacks.digits import Net, accuracy, held_out, seeded, trained

NORMS = {"linf": ("Linf", 0.1), "l2": ("L2", 0.6)}
Exact = tuple[Normalized, torch.Tensor, torch.Tensor]


@pytest.fixture
def exact() -> Iterator[Exact]:
    """Model and images in float64, because in float32 a rounding can grow into another path."""
    model, (images, labels) = copy.deepcopy(trained()).double(), held_out(60)
    torch.set_default_dtype(torch.float64)
    yield model, images.double(), labels
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_is_the_authors(norm: str, loss: str, exact: Exact) -> None:
    model, images, labels = exact
    name, eps = NORMS[norm]
    peer = APGDAttack(model, 25, name, n_restarts=2, eps=eps, seed=5, loss=loss, device="cpu")
    _, theirs = peer.perturb(images, labels)
    ours = apgd(model, images, labels, eps, 25, norm=norm, loss=loss, restarts=2, generator=seeded(5))
    assert 0.05 < accuracy(model, ours, labels) < 0.95
    # Where the true class is third the ratio is 1, and its gradient rounding, which l2 steps scale up by 10^12.
    assert (ours - theirs).abs().max() <= (1e-4 if (loss, norm) == ("dlr", "l2") else 1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_targeted_apgd_is_the_authors(norm: str, exact: Exact) -> None:
    model, images, labels = exact
    name, eps = NORMS[norm]
    peer = APGDAttack_targeted(model, 15, name, eps=eps, seed=2, device="cpu", n_target_classes=4)
    broken = 0
    # One at a time: with l2 the authors' code gives all images of a batch the step of the first.
    for image, label in zip(images[:25].split(1), labels.split(1), strict=False):
        _, theirs = peer.perturb(image, label)
        ours = apgd_targeted(model, image, label, eps, 15, norm=norm, targets=4, generator=seeded(2))
        broken += int((model(ours).argmax(1) != label).sum())
        assert (ours - theirs).abs().max() <= (1e-4 if norm == "l2" else 1e-9)
    assert 5 < broken < 25


@pytest.mark.parametrize("norm", NORMS)
def test_square_is_the_authors(norm: str, exact: Exact) -> None:
    model, images, labels = exact
    name, eps = NORMS[norm]
    peer = SquareAttack(model, name, n_queries=150, eps=eps * 1.4, seed=3, device="cpu", n_restarts=2)
    with torch.no_grad():
        theirs = peer.perturb(images, labels)
    ours = square(model, images, labels, eps * 1.4, 150, norm=norm, restarts=2, generator=seeded(3))
    assert 0.05 < accuracy(model, ours, labels) < 0.9
    assert (ours - theirs).abs().max() <= 1e-9


@pytest.mark.parametrize("norm", NORMS)
def test_the_ensemble_beats_each_of_its_parts_and_keeps_the_budget(norm: str) -> None:
    model, (images, labels) = trained(), held_out(80)
    eps = NORMS[norm][1]
    result = auto_attack(
        model, images, labels, eps, norm=norm, iters=20, queries=100, batch_size=30, generator=seeded(0)
    )
    assert result.stages == ("clean", "apgd-ce", "apgd-t", "square")
    left = list(result.accuracy().values())
    assert left == sorted(left, reverse=True)
    assert left[0] == pytest.approx(accuracy(model, images, labels))
    assert left[-1] == pytest.approx(accuracy(model, result.images, labels))
    assert 0 < left[-1] < left[0] - 0.2
    assert left[-1] <= accuracy(model, pgd(model, images, labels, eps, eps / 4, 20, norm=norm), labels)
    assert left[-1] <= accuracy(model, square(model, images, labels, eps, 100, norm=norm), labels)
    assert distances(result.images, images, norm).max() <= eps + 1e-6
    untouched = (result.images == images).flatten(1).all(1)
    assert torch.equal(untouched, result.broken_by <= 0)


def test_with_three_classes_there_is_no_targeted_stage() -> None:
    torch.manual_seed(0)
    model, (images, labels) = Normalized(Net(classes=3), [0.5], [0.5]), held_out(20)
    labels = model.eval()(images).argmax(1)
    result = auto_attack(model, images, labels, 0.05, iters=5, queries=5, generator=seeded(0))
    assert result.stages == ("clean", "apgd-ce", "square")
    assert list(result.accuracy()) == ["clean", "apgd-ce", "square"]
    assert result.accuracy()["clean"] == 1
    assert (result.broken_by != 2).all()
    with pytest.raises(ConfigError, match=r"compares 4 classes and the model has 3.*loss='ce'"):
        apgd_targeted(model, images, labels, 0.05, 5)
    apgd(model, images, labels, 0.05, 5, loss="dlr")
    with pytest.raises(ConfigError, match="choose ce or dlr"):
        apgd(model, images, labels, 0.05, 5, loss="margin")  # type: ignore[arg-type]


def test_square_needs_no_gradient_and_counts_its_queries() -> None:
    model, (images, labels) = trained(), held_out(20)
    calls: list[int] = []

    def scores(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return model(images).detach()

    result = square(scores, images, labels, 0.3, 40, generator=seeded(1))
    assert accuracy(model, result, labels) < accuracy(model, images, labels)
    assert len(calls) <= 1 + 1 + 40 + 1  # clean, stripes, queries, the final word
    assert 0 < calls[-2] < calls[2] == 20  # no queries for images that are fooled


def test_scaling_the_logits_flattens_cross_entropy_and_not_the_ratio() -> None:
    """Gradient masking: logits so large that the softmax saturates; DLR does not notice (Croce & Hein, section 4)."""
    model, (images, labels) = trained(), held_out(100)
    masked = Normalized(nn_scaled(model.model, 1e4), [0.3], [0.4])
    plain = accuracy(model, apgd(model, images, labels, 0.12, 15, generator=seeded(0)), labels)
    by_entropy = accuracy(model, apgd(masked, images, labels, 0.12, 15, generator=seeded(0)), labels)
    by_ratio = accuracy(model, apgd(masked, images, labels, 0.12, 15, loss="dlr", generator=seeded(0)), labels)
    assert by_entropy > plain + 0.2
    assert by_ratio < plain + 0.05


def nn_scaled(model: torch.nn.Module, factor: float) -> torch.nn.Module:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(images) * factor

    return Scaled().eval()
