"""Contrastive losses in float64: closed forms, open_clip, blocks, and the sign that the report prints."""

import math
from collections.abc import Callable

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn import functional

import finesight.losses
from finesight.errors import ConfigError, ModelError
from finesight.losses import clip_loss, debiased_contrastive_loss, siglip_loss, tecoa_loss


def pairs(count: int = 13, width: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit vectors, float64 [count, width], that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, count, width, generator=generator, dtype=torch.float64)
    text = text + image  # partners are nearer than strangers
    return functional.normalize(image, dim=1).requires_grad_(), functional.normalize(text, dim=1).requires_grad_()


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


def same(ours: Tensor, theirs: Tensor, *inputs: Tensor, tolerance: float = 1e-12) -> None:
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    for own, peer in zip(gradients(ours, *inputs), gradients(theirs, *inputs), strict=True):
        torch.testing.assert_close(own, peer, atol=tolerance, rtol=tolerance)


def test_clip_is_open_clips() -> None:
    image, text, scale = *pairs(), number(12.5)
    same(clip_loss(image, text, scale), ClipLoss()(image, text, scale), image, text, scale)


def test_siglip_is_open_clips() -> None:
    image, text, scale, bias = *pairs(), number(9.0), number(-6.0)
    same(siglip_loss(image, text, scale, bias), SigLipLoss()(image, text, scale, bias), image, text, scale, bias)


def test_closed_forms_where_all_vectors_are_equal() -> None:
    one = torch.ones(8, 1, dtype=torch.float64)
    assert clip_loss(one, one, 100.0).item() == pytest.approx(math.log(8), rel=1e-14)
    # 8 pairs of logit 10 - 10 = 0 that answer yes, 56 that answer no.
    assert siglip_loss(one, one, 10.0, -10.0).item() == pytest.approx(8 * math.log(2), rel=1e-14)
    assert tecoa_loss(one, one[:5], torch.arange(8) % 5, 3.0).item() == pytest.approx(math.log(5), rel=1e-14)


def test_siglips_bias_is_added_and_not_subtracted_as_the_report_prints() -> None:
    """At the start, scale 10 and bias -10, nearly all pairs are answered with no, at little cost."""
    image, text = (functional.normalize(torch.randn(256, 64, dtype=torch.float64), dim=1) for _ in range(2))
    right = siglip_loss(image, text, 10.0, -10.0).item()
    labels = 2 * torch.eye(256, dtype=torch.float64) - 1
    printed = functional.softplus(labels * (-10 * image @ text.T - 10)).sum().item() / 256
    assert right == pytest.approx(10, abs=1)  # one wrong yes or no of about 10 for each image, its partner's
    assert printed > 200 * right
    assert printed == pytest.approx(siglip_loss(image, text, 10.0, 10.0).item())


@pytest.mark.parametrize("block", [1, 4, 5, 12, 13, 100])
def test_siglip_in_blocks_is_the_whole(block: int) -> None:
    image, text, scale, bias = *pairs(), number(9.0), number(-6.0)
    whole = siglip_loss(image, text, scale, bias)
    same(siglip_loss(image, text, scale, bias, block), whole, image, text, scale, bias)
    assert siglip_loss(image, text, 9.0, -6.0, block).item() == pytest.approx(whole.item(), rel=1e-13)


def test_siglip_in_blocks_keeps_no_logits_for_the_gradient() -> None:
    image, text = pairs(64, 4)

    def kept(block: int | None) -> int:
        """The largest tensor that autograd keeps, and all that it keeps together, in elements."""
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 8
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = siglip_loss(image, text, number(9.0), number(-6.0), block)
        loss.backward()
        return max(sizes.values(), default=0)

    assert kept(None) >= 64 * 64
    assert kept(8) <= 64 * 4


def test_debiased_without_bias_is_clip() -> None:
    image, text, scale = *pairs(), number(12.5)
    same(debiased_contrastive_loss(image, text, scale, 0.0), clip_loss(image, text, scale), image, text, scale)


def test_debiased_is_the_papers_formula_with_its_clamp() -> None:
    image, text = (tensor.detach() for tensor in pairs(6, 3, seed=2))
    clamped = 0
    for scale, tau_plus in ((2.0, 0.1), (5.0, 0.3), (8.0, 0.6)):
        logits = scale * image @ text.T
        terms = []
        for rows in (logits, logits.T):
            for i, row in enumerate(rows.tolist()):
                positive = math.exp(row[i])
                negatives = sum(math.exp(value) for j, value in enumerate(row) if j != i)
                estimate = (negatives - tau_plus * 5 * positive) / (1 - tau_plus)
                floor = 5 * math.exp(-scale)
                clamped += estimate < floor
                terms.append(-math.log(positive / (positive + max(estimate, floor))))
        ours = debiased_contrastive_loss(image, text, scale, tau_plus).item()
        assert ours == pytest.approx(sum(terms) / 12, rel=1e-12)
    assert 0 < clamped < 36


def test_debiased_survives_the_scale_of_clip_in_float32() -> None:
    """exp(100) is beyond float32."""
    image, text = (tensor.detach() for tensor in pairs())
    for tau_plus in (0.0, 0.1, 0.5):
        exact = debiased_contrastive_loss(image, text, 100.0, tau_plus)
        rough = debiased_contrastive_loss(image.float(), text.float(), 100.0, tau_plus)
        assert rough.dtype == torch.float32
        assert rough.item() == pytest.approx(exact.item(), rel=1e-4)


def test_tecoa_is_the_cross_entropy_of_scaled_cosines() -> None:
    image, _ = pairs()
    prompts, scale = pairs(5, seed=3)[0], number(20.0)
    labels = torch.arange(13) % 5
    log_softmax = (scale * image @ prompts.T).log_softmax(1)
    expected = -log_softmax[torch.arange(13), labels].mean()
    same(tecoa_loss(image, prompts, labels, scale), expected, image, prompts, scale)


@pytest.mark.parametrize(
    "loss",
    [
        lambda image, text, scale: clip_loss(image, text, scale),
        lambda image, text, scale: siglip_loss(image, text, scale, scale - 15, block=3),
        lambda image, text, scale: debiased_contrastive_loss(image, text, scale, 0.1),
        lambda image, text, scale: tecoa_loss(image, text, torch.arange(5), scale),
    ],
)
def test_gradients_are_finite_differences(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(loss, (*pairs(5, 3), number(6.0)))


def test_autocast_does_not_round_the_cosines() -> None:
    image, text = (tensor.detach().float() for tensor in pairs())
    expected = clip_loss(image, text, 100.0), siglip_loss(image, text, 100.0, -10.0, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (clip_loss(image, text, 100.0), siglip_loss(image, text, 100.0, -10.0, 4)) == expected


def test_what_does_not_pair_is_refused() -> None:
    image, text = pairs()
    for loss in (lambda: clip_loss(image, text[:5], 1.0), lambda: siglip_loss(image, text[:, :3], 1.0, 0.0)):
        with pytest.raises(ModelError, match=r"\[13, 7\] and texts \[.*do not pair"):
            loss()
    with pytest.raises(ModelError, match=r"\[B, D\] and \[classes, D\]"):
        tecoa_loss(image, text[:, :3], torch.arange(13), 1.0)
    with pytest.raises(ConfigError, match="block 0"):
        siglip_loss(image, text, 1.0, 0.0, 0)
    for tau_plus in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="tau_plus"):
            debiased_contrastive_loss(image, text, 1.0, tau_plus)
    with pytest.raises(AttributeError, match="focal_loss"):
        finesight.losses.focal_loss  # noqa: B018
