"""The cross-entropy through a frozen matrix: torch's values and gradients, in chunks."""

import torch
from torch.nn import functional

from finesight.losses import frozen_head
from finesight.losses.frozen_head import frozen_cross_entropy


def test_values_and_gradients_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    count = 2 * frozen_head.CHUNK + 7
    hidden = torch.randn(count, 16, generator=generator, dtype=torch.float32).requires_grad_()
    weight = torch.randn(301, 16, generator=generator)
    targets = torch.randint(0, 301, (count,), generator=generator)
    above = torch.rand(count, generator=generator)
    expected = functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    (gradient,) = torch.autograd.grad((expected * above).sum(), hidden)
    losses = frozen_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    (ours,) = torch.autograd.grad((losses * above).sum(), hidden)
    torch.testing.assert_close(ours, gradient, rtol=1e-5, atol=1e-5)


def test_large_scores_stay_finite() -> None:
    losses = frozen_cross_entropy(torch.full((2, 1), 1e4), torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]))
    assert losses.tolist() == [0.0, 2e4]


def test_half_precision_keeps_the_loss_in_float32() -> None:
    hidden = torch.randn(5, 8).requires_grad_()
    weight = torch.randn(11, 8).bfloat16()
    losses = frozen_cross_entropy(hidden, weight, torch.arange(5))
    assert losses.dtype == torch.float32
    expected = functional.cross_entropy((hidden.bfloat16() @ weight.T).float(), torch.arange(5), reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(losses.sum(), hidden)[0].dtype == torch.float32
