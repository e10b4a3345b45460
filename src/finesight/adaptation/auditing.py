"""What an adaptation touches: trained and frozen parameters, adapted modules, random weights left frozen."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# The wrapper that peft puts around a layer adds these to the names of the layer's parameters.
_WRAPPING = re.compile(r"\.(base_layer|lora_\w+(\.\w+)?)(?=\.|$)")


@dataclass(frozen=True)
class Audit:
    """Parameter counts (each shared tensor once), and names.

    adapted: the modules that own trained parameters, by their name without LoRA's wrapper.
    frozen_random: parameters that are neither pretrained nor trained.
    """

    trainable: int
    total: int
    adapted: list[str]
    frozen_random: list[str]

    def lines(self) -> list[str]:
        """The audit for people; layers that differ by a number only share a line."""
        share = f"{self.trainable / self.total:.2%}" if self.total else "0 %"
        found = [f"Trained: {self.trainable:,} of {self.total:,} parameters ({share})."]
        if self.trainable < self.total:
            found += grouped(self.adapted, "modules")
        return found + self.left_random()

    def left_random(self) -> list[str]:
        """The random parameters that stay as they are."""
        if not self.frozen_random:
            return []
        count = len(self.frozen_random)
        return [f"Random and never trained: {count} tensors:", *grouped(self.frozen_random, "tensors")]


def audit(model: "nn.Module") -> Audit:
    """Count and name what `model` would train now, by `requires_grad`.

    Random parameters are known for models with `random_parameters()` (every `Classifier`).
    """
    trainable = total = 0
    adapted: dict[str, None] = {}
    frozen = set()
    for name, parameter in model.named_parameters():  # each shared tensor once
        total += parameter.numel()
        if parameter.requires_grad:
            trainable += parameter.numel()
            adapted[plain_name(name).rpartition(".")[0]] = None
        else:
            frozen.add(name)
    known = getattr(model, "random_parameters", None)
    random = known() if callable(known) else []
    return Audit(trainable, total, list(adapted), [plain_name(name) for name in random if name in frozen])


def plain_name(name: str) -> str:
    """A parameter's or module's name as it was before LoRA wrapped the layer."""
    return _WRAPPING.sub("", name)


def grouped(names: list[str], what: str) -> list[str]:
    """A line for each of `families`: '  h.*.attn (6 modules)', or the name of one that stands alone."""
    return [
        f"  {of_family[0]}" if len(of_family) == 1 else f"  {pattern} ({len(of_family)} {what})"
        for pattern, of_family in families(names).items()
    ]


def families(names: list[str]) -> dict[str, list[str]]:
    """Names grouped by themselves with `*` for each number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name), []).append(name)
    return groups
