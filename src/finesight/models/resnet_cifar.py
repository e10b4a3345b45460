"""ResNet-20 for 32 x 32 images (He et al. 2015, arXiv:1512.03385, section 4.2)."""

from torch import Tensor, nn
from torch.nn import functional


class ResNetCIFAR(nn.Module):
    """A 3 x 3 convolution, three stages of basic blocks with 16, 32 and 64 channels, average pool, one linear layer.

    images: float32 [B, 3, S, S], normalised; S = 32 by design. Returns logits [B, classes]. The names of the
    parameters are those of the weight files that are in common use (`layer1.0.conv1.weight`, `linear.bias`),
    which `weights.read` and `weights.load_strict` load; those take ImageNet's mean and standard deviation.
    """

    def __init__(self, blocks: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = _norm(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> average-pooled [B, 64]."""
        maps = functional.relu(self.bn1(self.conv1(images)), inplace=True)
        maps = self.layer3(self.layer2(self.layer1(maps)))
        # Not mean(): its gradient is not channels_last, and slows down every layer before it.
        return functional.avg_pool2d(maps, maps.shape[-2:]).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> logits [B, classes]."""
        return self.linear(self.features(images))


class BasicBlock(nn.Module):
    """conv, batch norm, ReLU, conv, batch norm, the input added, ReLU: [B, I, S, S] -> [B, O, S/stride, S/stride].

    Where the shape changes, the shortcut takes every second pixel and pads with channels of zeros on both
    sides (the paper's option A), so that it has no parameters.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = _norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = _norm(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, maps: Tensor) -> Tensor:
        """[B, I, S, S] -> [B, O, S/stride, S/stride]."""
        shortcut = maps
        if self.stride != 1 or self.padding:
            # A pool of one pixel is the slice [:, :, ::stride, ::stride] whose gradient keeps channels_last.
            picked = functional.avg_pool2d(maps, 1, self.stride)
            shortcut = functional.pad(picked, (0, 0, 0, 0, self.padding, self.padding))
        hidden = functional.relu(self.bn1(self.conv1(maps)), inplace=True)
        return functional.relu(self.bn2(self.conv2(hidden)).add_(shortcut), inplace=True)


def resnet20(classes: int = 10) -> ResNetCIFAR:
    """ResNet-20 with random weights; 269,722 parameters for 10 classes."""
    return ResNetCIFAR(3, classes)


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm without a count of batches, which only momentum=None reads and the weight files do not have."""
    norm = nn.BatchNorm2d(channels)
    norm.num_batches_tracked = None
    return norm


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
