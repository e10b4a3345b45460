"""The bound's two terms against closed forms, and the mistakes of report 003."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from finesight.losses.elbo import kl_nats, negative_elbo, reconstruction_nats, reparameterise


def bound_of(
    logits: torch.Tensor, images: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor, beta: float = 1.0
) -> torch.Tensor:
    return negative_elbo(reconstruction_nats(logits, images), kl_nats(mean, log_variance), beta)


def test_half_for_half_costs_ln_2_for_each_value() -> None:
    logits, images = torch.zeros(2, 3, 96, 96), torch.full((2, 3, 96, 96), 0.5)
    assert reconstruction_nats(logits, images).tolist() == pytest.approx([27_648 * math.log(2)] * 2, rel=1e-6)


def test_the_kl_of_the_prior_is_zero_and_that_of_others_is_torchs() -> None:
    assert kl_nats(torch.zeros(3, 6), torch.zeros(3, 6)).tolist() == [0, 0, 0]
    mean, log_variance = torch.randn(5, 6), torch.randn(5, 6)
    reference = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_nats(mean, log_variance), reference)


def test_the_bound_is_below_the_evidence_of_a_linear_model() -> None:
    """For p(x | z) Bernoulli with one pixel, ln p(x) is known by quadrature; the bound may not exceed it."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.linspace(-8, 8, 4001)
    weights = Normal(0.0, 1.0).log_prob(grid).exp() * (grid[1] - grid[0])
    evidence = torch.log((weights * torch.sigmoid(1.5 * grid + 0.3)).sum())
    mean, log_variance = torch.full((20_000, 1), 0.4), torch.full((20_000, 1), -0.3)
    codes = reparameterise(mean, log_variance, torch.randn(20_000, 1, generator=generator))
    logits = (1.5 * codes + 0.3).view(-1, 1, 1, 1)
    bound = -bound_of(logits, torch.ones(20_000, 1, 1, 1), mean, log_variance).mean()
    assert bound < evidence
    assert bound > evidence - 0.05


def test_beta_multiplies_the_kl_term_alone() -> None:
    logits, images, mean, log_variance = (
        torch.randn(2, 3, 8, 8),
        torch.rand(2, 3, 8, 8),
        torch.ones(2, 6),
        torch.ones(2, 6),
    )
    once, thrice = (bound_of(logits, images, mean, log_variance, beta) for beta in (1.0, 3.0))
    torch.testing.assert_close(thrice - once, 2 * kl_nats(mean, log_variance))


def test_averaging_over_channels_is_a_hidden_beta_of_three() -> None:
    """Report 003 averaged the cross-entropy over the channels while the KL was a sum."""
    logits, images, mean, log_variance = (
        torch.randn(2, 3, 8, 8),
        torch.rand(2, 3, 8, 8),
        torch.ones(2, 6),
        torch.ones(2, 6),
    )
    entropy = functional.binary_cross_entropy_with_logits(logits, images, reduction="none")
    report = entropy.mean(1).flatten(1).sum(1) + kl_nats(mean, log_variance)
    torch.testing.assert_close(report, bound_of(logits, images, mean, log_variance, beta=3.0) / 3)
    assert not torch.allclose(report, bound_of(logits, images, mean, log_variance) / 3)


def test_samples_have_the_moments_of_the_posterior() -> None:
    noise = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    codes = reparameterise(torch.tensor([[2.0]]), torch.tensor([[math.log(0.25)]]), noise)
    assert codes.mean().item() == pytest.approx(2.0, abs=0.01)
    assert codes.var().item() == pytest.approx(0.25, abs=0.01)
