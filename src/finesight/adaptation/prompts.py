"""Visual prompt tuning, shallow (VPT, Jia et al. 2022, arXiv 2203.12119): learnt tokens beside those of the image."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finesight.errors import ModelError
from finesight.models.leaf_vit import LeafBackbone

# What makes the token sequence of an encoder: the blocks that it then passes, and its tokens ahead of the prompts.
ENCODERS = {
    "ViTEmbeddings": ("ViTLayer", 1),
    "DeiTEmbeddings": ("DeiTLayer", 1),
    "BeitEmbeddings": ("BeitLayer", 1),
    "CLIPVisionEmbeddings": ("CLIPEncoderLayer", 1),
    "SiglipVisionEmbeddings": ("SiglipEncoderLayer", 0),  # has no [CLS]
    "Dinov2Embeddings": ("Dinov2Layer", 1),
    "Dinov2WithRegistersEmbeddings": ("Dinov2WithRegistersLayer", 1),
}
SUPPORTED = "ViT, DeiT, BEiT, CLIP, SigLIP and DINOv2 of transformers, leaf-vit-64 and leaf-vit-256"


class VisualPrompts(nn.Module):
    """Learnt tokens that pass the blocks of a transformer beside those of the image: [n, D].

    They stand behind the first `ahead` tokens: directly behind [CLS], before a distillation token, registers and
    patches; in front of the patches where there is no [CLS]. The positions of the image's tokens are already added
    then, and the prompts get none. They start uniform within sqrt(6 / (inputs + D)), as in the paper, where `inputs`
    are the 3 * patch**2 numbers of a patch: Xavier's bound for its projection.
    """

    def __init__(self, count: int, width: int, inputs: int, ahead: int = 1, device: Any = None) -> None:
        super().__init__()
        bound = math.sqrt(6 / (inputs + width))
        self.tokens = nn.Parameter(torch.empty(count, width, device=device).uniform_(-bound, bound))
        self.ahead = ahead

    def extra_repr(self) -> str:
        return f"{len(self.tokens)} tokens behind {self.ahead}"

    def forward(self, sequence: Tensor) -> Tensor:
        """[B, N, D] -> [B, N + n, D], in the type of the sequence: the prompts put in."""
        prompts = self.tokens.to(sequence.dtype).expand(len(sequence), -1, -1)
        return torch.cat((sequence[:, : self.ahead], prompts, sequence[:, self.ahead :]), dim=1)

    def without(self, sequence: Tensor) -> Tensor:
        """[B, N + n, D] -> [B, N, D]: the prompts taken out again."""
        return torch.cat((sequence[:, : self.ahead], sequence[:, self.ahead + len(self.tokens) :]), dim=1)

    def widened(self, bias: Tensor) -> Tensor:
        """[..., N, N] -> [..., N + n, N + n]: no bias for what a prompt attends to and what attends to it."""
        for dim in (-2, -1):
            first, rest = bias.tensor_split((self.ahead,), dim)
            shape = list(bias.shape)
            shape[dim] = len(self.tokens)
            bias = torch.cat((first, bias.new_zeros(shape), rest), dim)
        return bias

    # Hooks are methods, not closures, so that a copied model calls its own prompts.

    def _enter(self, _: nn.Module, __: Any, sequence: Tensor) -> Tensor:
        return self(sequence)

    def _enter_before(self, _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return self(*inputs)

    def _leave(self, _: nn.Module, __: Any, sequence: Tensor) -> Tensor:
        return self.without(sequence)

    def _image_only(self, _: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # BEiT asks for a bias as wide as the whole sequence, to which it would stretch that of the image.
        if options.get("dim_size") is not None:
            options = {**options, "dim_size": options["dim_size"] - len(self.tokens)}
        return inputs, options

    def _widen(self, _: nn.Module, __: Any, bias: Tensor) -> Tensor:
        return self.widened(bias)


def insert(encoder: nn.Module, count: int) -> VisualPrompts:
    """Put `count` prompts into the image encoder within `encoder`, in place, and freeze all else; returns them.

    They join what the embeddings give (in CLIP before its pre_layrnorm, which normalises them too; in leaf-vit the
    input of its block) and leave behind the last block, so that whatever pools the output finds [CLS] and the patches
    where they were and never averages over a prompt. Their parameter is NAME.prompts.tokens, where NAME is the module
    of the embeddings (the block of a leaf-vit). In BEiT no relative position bias reaches them.

    Raises `ModelError` where there is no such encoder, several, or one with prompts, and for a count below 1.
    """
    if count < 1:
        raise ModelError(f"adapt.prompts: {count} prompts cannot be inserted; give 1 or more, such as 10.")
    site = _site(encoder)
    weight = site.patches.weight
    prompts = VisualPrompts(count, len(weight), weight[0].numel(), site.ahead, weight.device)
    encoder.requires_grad_(False)
    site.owner.add_module("prompts", prompts)
    if site.owner is site.last:
        site.owner.register_forward_pre_hook(prompts._enter_before)
    else:
        site.owner.register_forward_hook(prompts._enter)
    site.last.register_forward_hook(prompts._leave)
    for module in site.tower.modules():
        if type(module).__name__ == "BeitRelativePositionBias":
            module.register_forward_pre_hook(prompts._image_only, with_kwargs=True)
            module.register_forward_hook(prompts._widen)
    return prompts


@dataclass(frozen=True)
class _Site:
    """An image encoder: its modules, the one that will hold the prompts, its last block, its patch projection."""

    tower: nn.Module
    owner: nn.Module
    last: nn.Module
    patches: nn.Conv2d
    ahead: int


def _site(encoder: nn.Module) -> _Site:
    sites = [site for module in encoder.modules() for site in _sites_of(module)]
    kind = type(getattr(encoder, "model", encoder)).__name__
    if not sites:
        raise ModelError(
            f"adapt.method prompts: {kind} has no sequence of tokens that prompts could join. Use adapt.method full, "
            f"head or lora, or a model.name that is one of {SUPPORTED}."
        )
    if len(sites) > 1:
        raise ModelError(f"adapt.method prompts: {kind} has {len(sites)} image encoders; insert into one of them.")
    if any(isinstance(module, VisualPrompts) for module in sites[0].tower.modules()):
        raise ModelError(f"adapt.method prompts: {kind} has prompts already; start from the model without them.")
    return sites[0]


def _sites_of(tower: nn.Module) -> list[_Site]:
    """The encoders whose embeddings are a direct part of `tower`: one, or none."""
    if isinstance(tower, LeafBackbone):
        return [_Site(tower, tower.block, tower.block, tower.patches, 0)]
    found = []
    for child in tower.children():
        block, ahead = ENCODERS.get(type(child).__name__, ("", 0))
        blocks = [module for module in tower.modules() if type(module).__name__ == block]
        if blocks:
            patches = next(module for module in child.modules() if isinstance(module, nn.Conv2d))
            found.append(_Site(tower, child, blocks[-1], patches, ahead))
    return found
