"""What a stress test measures: one model of pixels under every condition. Tensors in, numbers out, no files.

The worst-of rule: under PGD an image counts as broken at a budget if PGD broke it at that budget or at a smaller one,
whose ball lies within, or if the model gets it wrong without an attack. So accuracy cannot rise with the budget, and
what is broken need not be attacked again. What the rule could hide is checked apart: the largest budget attacks every
image, and `facts["alone"]` holds what that attack came to by itself (see `finesight.attacks.alarms`).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finesight.attacks import alarms, budget
from finesight.attacks.bench import Bench, Rows, Say
from finesight.attacks.config import AttackConfig
from finesight.attacks.corruptions import CORRUPTIONS, corrupt
from finesight.attacks.ensemble import ensemble
from finesight.attacks.gradient import pgd
from finesight.attacks.model import attacking, logits_of, prepared
from finesight.attacks.scores import Condition, interval_entries, mean_entries
from finesight.attacks.stored import to_8_bit
from finesight.errors import ConfigError, DataError

SEVERITIES = (1, 2, 3, 4, 5)
HUGE, HUGE_IMAGES = 0.5, 100
"""At half of a pixel's range any image can become grey, so accuracy must fall to nothing."""


@dataclass
class Measured:
    """What came out.

    conditions: by name, in the order measured; entries: {condition: {"accuracy": {value, low, high, n}}}; corruption:
    means over kinds and severities (`scores.mean_entries`), {} where there are none; adversarial: uint8 [N, 3, H, W],
    the images of the largest budget; alarms: sentences; facts: what was chosen on the way.
    """

    conditions: dict[str, Condition]
    entries: dict[str, dict[str, Any]]
    corruption: dict[str, Any]
    adversarial: Tensor
    alarms: list[str]
    facts: dict[str, Any]


def chosen_corruptions(config: AttackConfig) -> tuple[str, ...]:
    """The kinds of corruption that `config` names. Raises `ConfigError` for an unknown one."""
    if config.corruptions in (["all"], ["none"], []):
        return CORRUPTIONS if config.corruptions == ["all"] else ()
    for name in config.corruptions:
        if name not in CORRUPTIONS:
            raise ConfigError(f"corruptions: {name!r} is unknown; give all, none, or some of {', '.join(CORRUPTIONS)}.")
    return tuple(dict.fromkeys(config.corruptions))


def measure(
    model: nn.Module,
    images: Tensor,
    labels: NDArray[np.int64],
    ids: Sequence[str],
    groups: Sequence[str] | None,
    config: AttackConfig,
    *,
    surrogate: nn.Module | None = None,
    expected: NDArray[np.float64] | None = None,
    bf16: bool = False,
    resamples: int = 1000,
    level: float = 0.95,
    say: Say = lambda _: None,
    shown: bool = False,
) -> Measured:
    """Attack and corrupt images, and count what the model still gets right.

    model: pixels float32 [B, 3, H, W] in [0, 1] to logits [B, classes], such as `Normalized`; surrogate: another one
    with the same classes in the same order. images: uint8 [N, 3, H, W]; labels: int64 [N]; ids: N names; groups: what
    shares an origin (resampled whole), or None. The costly conditions take the first images, so their order should be
    random. expected: the class probabilities [N, C] that the model gave the images elsewhere, to find a normaliser
    applied twice. bf16: the precision of the verdicts.

    The same arguments give the same numbers; other batch sizes give other random starts. Raises `ConfigError`,
    `DataError` and `ModelError` before the first attack where something does not fit.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images) == len(labels) == len(ids) > 0:
        raise DataError(
            f"Images of type {images.dtype} and shape {list(images.shape)} with {len(labels)} labels and {len(ids)} "
            "ids: a stress test takes uint8 [N, 3, H, W], and a label and an id for each."
        )
    bench = Bench(model, images, labels, ids, config, bf16=bf16, say=say, shown=shown)
    probabilities = _conditions(bench, surrogate)
    how: dict[str, Any] = {"resamples": resamples, "seed": config.seed, "level": level}
    together = None if groups is None or len(set(groups)) == len(groups) else np.asarray(groups)
    entries = interval_entries(bench.conditions, bench.labels, together, **how)
    corruption = mean_entries(bench.conditions, bench.labels, together, **how)
    found = alarms.found(bench.conditions, entries, bench.labels, config, bench.facts, (probabilities, expected))
    return Measured(bench.conditions, entries, corruption, bench.adversarial, found, bench.facts)


def _conditions(bench: Bench, surrogate: nn.Module | None) -> NDArray[np.float64]:
    """Measure everything, in this order; returns the class probabilities [N, C] of the clean images."""
    kinds = chosen_corruptions(bench.config)
    bench.check()
    probabilities = _clean(bench)
    _noise(bench)
    _fgsm(bench)
    _curve(bench)
    _step_counts(bench)
    _huge(bench)
    if surrogate is not None:
        _transfer(bench, surrogate)
    ensemble(bench, probabilities.shape[1])
    _worst(bench)
    _corrupted(bench, kinds)
    _stored(bench)
    return probabilities


def _clean(bench: Bench) -> NDArray[np.float64]:
    """No attack; the class probabilities [N, C]."""
    since, parts = time.monotonic(), range(0, len(bench.labels), bench.batch_size)
    found = [bench.probabilities(bench.pixels(bench.everything[k : k + bench.batch_size])) for k in parts]
    probabilities = np.concatenate(found)
    bench.record("clean", "clean", bench.everything, probabilities.argmax(1), since)
    return probabilities


def _noise(bench: Bench) -> None:
    """Random changes of the largest budget's full length: what an attack must beat."""
    eps, norm, since = bench.config.budgets[-1], bench.config.norm, time.monotonic()

    def noise(pixels: Tensor, _: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(pixels.shape, generator=generator).to(pixels.device)
        return budget.project(pixels + eps * budget.direction(drawn, norm), pixels, eps, norm)

    name = bench.named("noise", eps)
    bench.record(name, "noise", bench.everything, bench.over(name, bench.everything, noise), since, eps=eps)


def _fgsm(bench: Bench) -> None:
    """One step of full length from each image that is right; what is wrong already stays wrong."""
    config, rows = bench.config, bench.right(bench.everything)
    for eps in config.budgets:

        def single(pixels: Tensor, labels: Tensor, _: torch.Generator, eps: float = eps) -> Tensor:
            return pgd(
                bench.attacked, pixels, labels, eps, eps, 1,
                norm=config.norm, random_start=False, bf16=bench.steps_bf16,
            )  # fmt: skip

        since, name = time.monotonic(), bench.named("fgsm", eps)
        said = bench.conditions["clean"].predictions.copy()
        said[rows] = bench.over(name, rows, single)
        bench.record(name, "fgsm", bench.everything, said, since, eps=eps)


def _curve(bench: Bench) -> None:
    """PGD at every budget, the smallest first, by the worst-of rule."""
    *smaller, largest = bench.config.budgets
    said, iters = bench.conditions["clean"].predictions.copy(), bench.config.iters
    for eps in smaller:
        since = time.monotonic()
        _attack_left(bench, eps, said, np.flatnonzero(said == bench.labels), said, early_stop=True)
        bench.record(bench.named("pgd", eps), "pgd", bench.everything, said.copy(), since, eps=eps, iters=iters)
    since, name, alone = time.monotonic(), bench.named("pgd", largest), bench.labels.copy()
    # Every image, and to the end: the stored set should fool other models too.
    _attack_left(bench, largest, alone, bench.everything, said, early_stop=False)
    bench.facts["alone"][name] = float((alone == bench.labels).mean())
    said = np.where(alone != bench.labels, alone, said)
    bench.record(name, "pgd", bench.everything, said, since, eps=largest, iters=iters)


def _attack_left(bench: Bench, eps: float, said: Rows, rows: Rows, before: Rows, *, early_stop: bool) -> None:
    """Attack `rows`, then those of them that withstand, as often as there are restarts; writes into `said`.

    The stored image of a row is replaced by one that fools the model, or where nothing did so `before` either.
    """
    standing = before == bench.labels

    def keep(part: Rows, result: Tensor, predicted: Rows) -> None:
        take = (predicted != bench.labels[part]) | (standing[part] & (not early_stop))
        places = torch.from_numpy(part[take])
        found = result.cpu()[torch.from_numpy(take)]
        bench.adversarial[places] = to_8_bit(found, bench.images[places], eps, bench.config.norm)

    attack = bench.ascent(bench.attacked, eps, bench.config.iters, early_stop=early_stop)
    for restart in range(bench.config.restarts):
        name = bench.named("pgd", eps) + (f", start {restart + 1}" if restart else "")
        said[rows] = bench.over(name, rows, attack, keep)
        rows = rows[said[rows] == bench.labels[rows]]


def _step_counts(bench: Bench) -> None:
    """PGD with several numbers of steps, each by itself, at the budget that comes nearest to halving the accuracy."""
    half = bench.conditions["clean"].accuracy(bench.labels) / 2
    curve = [condition for condition in bench.conditions.values() if condition.kind == "pgd"]
    eps = min(curve, key=lambda condition: abs(condition.accuracy(bench.labels) - half)).about["eps"]
    rows = bench.everything[: bench.config.steps_images]
    left = bench.right(rows)
    for count in bench.config.steps:
        since, name = time.monotonic(), f"{bench.named('pgd', eps)}, {count} step{'s' if count > 1 else ''}"
        said = bench.conditions["clean"].predictions[rows].copy()
        said[left] = bench.over(name, left, bench.ascent(bench.attacked, eps, count, early_stop=True))
        bench.record(name, "steps", rows, said, since, eps=eps, iters=count)


def _huge(bench: Bench) -> None:
    """PGD with a budget that nothing may withstand, by itself: a check of the attack."""
    rows, norm = bench.right(bench.everything)[:HUGE_IMAGES], bench.config.norm
    if len(rows):
        eps = HUGE if norm == "linf" else HUGE * float(np.sqrt(bench.images[0].numel()))
        since, name, iters = time.monotonic(), bench.named("check", eps), bench.config.iters
        said = bench.over(name, rows, bench.ascent(bench.attacked, eps, iters, early_stop=True))
        bench.record(name, "huge", rows, said, since, eps=eps, iters=iters)


def _transfer(bench: Bench, surrogate: nn.Module) -> None:
    """PGD on the surrogate at the largest budget, judged by the model; and what the surrogate makes of it itself."""
    since, eps, iters = time.monotonic(), bench.config.budgets[-1], bench.config.iters
    other, name = prepared(surrogate).to(bench.device), bench.named("transfer", eps)
    right = {"clean": 0, "attacked": 0}

    def ask(part: Rows, result: Tensor, _: Rows) -> None:
        with attacking(other, bench.device), torch.no_grad():
            for what, pixels in (("clean", bench.pixels(part)), ("attacked", result)):
                right[what] += int((logits_of(other, pixels).argmax(1) == bench.truth(part)).sum())

    said = bench.over(name, bench.everything, bench.ascent(other, eps, iters, early_stop=False), ask)
    bench.facts["surrogate"] = {what: count / len(bench.labels) for what, count in right.items()}
    bench.record(name, "transfer", bench.everything, said, since, eps=eps, iters=iters)


def _worst(bench: Bench) -> None:
    """What withstands both PGD and the ensemble of the same budget, on the ensemble's images."""
    last = [c for c in bench.conditions.values() if c.kind == "auto" and c.about["last"]]
    for strong in last:
        white = [c for c in bench.conditions.values() if c.kind == "pgd" and c.about["eps"] == strong.about["eps"]]
        for weak in white:
            since, truth = time.monotonic(), bench.labels[strong.rows]
            broken = strong.predictions != truth
            said = np.where(broken, strong.predictions, weak.predictions[strong.rows])
            name, eps = bench.named("worst", strong.about["eps"]), strong.about["eps"]
            bench.record(name, "worst", strong.rows, said, since, eps=eps)


def _corrupted(bench: Bench, kinds: Sequence[str]) -> None:
    for kind in kinds:
        for severity in SEVERITIES:
            since, name, names = time.monotonic(), f"{kind} {severity}", iter(bench.ids)

            def change(
                pixels: Tensor, *_: Any, kind: str = kind, severity: int = severity, names: Any = names
            ) -> Tensor:
                ids = [next(names) for _ in pixels]
                return corrupt(pixels.cpu(), ids, kind, severity, bench.config.seed).to(bench.device)

            said = bench.over(name, bench.everything, change)
            bench.record(name, "corruption", bench.everything, said, since, corruption=kind, severity=severity)
        curve = [
            f"{c.accuracy(bench.labels):.1%}" for c in bench.conditions.values() if c.about.get("corruption") == kind
        ]
        bench.say(f"  {kind:<34} {', '.join(curve)} at severities 1 to 5")


def _stored(bench: Bench) -> None:
    """Exactly the 8-bit images that are kept."""
    since, parts = time.monotonic(), bench.adversarial.split(bench.batch_size)
    said = np.concatenate([bench.judge(part.to(bench.device).float() / 255) for part in parts])
    bench.record("stored", "stored", bench.everything, said, since, eps=bench.config.budgets[-1])
