"""Models as attacks need them: pixels in, evaluation mode, nothing but the input's gradient."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from finesight.errors import ConfigError, ModelError

Model = Callable[[Tensor], Tensor]


class Normalized(nn.Module):
    """A model of normalised images as a model of pixels: resizes and normalises inside.

    images: float32 [B, C, H, W] in [0, 1]. They are resized to size x size where `size` is given and differs
    (bilinear, antialiased; gradients pass through), then become (images - mean) / std, and go to `model`, which
    returns logits [B, classes]. mean, std: one value, or one for each channel, on the [0, 1] scale.
    Raises `ConfigError` for values of another scale, and for a model that is `Normalized` already.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float], size: int | None = None) -> None:
        super().__init__()
        if any(isinstance(part, Normalized) for part in model.modules()):
            raise ConfigError("The model normalises inside already; to normalise twice would change what it sees.")
        if len(mean) != len(std) or not all(0 <= m <= 1 for m in mean) or not all(0 < s <= 1 for s in std):
            raise ConfigError(
                f"mean {tuple(mean)} and std {tuple(std)} are no pair of values on the [0, 1] scale, one for each "
                "channel; divide those of 8-bit images by 255."
            )
        self.model, self.size = model, size
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1] -> logits [B, classes]."""
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = functional.interpolate(
                images, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            )
        return self.model((images - self.mean.to(images.dtype)) / self.std.to(images.dtype))


def prepared(model: nn.Module) -> nn.Module:
    """A copy of the model for many gradients: same logits within rounding, fewer operations.

    In evaluation mode, its parameters frozen, in channels_last, each batch norm that follows a convolution
    folded into it. What torch.fx cannot follow (control flow that depends on the input) stays unfolded.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if isinstance(model, Normalized):
        model.model = _folded(model.model)
    else:
        model = _folded(model)
    return model.to(memory_format=torch.channels_last)


def _folded(model: nn.Module) -> nn.Module:
    try:
        traced = fx.symbolic_trace(model)
    except Exception:  # the tracer raises whatever the model's own code raises when given a placeholder
        return model
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or len(node.args) != 1:
            continue
        source = node.args[0]
        convolution = modules.get(source.target) if source.op == "call_module" else None
        uses = sum(other.op == "call_module" and other.target == source.target for other in traced.graph.nodes)
        if isinstance(convolution, nn.Conv2d) and len(source.users) == 1 and uses == 1:
            traced.set_submodule(source.target, fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.requires_grad_(False)


@contextlib.contextmanager
def attacking(model: Model, device: torch.device, bf16: bool = False) -> Iterator[None]:
    """Evaluation mode and gradients inside, whatever the caller's; the mode of every part is put back after.

    With `bf16` under autocast, entered once, so that the weights are cast once for all steps. On a processor the
    convolution that cuts an image into patches is a matrix product inside, whose gradients are several times faster.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    parts = [part for part in modules if part.training]
    convolutions = [part for part in modules if type(part) is nn.Conv2d and device.type == "cpu"]
    patches = [part for part in convolutions if _cuts_patches(part)]
    try:
        if parts:
            model.eval()  # type: ignore[attr-defined]
        for cutting in patches:
            cutting.__dict__["forward"] = functools.partial(_patch_product, cutting)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device.type, torch.bfloat16, enabled=bf16),
        ):
            yield
    finally:
        for part in parts:
            part.training = True
        for cutting in patches:
            cutting.__dict__.pop("forward", None)


def _cuts_patches(part: nn.Conv2d) -> bool:
    """Whether it takes an image, in windows of 4 x 4 pixels or more that touch without overlap.

    With many channels, or for smaller windows, the convolution is the faster of both.
    """
    return (
        "forward" not in part.__dict__
        and part.in_channels <= 4 <= min(part.kernel_size)
        and part.kernel_size == part.stride
        and part.padding in ((0, 0), "valid")
        and (part.dilation, part.groups) == ((1, 1), 1)
    )


def _patch_product(part: nn.Conv2d, images: Tensor) -> Tensor:
    """What such a convolution gives: [B, C, H, W] -> [B, D, H // h, W // w]."""
    (height, width), weight = part.kernel_size, part.weight
    rows, columns = images.shape[2] // height, images.shape[3] // width
    cut = images[:, :, : rows * height, : columns * width]
    cut = cut.reshape(*cut.shape[:2], rows, height, columns, width).permute(0, 2, 4, 1, 3, 5).flatten(3)
    found = functional.linear(cut, weight.flatten(1), part.bias).permute(0, 3, 1, 2)
    last = any(_channels_last(each) for each in (images, weight))
    return found if last else found.contiguous()


def _channels_last(values: Tensor) -> bool:
    return values.is_contiguous(memory_format=torch.channels_last) and not values.is_contiguous()


def logits_of(model: Model, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """The model's logits [B, classes], at least float32, or `ModelError` where it returns something else."""
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"The model returns {shape} for {len(images)} images, not logits [{len(images)}, classes]; "
            "wrap it in a module whose forward returns the logits."
        )
    if labels is not None and labels.max() >= logits.shape[1]:
        raise ModelError(
            f"Label {int(labels.max())} with a model of {logits.shape[1]} classes (0 to {logits.shape[1] - 1}); "
            "give the labels and the model of one data set."
        )
    if broken := int(logits.detach().isnan().any(1).sum()):
        raise ModelError(f"The logits of {broken} of {len(images)} images are NaN; look for overflow in the model.")
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def gradient_of(losses: Tensor, images: Tensor) -> Tensor:
    """The gradient of each image's own loss: [B], [B, C, H, W] -> [B, C, H, W].

    Raises `ModelError` where there is none or it is not finite: there an attack would stand still (the sign of NaN
    is 0 in torch), and the model would look robust.
    """
    if not losses.requires_grad:
        raise ModelError(
            "No gradient reaches the images: the model cuts it off (no_grad, detach, numpy). Remove that, or use "
            "finesight.attacks.square, which needs none."
        )
    # The sum: an image's gradient does not depend on how many others there are.
    gradient = torch.autograd.grad(losses.sum(), images)[0]
    if broken := int((~gradient.isfinite()).flatten(1).any(1).sum()):
        raise ModelError(
            f"The gradient of {broken} of {len(images)} images is NaN or infinite; look in the model for a division "
            "or a root at 0, or use finesight.attacks.square, which needs no gradient."
        )
    return gradient
