"""EndoVAE, the variational autoencoder of report 003 (S10) for endoscopy frames of 96 pixels."""

from typing import Literal

import torch
from torch import Tensor, nn

from finesight.errors import ConfigError
from finesight.losses.elbo import reparameterise

LOG_VARIANCE = 10.0
"""Largest magnitude of a log-variance: beyond it exp() says nothing more, and overflows in the end."""

Bottleneck = Literal["dense", "convolutional"]


class EndoVAEEncoder(nn.Module):
    """Images [B, 3, S, S] in [0, 1] -> mean and log-variance of the posterior, [B, D] each.

    Convolutions 3 x 3 with 16, 32, 32 (stride 2), 64 (stride 2), 128 and 256 (stride 2) channels, ReLU. Then
    "dense": a layer of 256 units (9.4 of 9.84 million parameters at 96 pixels); "convolutional": a 1 x 1
    convolution to 16 channels.
    """

    def __init__(self, latent: int, image_size: int, bottleneck: Bottleneck) -> None:
        super().__init__()
        plan = ((3, 16, 1), (16, 32, 1), (32, 32, 2), (32, 64, 2), (64, 128, 1), (128, 256, 2))
        layers: list[nn.Module] = []
        for before, after, stride in plan:
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.ReLU()]
        side = image_size // 8
        if bottleneck == "dense":
            layers += [nn.Flatten(), nn.Linear(256 * side * side, 256), nn.ReLU()]
            width = 256
        else:
            layers += [nn.Conv2d(256, 16, 1), nn.ReLU(), nn.Flatten()]
            width = 16 * side * side
        self.layers = nn.Sequential(*layers)
        self.mean = nn.Linear(width, latent)
        self.log_variance = nn.Linear(width, latent)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S] -> [B, D], [B, D]; the log-variance within ±LOG_VARIANCE."""
        features = self.layers(images)
        return self.mean(features), self.log_variance(features).clamp(-LOG_VARIANCE, LOG_VARIANCE)


class EndoVAEDecoder(nn.Module):
    """Latent codes [B, D] -> logits of the pixels [B, 3, S, S].

    A dense layer to 256 channels of S/8 x S/8, transposed 3 x 3 convolutions with 256, 128 (stride 2), 64, 64
    (stride 2), 32 and 32 (stride 2) channels, ReLU, and a convolution to three channels.
    """

    def __init__(self, latent: int, image_size: int) -> None:
        super().__init__()
        side = image_size // 8
        self.first = nn.Sequential(nn.Linear(latent, 256 * side * side), nn.ReLU(), nn.Unflatten(1, (256, side, side)))
        plan = ((256, 256, 1), (256, 128, 2), (128, 64, 1), (64, 64, 2), (64, 32, 1), (32, 32, 2))
        layers: list[nn.Module] = []
        for before, after, stride in plan:
            layers += [
                nn.ConvTranspose2d(before, after, 3, stride, padding=1, output_padding=stride - 1),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(32, 3, 3, padding=1))

    def forward(self, codes: Tensor) -> Tensor:
        """[B, D] -> [B, 3, S, S]"""
        return self.layers(self.first(codes).contiguous(memory_format=torch.channels_last))


class EndoVAE(nn.Module):
    """Encoder (9,842,380 parameters) and decoder (1,282,467) with a latent space of six dimensions."""

    def __init__(self, latent: int = 6, image_size: int = 96, bottleneck: Bottleneck = "dense") -> None:
        super().__init__()
        if image_size % 8 or image_size < 16:
            raise ConfigError(f"model.image_size {image_size}: EndoVAE needs a multiple of 8 from 16 on; 96 is usual.")
        self.latent, self.image_size, self.bottleneck = latent, image_size, bottleneck
        self.notes: list[str] = []
        self.encoder = EndoVAEEncoder(latent, image_size, bottleneck)
        self.decoder = EndoVAEDecoder(latent, image_size)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, 3, S, S] of a posterior sample, mean and log-variance [B, D]; noise [B, D] standard normal."""
        mean, log_variance = self.encoder(images)
        return self.decoder(reparameterise(mean, log_variance, noise)), mean, log_variance
