"""The ensemble of a stress test: the stages of AutoAttack, each on what the verdicts of the ones before left."""

import time

import numpy as np
import torch
from torch import Tensor, nn

from finesight.attacks.auto import STAGES
from finesight.attacks.auto_pgd import apgd, apgd_targeted
from finesight.attacks.bench import Attack, Bench, Rows
from finesight.attacks.config import AttackConfig
from finesight.attacks.model import attacking, logits_of
from finesight.attacks.random_search import square
from finesight.progress import Progress

TARGETS = 9


def ensemble(bench: Bench, classes: int) -> None:
    """APGD on the cross-entropy, APGD towards nine classes (with 4 classes or more), Square, on the first images.

    As `finesight.attacks.auto_attack`, except that what is left for a stage is decided by `bench.judge`, in the
    precision of the verdicts, while APGD takes its steps in bf16 where that is chosen.
    """
    rows, eps = bench.everything[: bench.config.auto], bench.config.ensemble_budget
    if not len(rows):
        return
    stages = [stage for stage in STAGES[1:] if stage != "apgd-t" or classes >= 4]
    said = bench.conditions["clean"].predictions[rows].copy()
    for stage in stages:
        since, last = time.monotonic(), stage == stages[-1]
        left = rows[said == bench.labels[rows]]
        said[left] = _stage(bench, stage, left, eps)
        name = bench.named("auto", eps) + ("" if last else f", up to {stage}")
        bench.record(name, "auto", rows, said.copy(), since, eps=eps, stage=stage, last=last)


def _stage(bench: Bench, stage: str, left: Rows, eps: float) -> Rows:
    """What the model makes of the images `left` after a stage."""
    config, name = bench.config, f"{bench.named('auto', eps)}, {stage}"
    each = {"apgd-ce": config.auto_iters, "apgd-t": TARGETS * config.auto_iters, "square": config.queries}[stage]
    progress = Progress(f"{name}, at most", each * len(left), "evaluations", shown=bench.shown)
    model = _Counted(bench.model, progress)
    # Square looks for gains so small that bf16 rounds them away.
    model.bf16 = bench.steps_bf16 and stage != "square"
    attack, fooled = _bound(stage, model, eps, config), np.zeros(len(bench.labels), dtype=bool)

    def keep(part: Rows, result: Tensor, _: Rows) -> None:
        with attacking(model, bench.device), torch.no_grad():
            fooled[part] = (logits_of(model, result).argmax(1) != bench.truth(part)).cpu().numpy()

    said = bench.over(name, left, attack, keep, shown=False)
    # An attack stops where it fools the model in its own precision, which may be the very border.
    border = fooled[left] & (said == bench.labels[left])
    if border.any() and model.bf16 != bench.bf16:
        model.bf16 = bench.bf16
        said[border] = bench.over(f"{name}, once more", left[border], attack, shown=False)
    progress.close()
    return said


def _bound(stage: str, model: nn.Module, eps: float, config: AttackConfig) -> Attack:
    def attack(pixels: Tensor, labels: Tensor, draws: torch.Generator) -> Tensor:
        if stage == "apgd-ce":
            return apgd(model, pixels, labels, eps, config.auto_iters, norm=config.norm, generator=draws)
        if stage == "apgd-t":
            return apgd_targeted(
                model, pixels, labels, eps, config.auto_iters, norm=config.norm, targets=TARGETS, generator=draws
            )
        return square(model, pixels, labels, eps, config.queries, norm=config.norm, generator=draws)

    return attack


class _Counted(nn.Module):
    """A model in float32, or with `bf16` in that, whatever its caller's; it says how many images it has seen.

    pixels [B, 3, H, W] -> float32 logits [B, classes].
    """

    def __init__(self, model: nn.Module, progress: Progress) -> None:
        super().__init__()
        self.model, self.progress, self.count, self.bf16 = model, progress, 0, False

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, classes]"""
        self.count += len(pixels)
        self.progress.update(self.count)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model(pixels).float()
