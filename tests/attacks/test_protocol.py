"""The stress test on tensors: the worst-of rule, what is stored, intervals, draws, and the options."""

import functools
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finesight import config as configuration
from finesight.attacks import CORRUPTIONS, Normalized, auto_attack, corrupt, fgsm, prepared
from finesight.attacks.bench import Bench
from finesight.attacks.config import AttackConfig, length, usage
from finesight.attacks.protocol import Measured, chosen_corruptions, measure
from finesight.errors import ConfigError, DataError, ModelError
from finesight.metrics import bootstrap
from finesight.metrics.means import MeanMetric
from tests.attacks.digits import Net, held_out, trained

COUNT = 120
QUICK = {
    "eps": ["8/255", "16/255", "40/255"], "iters": 5, "steps": [1, 4], "steps_images": 40, "auto": 30,
    "auto_iters": 10, "queries": 30, "corruptions": ["brightness", "gaussian_noise"], "bf16": "off",
}  # fmt: skip


@functools.cache
def pixels() -> tuple[Tensor, np.ndarray]:
    """uint8 [120, 1, 8, 8] and labels."""
    images, labels = held_out(COUNT)
    return (images * 255).round().to(torch.uint8), labels.numpy()


def options(**changed: object) -> AttackConfig:
    return AttackConfig(**{**QUICK, **changed})  # type: ignore[arg-type]


def run(config: AttackConfig, model: nn.Module | None = None, **more: object) -> Measured:
    images, labels = pixels()
    names = [f"digit-{row}" for row in range(len(labels))]
    chosen = trained() if model is None else model
    return measure(chosen, images, labels, names, None, config, resamples=100, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found() -> Measured:
    return run(options(), expected=probabilities(trained()))


def probabilities(model: nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(pixels()[0] / 255).softmax(1).double().numpy()


def right(found: Measured, name: str) -> np.ndarray:
    condition = found.conditions[name]
    return condition.predictions == pixels()[1][condition.rows]


# ---- the worst-of rule ----------------------------------------------------------------------


def test_what_a_smaller_budget_broke_stays_broken(found: Measured) -> None:
    curve = [right(found, f"pgd eps {eps}") for eps in ("8/255", "16/255", "40/255")]
    shares = [part.mean() for part in (right(found, "clean"), *curve)]
    assert shares == sorted(shares, reverse=True)
    assert 0.05 < shares[-1] < shares[1] < shares[0]
    for smaller, larger in itertools.pairwise(curve):
        assert not (larger & ~smaller).any()
    assert not (curve[0] & ~right(found, "clean")).any()


def test_restarts_only_ever_break_more() -> None:
    few = options(eps=["12/255", "60/255"], iters=1, step="30/255", auto=0, corruptions=["none"], steps=[])
    once, often = run(few), run(few.model_copy(update={"restarts": 4}))
    for name in ("pgd eps 12/255", "pgd eps 60/255"):
        assert not (right(often, name) & ~right(once, name)).any()
    assert right(often, "pgd eps 60/255").sum() < right(once, "pgd eps 60/255").sum()


def test_fgsm_is_that_of_the_package_and_leaves_wrong_images_wrong(found: Measured) -> None:
    images, labels = pixels()
    model = prepared(trained())
    attacked = fgsm(model, images / 255, torch.from_numpy(labels), 16 / 255)
    with torch.no_grad():
        expected = trained()(attacked).argmax(1).numpy()
    clean = probabilities(trained()).argmax(1)
    assert (found.conditions["fgsm eps 16/255"].predictions == np.where(clean == labels, expected, clean)).all()


# ---- what is stored -------------------------------------------------------------------------


def test_the_stored_images_are_8_bit_within_the_budget_and_judged_as_they_are(found: Measured) -> None:
    images, labels = pixels()
    assert found.adversarial.dtype == torch.uint8
    assert (found.adversarial.int() - images.int()).abs().max() == 40
    with torch.no_grad():
        expected = trained()(found.adversarial / 255).argmax(1).numpy()
    assert (found.conditions["stored"].predictions == expected).all()
    broken = ~right(found, "pgd eps 40/255")
    assert (expected[broken] != labels[broken]).mean() > 0.95  # rounding moved back next to none


def test_what_only_a_smaller_budget_broke_stays_broken_is_stored_from_there_and_raises_an_alarm() -> None:

    class Fragile(nn.Module):
        """Right, unless the largest change of a pixel is exactly 8/255, which more budget passes by."""

        def __init__(self, images: Tensor, labels: np.ndarray) -> None:
            super().__init__()
            self.images, self.truth = images / 255, torch.from_numpy(labels)

        def forward(self, given: Tensor) -> Tensor:
            nearest = torch.cdist(given.detach().flatten(1), self.images.flatten(1)).argmin(1)
            moved = given - self.images[nearest]
            broken = (moved.detach().abs().amax((1, 2, 3)) - 8 / 255).abs() < 1e-4
            logits = nn.functional.one_hot(self.truth[nearest], 10).float()
            logits = torch.where(broken[:, None], logits.roll(1, 1), logits)
            return logits - 1e-3 * moved.flatten(1).sum(1, keepdim=True) * logits

    images, labels = pixels()
    images = images.clamp(20, 235)
    model = Fragile(images, labels)
    config = options(eps=["8/255", "9/255"], steps=[], auto=0, corruptions=["none"], step="8/255", iters=1)
    names = [str(row) for row in range(len(labels))]
    measured = measure(model, images, labels, names, None, config, resamples=100)
    broken = ~right(measured, "pgd eps 8/255")
    assert measured.facts["alone"]["pgd eps 9/255"] > right(measured, "pgd eps 9/255").mean()
    assert broken.sum() > 20
    assert any("Accuracy rises with the budget" in alarm for alarm in measured.alarms)
    assert (~right(measured, "pgd eps 9/255"))[broken].all()
    assert (measured.adversarial[broken].int() - images[broken].int()).abs().amax((1, 2, 3)).eq(8).all()


# ---- other conditions -----------------------------------------------------------------------


def test_every_condition_is_there_and_on_the_images_it_should_be(found: Measured) -> None:
    sizes = {name: len(condition.rows) for name, condition in found.conditions.items()}
    assert sizes["check eps 127.5/255"] == 100
    assert sizes["auto eps 40/255"] == sizes["auto eps 40/255, up to apgd-ce"] == 30
    few = [name for name in sizes if "step" in name]
    assert len(few) == 2
    assert {sizes[name] for name in few} == {40}
    assert {
        size
        for name, size in sizes.items()
        if name not in few and "127.5" not in name and not name.startswith(("auto", "worst"))
    } == {COUNT}
    assert sum(name.startswith(("brightness", "gaussian_noise")) for name in sizes) == 10
    assert right(found, "check eps 127.5/255").mean() == 0
    both = right(found, "auto eps 40/255") & right(found, "pgd eps 40/255")[:30]
    assert (right(found, "worst eps 40/255") == both).all()


def test_the_stages_of_the_ensemble_break_more_and_more(found: Measured) -> None:
    stages = [right(found, f"auto eps 40/255{part}") for part in (", up to apgd-ce", ", up to apgd-t", "")]
    for before, after in itertools.pairwise(stages):
        assert not (after & ~before).any()
    assert not (stages[0] & ~right(found, "clean")[:30]).any()
    assert stages[-1].mean() <= right(found, "pgd eps 40/255")[:30].mean() + 0.05


def test_the_ensemble_agrees_with_auto_attack() -> None:
    """The same stages on the same images; only the random starts differ."""
    config = options(eps=["24/255"], auto=COUNT, auto_iters=20, queries=150, corruptions=["none"], steps=[])
    measured, (images, labels) = run(config), pixels()
    peer = auto_attack(trained(), images / 255, torch.from_numpy(labels), 24 / 255, iters=20, queries=150).accuracy()
    for stage, part in (("apgd-ce", ", up to apgd-ce"), ("apgd-t", ", up to apgd-t"), ("square", "")):
        assert abs(right(measured, f"auto eps 24/255{part}").mean() - peer[stage]) <= 2.5 / COUNT


def test_an_image_broken_only_in_the_attacks_precision_is_attacked_in_that_of_the_verdicts() -> None:
    images, labels = pixels()

    class Surer(nn.Module):
        """In bf16 surer of the true class, so that what only just breaks the float32 one does not break it."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = trained()

        def forward(self, given: Tensor) -> Tensor:
            coarse = torch.is_autocast_enabled("cpu")
            nearest = torch.cdist(given.detach().flatten(1), images.flatten(1) / 255).argmin(1)
            with torch.autocast("cpu", enabled=False):
                return self.inner(given.float()) + coarse * nn.functional.one_hot(torch.from_numpy(labels)[nearest], 10)

    config = options(eps=["40/255"], auto=COUNT, auto_iters=20, queries=100, steps=[], corruptions=["none"])
    measured = run(config, Surer(), bf16=True)
    found = auto_attack(Surer(), images / 255, torch.from_numpy(labels), 40 / 255, iters=20, queries=100)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        transferred = (Surer()(found.images).argmax(1).numpy() == labels).mean()
    assert right(measured, "auto eps 40/255").mean() < transferred - 0.02


def test_corruptions_are_drawn_by_id(found: Measured) -> None:
    images, labels = pixels()
    names = [f"digit-{row}" for row in range(COUNT)]
    with torch.no_grad():
        expected = trained()(corrupt(images / 255, names, "gaussian_noise", 5, 0)).argmax(1).numpy()
    assert (found.conditions["gaussian_noise 5"].predictions == expected).all()
    assert (labels == pixels()[1]).all()


def test_a_surrogate_that_is_the_model_itself_transfers_what_pgd_does() -> None:
    config = options(eps=["24/255"], auto=0, corruptions=["none"], steps=[])
    measured = run(config, surrogate=trained())
    assert measured.facts["surrogate"]["clean"] == right(measured, "clean").mean()
    assert measured.facts["surrogate"]["attacked"] == right(measured, "transfer eps 24/255").mean()
    difference = right(measured, "transfer eps 24/255").mean() - measured.facts["alone"]["pgd eps 24/255"]
    assert abs(difference) < 0.05  # other random starts


# ---- numbers --------------------------------------------------------------------------------


def test_intervals_are_those_of_the_bootstrap_and_draw_whole_groups() -> None:
    images, labels = pixels()
    config = options(eps=["16/255"], auto=0, corruptions=["jpeg"], steps=[])
    names, groups = [str(row) for row in range(COUNT)], [f"writer {row // 30}" for row in range(COUNT)]
    found = measure(trained(), images, labels, names, groups, config, resamples=200, level=0.9)
    table = MeanMetric(["x"], "x").statistics(right(found, "pgd eps 16/255")[:, None])
    how = {"resamples": 200, "seed": 0, "level": 0.9}
    grouped = bootstrap.intervals(MeanMetric(["x"], "x"), table, groups=groups, **how)["x"]  # type: ignore[arg-type]
    assert found.entries["pgd eps 16/255"]["accuracy"] == grouped
    single = bootstrap.intervals(MeanMetric(["x"], "x"), table, **how)["x"]  # type: ignore[arg-type]
    assert (single["low"], single["high"]) != (grouped["low"], grouped["high"])


def test_the_mean_over_corruptions_is_the_plain_mean(found: Measured) -> None:
    values = [
        right(found, f"{kind} {level}").mean() for kind in ("brightness", "gaussian_noise") for level in range(1, 6)
    ]
    means = found.corruption
    assert means["accuracy"]["value"] == pytest.approx(np.mean(values))
    assert means["mean_corruption_error"]["value"] == pytest.approx(1 - np.mean(values))
    assert means["relative"]["value"] == pytest.approx(right(found, "clean").mean() - np.mean(values))
    assert means["by_kind"]["gaussian_noise"]["value"] == pytest.approx(np.mean(values[5:]))
    assert means["by_severity"]["5"]["value"] == pytest.approx(np.mean([values[4], values[9]]))
    assert means["accuracy"]["low"] < means["accuracy"]["value"] < means["accuracy"]["high"]


def test_the_seed_alone_decides(found: Measured) -> None:
    again, other = run(options(), expected=probabilities(trained())), run(options(seed=1))
    assert torch.equal(again.adversarial, found.adversarial)
    assert again.entries == found.entries
    assert again.corruption == found.corruption
    assert not torch.equal(other.adversarial, found.adversarial)


def test_large_images_are_attacked_a_few_at_a_time() -> None:
    def chosen(size: int, **given: int) -> int:
        images = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        return Bench(nn.Identity(), images, np.zeros(1, dtype=np.int64), ["a"], AttackConfig(**given)).batch_size  # type: ignore[arg-type]

    assert [chosen(size) for size in (32, 64, 224, 256, 1024)] == [200, 200, 19, 15, 8]
    assert chosen(1024, batch_size=30) == 30


def test_steps_in_bf16_break_as_much_and_verdicts_stay_in_float32(found: Measured) -> None:
    coarse = run(options(bf16="on", auto=0, corruptions=["none"]))
    assert coarse.facts["steps_in_bf16"]
    for eps in ("8/255", "16/255", "40/255"):
        assert abs(right(coarse, f"pgd eps {eps}").mean() - right(found, f"pgd eps {eps}").mean()) < 0.03
    with torch.no_grad():
        expected = trained()(coarse.adversarial / 255).argmax(1).numpy()
    assert (coarse.conditions["stored"].predictions == expected).all()


def test_verdicts_in_bf16_are_those_of_the_model_in_bf16() -> None:
    measured = run(options(corruptions=["none"], steps=[]), bf16=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = trained()(measured.adversarial / 255).argmax(1).numpy()
    assert (measured.conditions["stored"].predictions == expected).all()
    stages = [right(measured, f"auto eps 40/255{part}") for part in (", up to apgd-ce", ", up to apgd-t", "")]
    assert not (stages[-1] & ~right(measured, "clean")[:30]).any()
    assert stages[-1].mean() <= stages[0].mean() <= right(measured, "clean")[:30].mean()


def test_a_healthy_model_raises_no_alarm(found: Measured) -> None:
    assert [alarm for alarm in found.alarms if "overestimates" not in alarm and "too few" not in alarm] == []


def test_the_model_comes_back_as_it_was() -> None:
    model = Normalized(Net(), [0.3], [0.4]).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(options(eps=["8/255"], auto=4, corruptions=["none"], steps=[]), model)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---- what is refused ------------------------------------------------------------------------


def test_a_model_that_is_not_its_copy_is_refused() -> None:
    """Noise in the forward pass: with no budget at all the logits are others."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = trained()

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images + 0.3 * torch.rand_like(images))

    with pytest.raises(ModelError, match="eps 0 moves the logits"):
        run(options(), Noisy())


def test_images_and_labels_that_do_not_fit_are_refused() -> None:
    images, labels = pixels()
    for given, truth in ((images / 255, labels), (images, labels[:5]), (images[0], labels)):
        with pytest.raises(DataError, match="uint8"):
            measure(trained(), given, truth, [str(row) for row in range(COUNT)], None, options())


def test_budgets_are_fractions_or_numbers_and_come_in_order() -> None:
    read = configuration.build(AttackConfig, configuration.parse_flags(["--eps", "8/255,0.01,0.5/255"], AttackConfig))
    assert read.budgets == [0.5 / 255, 0.01, 8 / 255]
    assert AttackConfig().budgets == [0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255]
    assert AttackConfig(eps=["8/255", 8.0001 / 255]).budgets == [8.0001 / 255]
    assert AttackConfig(norm="l2").budgets == [0.25, 0.5, 1, 2]
    assert AttackConfig(eps=["1/255"]).step_of(8 / 255, 20) == pytest.approx(1 / 255)
    assert AttackConfig(auto_eps="4/255").ensemble_budget == length(4 / 255)
    assert configuration.build(AttackConfig, AttackConfig().model_dump()) == AttackConfig()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eps", "8"], "write 8/255"),
        (["--eps", "8/0"], "no length"),
        (["--eps", "nan"], "finite number"),
        (["--eps", "0"], "without an attack is measured anyway"),
        (["--auto_eps", "2"], "wider than the range"),
        (["--steps", "5,0"], "1 or more"),
        (["--norm", "l1"], "linf|l2"),
        (["--iter", "5"], "did you mean 'iters'"),
        (["--step", "-1/255"], "no length above 0"),
    ],
)
def test_impossible_options_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configuration.build(AttackConfig, configuration.parse_flags(flags, AttackConfig))
    assert message in str(caught.value)


def test_corruptions_are_all_none_or_known_names() -> None:
    assert chosen_corruptions(AttackConfig()) == CORRUPTIONS
    assert chosen_corruptions(AttackConfig(corruptions=["none"])) == ()
    assert chosen_corruptions(AttackConfig(corruptions=["jpeg", "jpeg"])) == ("jpeg",)
    with pytest.raises(ConfigError, match="'fog' is unknown"):
        chosen_corruptions(AttackConfig(corruptions=["fog"]))
    assert all(kind in usage() for kind in CORRUPTIONS)
