"""A compact convolutional network, trained from scratch: the default where no weights can be had."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TARGET = 64


class SmallCNN(nn.Module):
    """Six 3 x 3 convolutions with batch norm, a residual one after each halving, and a global average pool.

    images: float32 [B, 3, H, W], H and W >= 8. Images of 128 pixels and more are first averaged down to
    64-127, so that cost stays within four times that of 64. Returns logits [B, classes].
    """

    def __init__(self, classes: int, width: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        self.backbone = SmallBackbone(width)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * width, classes))

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 4 * width]."""
        return self.backbone(images)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, classes]."""
        return self.head(self.features(images))


class SmallBackbone(nn.Module):
    """[B, 3, H, W] -> [B, 4 * width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = _conv(3, width)
        self.first = _conv(width, width)
        self.second = Stage(width, 2 * width)
        self.third = Stage(2 * width, 4 * width)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 4 * width]."""
        factor = min(images.shape[-2:]) // TARGET
        if factor > 1:
            images = F.avg_pool2d(images, factor)
        maps = self.first(F.relu(self.stem(images)))  # [B, width, H, W]
        maps = self.third(self.second(F.relu(maps)))  # [B, 4 * width, H/4, W/4]
        return maps.mean(dim=(2, 3))


class Stage(nn.Module):
    """Halve the map, widen it, and add one residual convolution: [B, C, H, W] -> [B, D, H/2, W/2]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.widen = _conv(inputs, outputs)
        self.residual = _conv(outputs, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H/2, W/2]."""
        maps = F.relu(self.widen(F.max_pool2d(maps, 2)))
        return F.relu(torch.add(maps, self.residual(maps)))


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
