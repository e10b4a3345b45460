"""The three networks of PixelDA (Bousmalis et al. 2017, arXiv:1612.05424) as report 003 builds them (S9)."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from finesight.models.dropout import dropped

INITIAL_STD = 0.02


class PixelDAClassifier(nn.Module):
    """Two 5 x 5 convolutions with max pools, and three linear layers: 359,290 parameters.

    images: float32 [B, 3, S, S] in [-1, 1], S a multiple of 4 (32 in the report). Returns logits [B, classes].
    """

    def __init__(self, classes: int = 10, image_size: int = 32) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 48, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),  # [B, 48, S/4, S/4]
            nn.Flatten(),
        )
        width = 48 * (image_size // 4) ** 2
        self.head = nn.Sequential(
            nn.Linear(width, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, classes)
        )
        self.apply(_small_normal)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, 48 (S/4)^2]."""
        return self.backbone(images)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> logits [B, classes]."""
        return self.head(self.features(images))


class PixelDAGenerator(nn.Module):
    """A source image and a noise vector to an image in the style of the target.

    images: float32 [B, 3, S, S] in [-1, 1]; noise: float32 [B, noise], uniform in [-1, 1]. Returns float32
    [B, 3, S, S] in [-1, 1]. The noise becomes one more channel through a linear layer. 460,035 parameters.
    """

    def __init__(self, image_size: int = 32, noise: int = 10, width: int = 64, blocks: int = 6) -> None:
        super().__init__()
        self.noise, self.image_size = noise, image_size
        self.spread = nn.Linear(noise, image_size * image_size)
        self.first = nn.Conv2d(4, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        self.apply(_small_normal)

    def draw(self, count: int, device: torch.device | None = None) -> Tensor:
        """Noise float32 [count, noise], uniform in [-1, 1]; drawn on the CPU, so that devices agree."""
        return (torch.rand(count, self.noise) * 2 - 1).to(device)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """[B, 3, S, S], [B, noise] -> [B, 3, S, S]."""
        channel = self.spread(noise).view(-1, 1, self.image_size, self.image_size)
        maps = torch.relu_(self.first(torch.cat([images, channel.to(images.dtype)], dim=1)))
        return torch.tanh(self.last(self.blocks(maps)).float())


class Residual(nn.Module):
    """conv, batch norm, ReLU, conv, batch norm, and the input added: [B, C, S, S] -> [B, C, S, S]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, C, S, S]."""
        return self.body(maps).add_(maps)


class PixelDADiscriminator(nn.Module):
    """Real target image or generated: four 3 x 3 convolutions of 64 to 512 channels, then one logit.

    images: float32 [B, 3, S, S] in [-1, 1]. Returns logits [B], positive for real. Each convolution is
    followed by batch norm, LeakyReLU 0.2, Gaussian noise of deviation 0.2 and dropout 0.1 (both in training
    only). The first convolution has stride `first_stride` (1 or 2), the others 2.
    """

    def __init__(self, first_stride: int = 1, image_size: int = 32, noise: float = 0.2, dropout: float = 0.1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        side, inputs = image_size, 3
        for outputs, stride in zip((64, 128, 256, 512), (first_stride, 2, 2, 2), strict=True):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, padding=1),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.2, inplace=True),
                NoisyDropout(noise, dropout),
            ]
            side, inputs = -(-side // stride), outputs
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512 * side * side, 1))
        self.apply(_small_normal)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> logits [B]."""
        return self.layers(images).squeeze(1)


class NoisyDropout(nn.Module):
    """Gaussian noise, then dropout, in training; the identity in evaluation.

    What `values + deviation * randn_like(values)` and `nn.Dropout(p)` do, but faster on a CPU, where torch draws
    bfloat16 normals and Bernoulli masks one by one.
    """

    def __init__(self, deviation: float, p: float) -> None:
        super().__init__()
        self.deviation, self.p = deviation, p

    def forward(self, values: Tensor) -> Tensor:
        """Any dense shape and layout to the same."""
        if not self.training:
            return values
        if self.deviation:
            noise = torch.randn(values.numel(), device=values.device).as_strided(values.size(), values.stride())
            values = torch.add(values, noise.to(values.dtype), alpha=self.deviation)
        if self.p:
            values = dropped(values, self.p)
        return values


@contextlib.contextmanager
def spectators(*modules: nn.Module) -> Iterator[None]:
    """Networks that a step looks through: no gradient for their parameters, no change of their batch statistics."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    norms = [m for module in modules for m in module.modules() if getattr(m, "track_running_stats", False)]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        for norm in norms:
            norm.track_running_stats = False  # type: ignore[assignment]
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for norm in norms:
            norm.track_running_stats = True  # type: ignore[assignment]


def _small_normal(module: nn.Module) -> None:
    """Weights from N(0, 0.02), biases 0; batch norms stay 1 and 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=INITIAL_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
