"""Results of a stress test that cannot be right, or do not mean what they seem to.

The signs of gradient masking are those of Carlini et al. 2019 (arXiv:1902.06705) and Athalye et al. 2018
(arXiv:1802.00420): a defence that only hides its gradient looks robust to the attacks that need it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finesight.attacks.config import AttackConfig, written
from finesight.attacks.scores import Condition

SLACK = 0.005
"""Accuracies compared on the same images may differ by this share, or by one image, without an alarm."""

SQUARE_MORE, ENSEMBLE_MORE, STEPS_MORE, WITHSTANDS = 0.02, 0.05, 0.02, 0.1
DIFFERENT, MOVED = 0.02, 0.05
"""Predictions that may change, and probability that may move, by rounding and another device alone."""

Probabilities = NDArray[np.float64]


def found(
    conditions: Mapping[str, Condition],
    entries: Mapping[str, Any],
    labels: NDArray[np.int64],
    config: AttackConfig,
    facts: Mapping[str, Any],
    clean: tuple[Probabilities, Probabilities | None],
) -> list[str]:
    """Sentences, the gravest first. `clean`: class probabilities [N, C] of the clean images, here and elsewhere."""
    look = _Look(conditions, labels, config, facts)
    return [
        *_meaningless(entries["clean"]["accuracy"], labels),
        *_other_model(*clean, labels),
        *look.masking(),
        *look.noise(),
        *look.transfer(),
        *look.ensemble(),
        *look.steps(),
        *look.storing(),
    ]


def _meaningless(entry: Mapping[str, Any], labels: NDArray[np.int64]) -> Iterator[str]:
    share = np.bincount(labels).max() / len(labels)
    least = entry["value"] if entry["low"] is None else entry["low"]
    if least <= share:
        yield (
            f"Without any attack the model is right on {entry['value']:.1%}, not clearly more than always saying the "
            f"commonest class ({share:.1%}): robustness of such a model means nothing. Train it first."
        )


def _other_model(here: Probabilities, expected: Probabilities | None, labels: NDArray[np.int64]) -> Iterator[str]:
    if expected is None:
        yield "The run's own predictions of these images are not there, so the attacked model was not compared with it."
        return
    different = here.argmax(1) != expected.argmax(1)
    moved = float(np.abs(here - expected).sum(1).mean() / 2)
    if moved > MOVED or (different.mean() > DIFFERENT and different.sum() > 1):
        accuracies = [float((part.argmax(1) == labels).mean()) for part in (here, expected)]
        yield (
            f"The attacked model gives {int(different.sum())} of {len(labels)} clean images another class than the run "
            f"itself did ({accuracies[0]:.1%} right instead of {accuracies[1]:.1%}), and moves {moved:.1%} of the "
            "probability: it does not see what the run saw. Look for a normaliser applied twice, another resize, or "
            "other weights."
        )


class _Look:
    def __init__(
        self,
        conditions: Mapping[str, Condition],
        labels: NDArray[np.int64],
        config: AttackConfig,
        facts: Mapping[str, Any],
    ) -> None:
        self.conditions, self.labels, self.config, self.facts = conditions, labels, config, facts
        self.pgd = {c.about["eps"]: c for c in self.of("pgd")}

    def of(self, kind: str) -> list[Condition]:
        return [condition for condition in self.conditions.values() if condition.kind == kind]

    def accuracy(self, condition: Condition) -> float:
        return condition.accuracy(self.labels)

    def named(self, eps: float) -> str:
        return written(eps, self.config.norm)

    def masking(self) -> Iterator[str]:
        """What a hidden gradient looks like: more budget or more steps do not help, or nothing breaks the model."""
        for huge in self.of("huge"):
            if self.accuracy(huge) > WITHSTANDS:
                yield (
                    f"Gradient masking: even with a budget of {self.named(huge.about['eps'])}, which can turn any "
                    f"image grey, PGD leaves {self.accuracy(huge):.1%} right. The attack fails; trust none of the "
                    "accuracies under PGD, and use the ensemble (--auto)."
                )
        for name, alone in self.facts["alone"].items():
            eps = self.conditions[name].about["eps"]
            better = [c for e, c in self.pgd.items() if e < eps and self.accuracy(c) < alone - slack(len(self.labels))]
            if better:
                weakest = min(better, key=self.accuracy)
                yield (
                    f"Accuracy rises with the budget: PGD with eps {self.named(eps)} alone leaves {alone:.1%} right, "
                    f"up to {self.named(weakest.about['eps'])} {self.accuracy(weakest):.1%}. The larger attack is the "
                    "weaker one, a sign of gradient masking or of steps that are too long (--step, --iters)."
                )
        for single in self.of("fgsm"):
            eps = single.about["eps"]
            many = self.accuracy(self.pgd[eps])
            if self.accuracy(single) < many - slack(len(self.labels)):
                yield (
                    f"One step breaks more than {self.config.iters}: at eps {self.named(eps)} FGSM leaves "
                    f"{self.accuracy(single):.1%} right, PGD {many:.1%}. That is a sign of gradient masking, or of "
                    "steps that are too long (--step)."
                )

    def noise(self) -> Iterator[str]:
        for random in self.of("noise"):
            white = self.pgd[random.about["eps"]]
            if self.accuracy(random) < self.accuracy(white) - slack(len(self.labels)):
                yield (
                    f"Random noise breaks more than PGD: at eps {self.named(random.about['eps'])} noise leaves "
                    f"{self.accuracy(random):.1%} right, PGD {self.accuracy(white):.1%}. The attack does not work: its "
                    "gradient is hidden, or its steps are too few or too short (--iters, --step)."
                )

    def transfer(self) -> Iterator[str]:
        for moved in self.of("transfer"):
            own = self.facts["surrogate"]
            if own["clean"] < 0.5:
                yield (
                    f"The surrogate itself is right on {own['clean']:.1%} of the clean images: what transfers from it "
                    "says little. Check its weights, its normalisation and the names of its classes."
                )
            elif own["attacked"] > own["clean"] / 2:
                yield (
                    f"The surrogate withstands its own attack: {own['attacked']:.1%} right under it, "
                    f"{own['clean']:.1%} without. What hardly fools the surrogate says little of what transfers. Take "
                    "more steps (--iters), a larger budget (--eps) or another surrogate."
                )
            white = self.pgd[moved.about["eps"]]
            if self.accuracy(moved) < self.accuracy(white) - slack(len(self.labels)):
                yield (
                    f"Gradient masking: images made on the surrogate break the model more ({self.accuracy(moved):.1%} "
                    f"right) than the attack on the model itself ({self.accuracy(white):.1%}), which knows more."
                )

    def ensemble(self) -> Iterator[str]:
        stages = {c.about["stage"]: c for c in self.of("auto")}
        if not stages:
            return
        last = next(c for c in stages.values() if c.about["last"])
        before = [c for stage, c in stages.items() if stage != "square"]
        if "square" in stages and before:
            gain = min(map(self.accuracy, before)) - self.accuracy(stages["square"])
            if gain > SQUARE_MORE:
                yield (
                    f"Gradient masking: Square, which sees no gradient, breaks {gain:.1%} of the images that the "
                    "gradient attacks of the ensemble did not."
                )
        white = self.pgd.get(last.about["eps"])
        if white is not None:
            same = white.correct(self.labels)[last.rows].mean()
            if same - self.accuracy(last) > ENSEMBLE_MORE:
                yield (
                    f"PGD overestimates this model: at eps {self.named(last.about['eps'])} the ensemble leaves "
                    f"{self.accuracy(last):.1%} right, PGD {same:.1%} of the same images. Quote `worst`."
                )
            elif self.accuracy(last) - same > max(SQUARE_MORE, slack(len(last.rows))):
                yield (
                    f"The ensemble is the weaker attack: at eps {self.named(last.about['eps'])} it leaves "
                    f"{self.accuracy(last):.1%} right, PGD {same:.1%} of the same images. Give it more with "
                    "--auto_iters and --queries, and quote the worst of both."
                )

    def steps(self) -> Iterator[str]:
        curve = self.of("steps")
        values = [self.accuracy(condition) for condition in curve]
        counts = [condition.about["iters"] for condition in curve]
        for place in range(1, len(curve)):
            if values[place] > min(values[:place]) + max(STEPS_MORE, slack(len(curve[place].rows))):
                yield (
                    f"Accuracy rises with the steps: {counts[place]} steps leave {values[place]:.1%} right, fewer "
                    f"steps {min(values[:place]):.1%}. More steps cannot be weaker unless the gradient misleads."
                )
                break
        used = [value for count, value in zip(counts, values, strict=True) if count <= self.config.iters]
        if curve and not used and curve[0].about["eps"] in self.pgd:
            # Only larger numbers were tried: against PGD as it was used, on the same images.
            white = self.pgd[curve[0].about["eps"]]
            used = [float(white.correct(self.labels)[curve[0].rows].mean())]
        if used and min(used) - min(values) > STEPS_MORE:
            yield (
                f"{self.config.iters} steps are too few: {counts[-1]} steps leave {min(values):.1%} right instead of "
                f"{min(used):.1%}. Give more with --iters."
            )

    def storing(self) -> Iterator[str]:
        eps, (stored,) = self.config.budgets[-1], self.of("stored")
        loss = self.accuracy(stored) - self.accuracy(self.pgd[eps])
        if loss > 0.05:
            yield (
                f"Rounding to 8 bits undoes the attack: {self.accuracy(stored):.1%} of the stored images are right, "
                f"before rounding {self.accuracy(self.pgd[eps]):.1%}. "
                + ("A budget below 1/255 leaves nothing to store." if self.config.norm == "linf" and eps < 1 / 255 else
                   "The stored set is a weaker test than the attack.")
            )  # fmt: skip


def slack(images: int) -> float:
    """How far two accuracies on the same images may lie apart in the wrong order without an alarm."""
    return max(SLACK, 1.5 / images)
