"""FGSM and PGD: parity with torchattacks, the report's mistake, budgets, and what must not be touched."""

import itertools

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from finesight.attacks import Normalized, fgsm, pgd
from finesight.attacks.budget import check_result, distances
from finesight.errors import ConfigError, DataError, ModelError
from tests.attacks.digits import Net, accuracy, held_out, seeded, trained

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_equals_torchattacks_after_each_step(targeted: bool) -> None:
    model, (images, labels) = trained(), held_out(64)
    wanted = (labels + 1) % 10
    for steps in range(1, 8):
        peer = torchattacks.PGD(model, eps=0.1, alpha=0.025, steps=steps)
        if targeted:
            peer.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % 10)
        torch.manual_seed(steps)
        theirs = peer(images, labels)
        torch.manual_seed(steps)
        ours = pgd(model, images, wanted if targeted else labels, 0.1, 0.025, steps, targeted=targeted)
        assert (ours - theirs).abs().max() <= 1e-6
        assert accuracy(model, ours, labels) == accuracy(model, theirs, labels)
    assert (ours - images).abs().max() > 0.09


def test_l2_pgd_equals_torchattacks_after_each_step() -> None:
    model, (images, labels) = trained(), held_out(64)
    for steps in range(1, 6):
        theirs = torchattacks.PGDL2(model, eps=0.8, alpha=0.3, steps=steps, random_start=False)(images, labels)
        ours = pgd(model, images, labels, 0.8, 0.3, steps, norm="l2", random_start=False)
        # torchattacks divides the gradient by its length plus 1e-10, which shows where the loss is nearly 0.
        assert (ours - theirs).abs().max() <= 2e-4
        assert (ours - theirs).abs().mean() <= 1e-6
        assert accuracy(model, ours, labels) == accuracy(model, theirs, labels)


def test_fgsm_moves_each_pixel_of_a_linear_model_by_eps_against_the_margin() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 2, bias=False)

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(images.flatten(1))

    model = Linear()
    images = torch.rand(5, 3, 2, 2, generator=seeded(0)) * 0.6 + 0.2
    labels = torch.tensor([0, 1, 0, 1, 1])
    margin = model.layer.weight[1 - labels] - model.layer.weight[labels]
    expected = images + 0.1 * margin.detach().sign().view_as(images)
    torch.testing.assert_close(fgsm(model, images, labels, 0.1), expected)
    torch.testing.assert_close(torchattacks.FGSM(model, eps=0.1)(images, labels), fgsm(model, images, labels, 0.1))
    torch.testing.assert_close(fgsm(model, images, 1 - labels, 0.1, targeted=True), expected)


def test_the_reports_mistake_moves_pixels_by_100_of_255_and_is_refused() -> None:
    """Images normalised for CLIP, attacked with a budget of 8/255 and a clamp to [0, 1]."""
    torch.manual_seed(0)
    model = Net(channels=3).eval()
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    pixels, labels = torch.rand(8, 3, 8, 8), torch.arange(8)
    pixels[:, :, :2] = 0
    mistaken = torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=7)((pixels - mean) / std, labels)
    assert ((mistaken * std + mean - pixels).abs().max() * 255).item() > 100
    with pytest.raises(DataError, match=r"from -1\.79\d* to .*, not within \[0, 1\].*Normalized"):
        pgd(model, (pixels - mean) / std, labels, 8 / 255, 2 / 255, 7)
    right = pgd(Normalized(model, CLIP_MEAN, CLIP_STD), pixels, labels, 8 / 255, 2 / 255, 7)
    assert (right - pixels).abs().max() * 255 <= 8.001


def test_without_a_budget_nothing_moves() -> None:
    model, (images, labels) = trained(), held_out(10)
    assert torch.equal(fgsm(model, images, labels, 0), images)
    for norm in ("linf", "l2"):
        same = pgd(model, images, labels, 0, 0.1, 5, norm=norm, restarts=3)
        assert torch.equal(same, images)
        assert same.data_ptr() != images.data_ptr()


def test_accuracy_falls_with_the_budget_and_with_the_steps() -> None:
    model, (images, labels) = trained(), held_out()
    by_eps = [accuracy(model, pgd(model, images, labels, e, e / 4, 7, generator=seeded(0)), labels)
              for e in (0, 0.05, 0.1, 0.15, 0.2, 0.4)]  # fmt: skip
    assert by_eps[0] == accuracy(model, images, labels) > 0.93
    assert all(later < earlier for earlier, later in itertools.pairwise(by_eps))
    assert by_eps[-1] < 0.02
    by_steps = [accuracy(model, pgd(model, images, labels, 0.15, 0.04, n, random_start=False), labels)
                for n in (0, 1, 2, 4, 10)]  # fmt: skip
    assert all(later < earlier for earlier, later in itertools.pairwise(by_steps))


def test_a_model_in_training_is_attacked_in_evaluation_mode_and_put_back() -> None:
    model, (images, labels) = trained(), held_out(50)
    expected = pgd(model, images, labels, 0.1, 0.03, 4, random_start=False)
    model.train()
    model.model.norm.eval()
    statistics = model.model.norm.running_mean.clone()
    try:
        assert torch.equal(pgd(model, images, labels, 0.1, 0.03, 4, random_start=False), expected)
        assert [part.training for part in (model, model.model, model.model.dropout)] == [True] * 3
        assert not model.model.norm.training
        assert torch.equal(model.model.norm.running_mean, statistics)
    finally:
        model.eval()


def test_only_the_input_gets_a_gradient() -> None:
    model, (images, labels) = trained(), held_out(10)
    computed: list[str] = []
    hooks = [p.register_hook(lambda _, name=name: computed.append(name)) for name, p in model.named_parameters()]
    model.model.linear.bias.grad = torch.ones(10)
    pgd(model, images, labels, 0.1, 0.03, 3, restarts=2)
    assert computed == []
    assert torch.equal(model.model.linear.bias.grad, torch.ones(10))
    model.zero_grad()
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not images.requires_grad
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(mode: type) -> None:
    model, (images, labels) = trained(), held_out(20)
    expected = pgd(model, images, labels, 0.1, 0.03, 3, generator=seeded(0))
    with mode():
        assert torch.equal(pgd(model, images * 1, labels, 0.1, 0.03, 3, generator=seeded(0)), expected)


def test_a_targeted_attack_leads_to_the_target() -> None:
    model, (images, labels) = trained(), held_out()
    wanted = (labels + 3) % 10
    reached = pgd(model, images, wanted, 0.4, 0.05, 30, targeted=True, generator=seeded(0))
    assert accuracy(model, images, wanted) < 0.05
    assert accuracy(model, reached, wanted) > 0.95
    assert accuracy(model, pgd(model, images, labels, 0.4, 0.05, 30, generator=seeded(0)), wanted) < 0.5


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.7)])
def test_the_budget_is_used_and_kept(norm: str, eps: float) -> None:
    model, (images, labels) = trained(), held_out()
    result = pgd(model, images, labels, eps, eps / 2, 6, norm=norm, generator=seeded(1))
    assert result.min() >= 0
    assert result.max() <= 1
    reached = distances(result, images, norm)
    assert reached.max() <= eps + 1e-6
    assert reached.median() > 0.9 * eps
    starts = pgd(model, images, labels, eps, 0, 0, norm=norm, generator=seeded(1))
    assert distances(starts, images, norm).max() <= eps + 1e-6
    assert not torch.equal(starts, images)


def test_starts_are_uniform_in_the_ball() -> None:
    """Where no pixel is clipped: of uniform points in d dimensions a share r^d lies within r of the centre."""
    images, labels = torch.full((20_000, 3, 1, 1), 0.5), torch.zeros(20_000, dtype=torch.int64)
    starts = pgd(nn.Flatten(), images, labels, 0.3, 0, 0, norm="l2", generator=seeded(0))
    radius = distances(starts, images, "l2") / 0.3
    assert (radius <= 0.5).double().mean().item() == pytest.approx(0.125, abs=0.008)
    assert (starts - images).mean().abs().item() < 0.002
    starts = pgd(nn.Flatten(), images, labels, 0.3, 0, 0, generator=seeded(0))
    assert ((starts - images).abs() <= 0.15).double().mean().item() == pytest.approx(0.5, abs=0.008)


def test_restarts_only_ever_add_fooled_images() -> None:
    model, (images, labels) = trained(), held_out()
    fooled = []
    for restarts in (1, 2, 5):
        result = pgd(model, images, labels, 0.09, 0.05, 3, restarts=restarts, generator=seeded(3))
        fooled.append(model(result).argmax(1) != labels)
    assert (fooled[1] | ~fooled[0]).all()
    assert (fooled[2] | ~fooled[1]).all()
    assert fooled[2].sum() > fooled[0].sum()


def test_the_generator_alone_decides() -> None:
    model, (images, labels) = trained(), held_out(20)
    torch.manual_seed(0)
    first = pgd(model, images, labels, 0.1, 0.03, 2, generator=seeded(7))
    torch.manual_seed(1)
    assert torch.equal(pgd(model, images, labels, 0.1, 0.03, 2, generator=seeded(7)), first)
    assert not torch.equal(pgd(model, images, labels, 0.1, 0.03, 2, generator=seeded(8)), first)


def test_an_image_does_not_feel_its_batch() -> None:
    model, (images, labels) = trained(), held_out(60)
    together = pgd(model, images, labels, 0.1, 0.03, 5, random_start=False)
    parts = zip(images.split(7), labels.split(7), strict=True)
    apart = [pgd(model, *part, 0.1, 0.03, 5, random_start=False) for part in parts]
    # A gradient of almost 0 may change its sign with the batch's rounding.
    assert ((together - torch.cat(apart)).abs() < 1e-6).double().mean() > 0.999


def test_the_direction_is_the_gradient_by_finite_differences() -> None:
    torch.manual_seed(0)
    model = Normalized(Net(classes=3), [0.5], [0.25]).double().eval()
    model.model.norm.running_mean.uniform_(-0.3, 0.3)
    images, label = torch.rand(1, 1, 8, 8, dtype=torch.float64) * 0.8 + 0.1, torch.tensor([2])
    moved = pgd(model, images, label, 1.0, 1e-3, 1, norm="l2", random_start=False) - images
    steps = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8) * 1e-5
    with torch.no_grad():
        ahead, behind = (
            nn.functional.cross_entropy(model(images + sign * steps), label.expand(64), reduction="none")
            for sign in (1, -1)
        )
    differences = (ahead - behind) / 2e-5
    torch.testing.assert_close((moved / 1e-3).flatten(), differences / differences.norm(), atol=1e-7, rtol=1e-5)


def test_early_stop_leaves_fooled_images_where_they_fool_and_others_alone() -> None:
    model, (images, labels) = trained(), held_out()
    full = pgd(model, images, labels, 0.1, 0.02, 10, generator=seeded(0))
    stopped = pgd(model, images, labels, 0.1, 0.02, 10, generator=seeded(0), early_stop=True)
    fooled, fooled_early = (model(result).argmax(1) != labels for result in (full, stopped))
    assert (fooled_early | ~fooled).all()
    assert ((stopped - full)[~fooled_early].abs() < 1e-6).double().mean() > 0.999
    assert distances(stopped, images, "l2").mean() < 0.95 * distances(full, images, "l2").mean()


def test_bf16_fools_as_many() -> None:
    model, (images, labels) = trained(), held_out()
    exact, rough = (
        accuracy(
            model, pgd(model, images, labels, 0.1, 0.03, 7, generator=seeded(0), bf16=bf16, early_stop=bf16), labels
        )
        for bf16 in (False, True)
    )
    assert rough == pytest.approx(exact, abs=0.015)
    seen: list[torch.dtype] = []
    hook = model.model.linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        pgd(model, images, labels, 0.1, 0.03, 1)
    pgd(model, images, labels, 0.1, 0.03, 1, bf16=True)
    hook.remove()
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "divide 8-bit images by 255"),
        (torch.zeros(2, 64), r"\[2, 64\]"),
        (torch.full((2, 1, 8, 8), 200.0), "from 200 to 200"),
        (torch.full((2, 1, 8, 8), torch.nan), "from nan to nan"),
    ],
)
def test_images_that_are_none_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pgd(trained(), images, torch.tensor([0, 1]), 0.1, 0.03, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 8}, "8/255"),
        ({"eps": -0.1}, "eps -0.1"),
        ({"step": float("nan")}, "step nan"),
        ({"iters": 2.5}, "iters 2.5"),
        ({"restarts": 0}, "restarts 0"),
        ({"norm": "l1"}, "linf or l2"),
    ],
)
def test_impossible_numbers_are_refused(options: dict, message: str) -> None:
    images, labels = held_out(2)
    with pytest.raises(ConfigError, match=message):
        pgd(trained(), images, labels, **{"eps": 0.1, "step": 0.03, "iters": 2} | options)


def test_labels_and_models_that_do_not_fit_are_refused() -> None:
    model, (images, labels) = trained(), held_out(3)
    with pytest.raises(DataError, match=r"int64 \[B\]"):
        pgd(model, images, labels.float(), 0.1, 0.03, 2)
    with pytest.raises(ModelError, match="Label 10 with a model of 10 classes"):
        pgd(model, images, torch.tensor([1, 2, 10]), 0.1, 0.03, 2)
    with pytest.raises(ModelError, match=r"\[3, 1, 8, 8\] for 3 images"):
        pgd(lambda images: images, images, labels, 0.1, 0.03, 2)
    with pytest.raises(ModelError, match="No gradient reaches the images"):
        pgd(lambda images: model(images).detach(), images, labels, 0.1, 0.03, 2)


def test_nan_does_not_pass_for_robustness() -> None:
    """torch's sign of NaN is 0: torchattacks returns the images unharmed."""
    model, (images, labels) = trained(), held_out(3)

    def rooted(images: Tensor) -> Tensor:
        return model(images) + (0 * images).sum().sqrt()  # a root at 0: right logits, no gradient

    peer = torchattacks.PGD(model, eps=0.4, alpha=0.1, steps=5, random_start=False)
    peer.model = rooted
    assert torch.equal(peer.forward(images, labels), images)
    with pytest.raises(ModelError, match="gradient of 3 of 3 images is NaN or infinite"):
        pgd(rooted, images, labels, 0.4, 0.1, 5, random_start=False)
    with pytest.raises(ModelError, match="logits of 3 of 3 images are NaN"):
        pgd(lambda images: model(images) * torch.nan, images, labels, 0.1, 0.03, 2)


def test_a_result_outside_the_budget_is_discarded() -> None:
    images = torch.full((2, 1, 4, 4), 0.5)
    check_result(images + 0.1, images, 0.1, "linf")
    check_result(images + 0.1, images, 0.4, "l2")
    for wrong, eps, norm in ((images + 0.11, 0.1, "linf"), (images + 0.1, 0.39, "l2"), (images + 0.51, 0.6, "linf"),
                             (images * torch.nan, 1.0, "linf")):  # fmt: skip
        with pytest.raises(ModelError, match="result is discarded"):
            check_result(wrong, images, eps, norm)
