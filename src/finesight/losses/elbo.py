"""The evidence lower bound of a variational autoencoder (Kingma & Welling 2014), every term in nats."""

import torch
from torch import Tensor
from torch.nn import functional


def reconstruction_nats(logits: Tensor, images: Tensor) -> Tensor:
    """-ln p(x | z) of each image: binary cross-entropy summed over channels and pixels. float32 [B]

    logits: [B, C, H, W] before the sigmoid; images: [B, C, H, W] in [0, 1]. For 96 x 96 x 3 values at
    probability 1/2 it is 27,648 ln 2.
    """
    return functional.binary_cross_entropy_with_logits(logits.float(), images, reduction="none").flatten(1).sum(1)


def kl_nats(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_variance)) || N(0, 1)) of each image. [B, D], [B, D] -> float32 [B]"""
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def negative_elbo(reconstruction: Tensor, kl: Tensor, beta: float = 1.0) -> Tensor:
    """reconstruction + beta * kl, both in nats [B]; a bound on -ln p(x) where beta is 1.

    Both terms are sums: to average the first over channels or pixels instead would multiply beta by their
    number (Higgins et al. 2017 name the factor), which is why the reduction is no option here.
    """
    return reconstruction + beta * kl


def reparameterise(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """A sample of the posterior that gradients pass through; noise is standard normal. [B, D]"""
    return mean + noise * torch.exp(0.5 * log_variance)
