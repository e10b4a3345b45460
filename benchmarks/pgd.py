"""PGD-7 on ResNet-20 against torchattacks, both judged by the same float32 model.

Ours attacks a prepared copy (batch norms folded, channels_last, frozen) under bf16, and leaves an image alone once
it fools the model. Both sides start from the same seed with the same budget, step and batches. At 8/255 every
variant reaches an accuracy of 0, which would prove nothing, so it is judged at 0.5/255 and 1/255. Needs torchattacks
and the weights and images of FINESIGHT_TEST_DATA: with random ones there is nothing to fool.
"""

import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchattacks
from torch import Tensor

from benchmarks import timing
from finesight.attacks import Normalized, pgd, predictions, prepared
from finesight.engine import has_native_bf16
from finesight.models import resnet20, weights

BATCH = 125
IMAGES, ROUNDS = 1000, 3


def main() -> None:
    data = timing.test_data()
    if data is None:
        print("PGD-7: skipped, FINESIGHT_TEST_DATA is not set")
        return
    model, images, labels = _subject(data)
    fast = prepared(model)
    bf16 = has_native_bf16(torch.device("cpu"))
    for eps in (0.5 / 255, 1 / 255):
        peer = torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=7)

        def plain(early_stop: bool = False, eps: float = eps) -> Tensor:
            return _batches(
                lambda x, y: pgd(fast, x, y, eps, eps / 4, 7, bf16=bf16, early_stop=early_stop), images, labels
            )

        def theirs(peer: torchattacks.PGD = peer) -> Tensor:
            return _batches(peer, images, labels)

        def ours(plain: Callable[[bool], Tensor] = plain) -> Tensor:
            return plain(True)

        left = [_accuracy(model, attack(), labels) for attack in (theirs, plain, ours)]
        own, other = timing.interleaved(ours, theirs, ROUNDS)
        every, other_again = timing.interleaved(plain, theirs, ROUNDS)
        print(f"PGD-7, eps {eps * 255:g}/255, {len(images)} images [{timing.machine()}, {'bf16' if bf16 else 'fp32'}]")
        print(
            f"  {timing.ratio(own, other)}; {statistics.median(own):.1f} s against {statistics.median(other):.1f} s; "
            f"all steps for all images {timing.ratio(every, other_again)}"
        )
        print(f"  accuracy {left[0]:.3f} torchattacks, {left[2]:.3f} ours, {left[1]:.3f} ours with all steps")


def _subject(data: Path) -> tuple[Normalized, Tensor, Tensor]:
    """The trained model of pixels, and test images with labels."""
    model = resnet20()
    weights.load_strict(model, weights.read(data / "cifar10" / "resnet20-12fca82f.th"))
    arrays = np.load(data / "cifar10" / "cifar10_lossless_5000.npz")
    images = torch.from_numpy(arrays["test_images"][:IMAGES]).permute(0, 3, 1, 2).contiguous().float() / 255
    labels = torch.from_numpy(arrays["test_labels"][:IMAGES]).long()
    return Normalized(model, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).eval(), images, labels


def _batches(attack: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    torch.manual_seed(0)
    return torch.cat([attack(*batch) for batch in zip(images.split(BATCH), labels.split(BATCH), strict=True)])


def _accuracy(model: Normalized, images: Tensor, labels: Tensor) -> float:
    return (predictions(model, images) == labels).double().mean().item()
