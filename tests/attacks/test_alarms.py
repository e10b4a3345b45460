"""Every alarm of a stress test: raised where it should be, silent one step before."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finesight.attacks import Normalized, alarms
from finesight.attacks.config import AttackConfig
from finesight.attacks.protocol import measure
from finesight.attacks.scores import Condition, interval_entries
from tests.attacks.digits import held_out, trained

IMAGES, CLASSES, LARGEST = 200, 4, 8 / 255
LABELS = np.arange(IMAGES) % CLASSES
SURROGATE = {"clean": 0.9, "attacked": 0.0}


def condition(kind: str, share: float, count: int = IMAGES, **about: Any) -> Condition:
    """Right on the first `share` of each hundred of the first `count` images."""
    said = LABELS[:count].copy()
    wrong = np.arange(count) % 100 >= round(share * 100)
    said[wrong] = (said[wrong] + 1) % CLASSES
    return Condition(kind, np.arange(count), said, 0.1, about)


def healthy() -> dict[str, Condition]:
    budgets = {1 / 255: (0.9, 0.88), LARGEST: (0.4, 0.2)}
    found = {"clean": condition("clean", 0.95), "huge": condition("huge", 0.0, 100, eps=0.5)}
    found["noise"] = condition("noise", 0.9, eps=LARGEST)
    for eps, (single, many) in budgets.items():
        found[f"fgsm {eps}"] = condition("fgsm", single, eps=eps)
        found[f"pgd {eps}"] = condition("pgd", many, eps=eps, iters=20)
    for count, share in ((1, 0.5), (20, 0.3), (50, 0.29)):
        found[f"steps {count}"] = condition("steps", share, 100, eps=LARGEST, iters=count)
    found["transfer"] = condition("transfer", 0.7, eps=LARGEST)
    for stage, share in (("apgd-ce", 0.2), ("apgd-t", 0.18), ("square", 0.17)):
        found[stage] = condition("auto", share, 100, eps=LARGEST, stage=stage, last=stage == "square")
    found["stored"] = condition("stored", 0.21, eps=LARGEST)
    return found


def raised(
    conditions: dict[str, Condition],
    alone: float = 0.2,
    expected: Any = "same",
    surrogate: Any = SURROGATE,
    **options: Any,
) -> list[str]:
    config = AttackConfig(**{"eps": ["1/255", "8/255"], **options})
    facts = {"alone": {f"pgd {LARGEST}": alone}, "surrogate": surrogate}
    entries = interval_entries(conditions, LABELS, None, resamples=200, seed=0, level=0.95)
    clean = conditions["clean"].predictions
    said = clean if isinstance(expected, str) else expected
    return alarms.found(
        conditions,
        entries,
        LABELS,
        config,
        facts,
        (np.eye(CLASSES)[clean], None if expected is None else np.eye(CLASSES)[said]),
    )


def test_a_healthy_result_raises_none() -> None:
    assert raised(healthy()) == []


@pytest.mark.parametrize(
    ("name", "made", "words"),
    [
        ("clean", condition("clean", 0.28), "robustness of such a model means nothing"),
        ("huge", condition("huge", 0.2, 100, eps=0.5), "even with a budget of 127.5/255"),
        (f"fgsm {LARGEST}", condition("fgsm", 0.15, eps=LARGEST), "One step breaks more than 20"),
        ("transfer", condition("transfer", 0.15, eps=LARGEST), "images made on the surrogate break the model more"),
        (
            "square",
            condition("auto", 0.1, 100, eps=LARGEST, stage="square", last=True),
            "Square, which sees no gradient",
        ),
        ("steps 20", condition("steps", 0.55, 100, eps=LARGEST, iters=20), "Accuracy rises with the steps"),
        ("steps 50", condition("steps", 0.2, 100, eps=LARGEST, iters=50), "20 steps are too few"),
        ("stored", condition("stored", 0.5, eps=LARGEST), "Rounding to 8 bits undoes the attack"),
        ("noise", condition("noise", 0.15, eps=LARGEST), "Random noise breaks more than PGD"),
        (
            "square",
            condition("auto", 0.24, 100, eps=LARGEST, stage="square", last=True),
            "The ensemble is the weaker attack",
        ),
    ],
)
def test_each_alarm(name: str, made: Condition, words: str) -> None:
    found = raised({**healthy(), name: made})
    assert [alarm for alarm in found if words in alarm], found


def test_accuracy_that_rises_with_the_budget() -> None:
    assert raised(healthy(), alone=0.88) == []
    (found,) = raised(healthy(), alone=0.92)
    assert "PGD with eps 8/255 alone leaves 92.0% right, up to 1/255 88.0%" in found


def test_an_ensemble_that_breaks_much_more_than_pgd() -> None:
    weak = {**healthy(), f"pgd {LARGEST}": condition("pgd", 0.4, eps=LARGEST, iters=20)}
    found = raised(weak, alone=0.4)
    assert any("PGD overestimates this model" in alarm and "17.0% right, PGD" in alarm for alarm in found)


def test_a_surrogate_that_is_right_on_nothing() -> None:
    (found,) = raised(healthy(), surrogate={"clean": 0.1, "attacked": 0.0})
    assert "The surrogate itself is right on 10.0%" in found


def test_a_surrogate_that_withstands_its_own_attack() -> None:
    (found,) = raised(healthy(), surrogate={"clean": 0.9, "attacked": 0.6})
    assert "The surrogate withstands its own attack: 60.0% right under it, 90.0% without" in found
    assert raised(healthy(), surrogate={"clean": 0.9, "attacked": 0.4}) == []


def test_steps_are_too_few_where_only_larger_numbers_were_tried() -> None:
    more = {name: c for name, c in healthy().items() if not name.startswith("steps")}
    near, far = (condition("steps", share, 100, eps=LARGEST, iters=50) for share in (0.19, 0.1))
    assert raised({**more, "steps 50": near}) == []
    (found,) = raised({**more, "steps 50": far})
    assert "20 steps are too few: 50 steps leave 10.0% right instead of 20.0%" in found


def test_another_model_than_the_run_saw() -> None:
    other = healthy()["clean"].predictions.copy()
    other[:4] = (other[:4] + 1) % CLASSES  # 2 %: rounding may do that
    assert raised(healthy(), expected=other) == []
    other[:8] = (LABELS[:8] + 1) % CLASSES
    (found,) = raised(healthy(), expected=other)
    assert "8 of 200 clean images another class" in found
    assert "normaliser applied twice" in found
    (missing,) = raised(healthy(), expected=None)
    assert "not there" in missing


def test_one_image_more_or_less_is_no_alarm() -> None:
    near = healthy()[f"pgd {LARGEST}"].predictions.copy()
    near[0] = (near[0] + 1) % CLASSES
    moved = Condition("transfer", np.arange(IMAGES), near, 0.1, {"eps": LARGEST})
    assert raised({**healthy(), "transfer": moved}) == []


# ---- models with the faults themselves ------------------------------------------------------


def attacked(model: nn.Module, expected: nn.Module | None = None, **options: Any) -> list[str]:
    images, labels = held_out(100)
    pixels = (images * 255).round().to(torch.uint8)
    config = AttackConfig(
        **{
            "eps": ["8/255", "24/255"],
            "iters": 5,
            "steps": [],
            "auto": 0,
            "corruptions": ["none"],
            "bf16": "off",
            **options,
        }
    )
    with torch.no_grad():
        said = (expected or model)(pixels / 255).double().softmax(1).numpy()
    names = [str(row) for row in range(100)]
    return measure(model, pixels, labels.numpy(), names, None, config, resamples=100, expected=said).alarms


class Saturated(nn.Module):
    """The same decisions with logits so large that the cross-entropy has no gradient left in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = trained()

    def forward(self, images: Tensor) -> Tensor:
        return 1e5 * self.inner(images)


def test_a_model_that_hides_its_gradient_is_found_out() -> None:
    found = attacked(Saturated(), auto=40, auto_iters=20, queries=100, auto_eps="24/255")
    assert any("Gradient masking: even with a budget of 127.5/255" in alarm for alarm in found)
    assert any("PGD overestimates" in alarm for alarm in found)
    transferred = [alarm for alarm in found if "surrogate" in alarm]
    assert transferred == []


def test_a_surrogate_breaks_what_pgd_does_not() -> None:
    images, labels = held_out(100)
    pixels, names = (images * 255).round().to(torch.uint8), [str(row) for row in range(100)]
    config = AttackConfig(eps=["24/255"], iters=5, steps=[], auto=0, corruptions=["none"], bf16="off")
    found = measure(Saturated(), pixels, labels.numpy(), names, None, config, resamples=100, surrogate=trained())
    assert any("images made on the surrogate break the model more" in alarm for alarm in found.alarms)


def test_a_normaliser_applied_twice_is_found_out() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = trained()

        def forward(self, images: Tensor) -> Tensor:
            return self.inner((images - 0.3) / 0.4)

    found = attacked(Twice(), trained())
    assert any("normaliser applied twice" in alarm for alarm in found)
    assert not any("normaliser applied twice" in alarm for alarm in attacked(trained(), trained()))


def test_a_model_that_knows_nothing_is_not_called_robust() -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.eye(10)[3].expand(len(images), 10) + 0 * images.flatten(1).sum(1, keepdim=True)

    found = attacked(Normalized(Constant(), [0.3], [0.4]))
    assert "robustness of such a model means nothing" in found[0]
    assert any("Gradient masking" in alarm for alarm in found)
