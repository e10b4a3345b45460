"""A small classifier of real digits, 8 x 8 grey pixels in [0, 1], trained in about a second."""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from finesight.attacks import Normalized


class Net(nn.Module):
    """[B, 1, 8, 8] -> logits [B, classes]; batch norm and dropout, so that its mode matters."""

    def __init__(self, classes: int = 10, channels: int = 1, width: int = 16) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.3)
        self.linear = nn.Linear(width * 16, classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = functional.max_pool2d(functional.relu(self.norm(self.convolution(images))), 2)
        return self.linear(self.dropout(maps.flatten(1)))


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """float32 [1797, 1, 8, 8] in [0, 1], int64 [1797], shuffled: the file is ordered by writer."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=seeded(0))
    return torch.from_numpy(pixels / 16).float().view(-1, 1, 8, 8)[order], torch.from_numpy(labels).long()[order]


@functools.cache
def trained() -> Normalized:
    """A model of pixels, in evaluation mode, that has learned the first 1,500 digits."""
    images, labels = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Normalized(Net(), [0.3], [0.4])
        optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
        for _ in range(3):
            for batch in torch.randperm(1500).split(50):
                optimizer.zero_grad()
                functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
    model.zero_grad()
    return model.eval()


def held_out(count: int = 200) -> tuple[Tensor, Tensor]:
    """The first `count` digits that the model has not seen."""
    images, labels = digits()
    return images[1500 : 1500 + count].clone(), labels[1500 : 1500 + count].clone()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (model(images).argmax(1) == labels).double().mean().item()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
