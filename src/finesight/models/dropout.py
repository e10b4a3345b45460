"""Dropout for a CPU, where torch draws Bernoulli masks one by one, on one core."""

import torch
from torch import Tensor, nn


def dropped(values: Tensor, p: float) -> Tensor:
    """Each value 0 with probability p, else divided by 1 - p; any dense shape and layout to the same.

    Of every 64 random bits come four decisions, so the probability is p to within 1/65,536. The draws are those of
    torch's default generator.
    """
    count = values.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=values.device).random_(-(2**63), None)
    kept = bits.view(torch.int16)[:count] >= round(p * 65536) - 32768
    return values * kept.as_strided(values.size(), values.stride()).to(values.dtype).mul_(1 / (1 - p))


class Dropout(nn.Dropout):
    """`nn.Dropout` by `dropped`: the same distribution by other draws, in a third of the time on a CPU."""

    def forward(self, values: Tensor) -> Tensor:
        """Any shape to the same."""
        if not self.training or not 0 < self.p < 1 or not _dense(values):
            return super().forward(values)
        return dropped(values, self.p)


def quicken(model: nn.Module) -> None:
    """Put `Dropout` in the place of every `nn.Dropout` of the model."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and type(module) is nn.Dropout and module.p and not module.inplace:
            model.set_submodule(name, Dropout(module.p).train(module.training))


def _dense(values: Tensor) -> bool:
    """Whether the values fill their memory without gaps or overlaps, in any order."""
    return values.is_contiguous() or torch.empty_like(values).stride() == values.stride()
