"""Figures and alarms of domain adaptation: every method has its own, and the numbers in them are right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finesight.report import domain_charts, domain_grids, domain_measures, domains, figures, html, inference, style
from finesight.report.domain_alarms import from_history
from finesight.report.oracle import oracle
from tests.report import domain_tasks
from tests.report.test_figures import image, inside

ALWAYS = {"accuracy", "confusion", "reliability", "mistakes", "samples", "classes", "domains", "features", "adaptation"}
OWN = {
    "pixelda": {"losses", "translation", "diversity"},
    "dann": {"losses"},
    "source-only": {"curves"},
    "target-only": {"curves"},
}
ADVERSARIAL = {"discrimination": 1.0, "fooling": 2.0, "told_apart": 0.7, "generated_accuracy": 0.5}


def run(**options: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    task, data = domain_tasks.prepared(**options)
    return (task, *domain_tasks.measured(task, data))


@pytest.fixture(scope="module")
def pixelda() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    return run(method="pixelda")


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("target")
    noise = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return run(method="dann", **{"data.backgrounds": None, "data.target": str(folder)})


@pytest.mark.parametrize("method", ["pixelda", "dann", "source-only", "target-only"])
def test_every_method_has_its_figures_and_each_has_a_place(
    method: str, pixelda: tuple[Any, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    task, predictions, metrics = pixelda if method == "pixelda" else run(method=method)
    rows = domain_tasks.history([0.3, 0.5], 1, **ADVERSARIAL)
    drawn = domains.figures(task, predictions, rows, metrics)
    assert set(drawn) == ALWAYS | OWN[method]
    assert set(drawn) <= set(html.FIGURE_ORDER)
    assert all(title and caption for _, title, caption in drawn.values())
    for name in {"domains", "features", "adaptation", "losses", "translation", "diversity"} & set(drawn):
        assert inside(drawn[name][0]), name
    assert "epoch 2 (50.0 %)" in drawn["adaptation"][2]
    figures.save({"domains": drawn["domains"]}, tmp_path)
    assert '"images"' in (tmp_path / "figures.json").read_text()


def test_the_figures_of_one_run_have_the_same_numbers_twice_and_change_no_module(
    pixelda: tuple[Any, dict[str, Any], dict[str, Any]],
) -> None:
    task, predictions, metrics = pixelda
    for module in task.modules.values():
        module.train()
    before = {name: tensor.clone() for name, tensor in task.generator.state_dict().items()}
    rows = domain_tasks.history([0.3], 1)
    first, second = (
        {name: caption for name, (_, _, caption) in domains.figures(task, predictions, rows, metrics).items()}
        for _ in range(2)
    )
    assert first == second
    assert all(module.training for module in task.modules.values())
    assert all(torch.equal(before[name], tensor) for name, tensor in task.generator.state_dict().items())


def test_a_target_without_labels_is_said_to_be_unknown_in_figures_and_alarms(
    unlabelled: tuple[Any, dict[str, Any], dict[str, Any]],
) -> None:
    task, predictions, metrics = unlabelled
    drawn = domains.figures(task, predictions, domain_tasks.history(None, 1), metrics)
    assert set(drawn) == ALWAYS | OWN["dann"]
    assert drawn["accuracy"][2].startswith("Source test images, because the target has no labels")
    assert "40 images without labels" in drawn["classes"][2]
    assert len(drawn["classes"][0].axes) == 3
    assert "not known" in drawn["adaptation"][2]
    assert any("accuracy on the target is unknown" in text for text in domains.alarms(task, metrics, []))


# ---- numbers ----------------------------------------------------------------------------------


def test_distance_is_the_mean_over_pairs() -> None:
    # Pairs differ by 1, 1 and 0 everywhere.
    assert domain_measures.distance([np.zeros((2, 2)), np.zeros((2, 2)), np.ones((2, 2))]) == pytest.approx(2 / 3)
    assert domain_measures.distance([np.zeros((2, 2)), [[0.5, 0], [0, 0]]]) == pytest.approx(0.25)
    assert domain_measures.distance(np.zeros((1, 4))) is None


def test_diversity_is_zero_where_the_generator_ignores_its_noise(
    pixelda: tuple[Any, dict[str, Any], dict[str, Any]],
) -> None:
    task, _, metrics = pixelda
    judged = inference.probabilities(task, task.held_out("judged").columns["image"])
    kept = {name: tensor.clone() for name, tensor in task.generator.state_dict().items()}
    try:
        with torch.no_grad():
            task.generator.spread.weight.zero_()
        found = domain_measures.diversity(task, judged)
        assert found.mean == 0
        assert any("ignores its noise" in text for text in domains.alarms(task, metrics, []))
        with torch.no_grad():
            task.generator.spread.weight.normal_(std=3)
            task.generator.first.weight.normal_(std=1)
            task.generator.last.weight.normal_(std=1)
        assert domain_measures.diversity(task, judged).mean > 0.01
        assert not any("ignores its noise" in text for text in domains.alarms(task, metrics, []))
    finally:
        task.generator.load_state_dict(kept)


def test_the_nearest_image_is_found_across_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), dtype=np.uint8))
    monkeypatch.setattr(domain_measures, "CHUNK", 7 * 48)
    wanted = [49, 3]
    rows, distances = domain_measures.nearest(pool[wanted].float() / 255, pool, 3)
    assert rows[:, 0].tolist() == wanted
    assert distances[:, 0] == pytest.approx(0, abs=1e-3)
    flat = pool.flatten(1).numpy() / 255
    exact = np.sqrt(((flat[wanted][:, None] - flat) ** 2).mean(2))
    assert distances == pytest.approx(np.sort(exact, 1)[:, :3], abs=1e-3)
    assert domain_measures.nearest(pool[:1].float(), pool[:2], 3)[0].shape == (1, 2)


def test_domains_that_differ_are_told_apart_and_equal_ones_are_not() -> None:
    points = np.random.default_rng(0).normal(size=(400, 5))
    of_target = np.arange(400) % 2 == 1
    same = domain_measures.separability(points, of_target, 0)
    assert same is not None
    assert abs(same - 0.5) < 0.1
    assert domain_measures.separability(points + 10 * of_target[:, None], of_target, 0) == 1.0
    assert domain_measures.separability(points[:12], of_target[:12], 0) is None


def test_penultimate_features_are_what_the_last_layer_multiplies(
    pixelda: tuple[Any, dict[str, Any], dict[str, Any]],
) -> None:
    task, predictions, _ = pixelda
    features = torch.from_numpy(inference.penultimate(task, task.pixels["test"][:9]))
    expected = task.model.head[-1](features).softmax(1).detach().numpy()
    assert predictions["test"][:9] == pytest.approx(expected, abs=1e-5)


# ---- the oracle and alarms --------------------------------------------------------------------


def test_the_oracle_picks_the_best_epoch_and_the_kept_one_of_equals() -> None:
    found = oracle(domain_tasks.history([0.5, 0.9, 0.7, 0.9], 3), 3)
    assert found is not None
    assert (found.kept, found.best) == (3, 2)
    assert found.gap == pytest.approx(0.2)
    same = oracle(domain_tasks.history([0.9, 0.5, 0.9], 3), 3)
    assert same is not None
    assert (same.best, same.gap) == (3, 0)
    assert oracle(domain_tasks.history(None, 1), 1) is None
    assert oracle([], None) is None


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (domain_tasks.history([0.5, 0.56], 1), "6.0 points below the best"),
        (domain_tasks.history([0.5, 0.54], 1), None),
        (domain_tasks.history([0.5] * 4, 4, told_apart=0.995), "the generator lost"),
        (domain_tasks.history([0.5] * 4, 4, told_apart=0.5), "tells nothing apart"),
        (domain_tasks.history([0.5] * 4, 4, told_apart=0.7), None),
        (domain_tasks.history([0.5] * 4, 4, domain_accuracy=1.0), "not made alike"),
        (domain_tasks.history(None, 1), None),
    ],
)
def test_alarms_of_the_history(rows: list[dict[str, Any]], words: str | None) -> None:
    found = from_history(rows, max(row["epoch"] for row in rows if row["best"]))
    assert (len(found) == 1 and words in found[0]) if words else found == []


def test_no_alarm_asks_to_choose_by_what_the_test_labels_said() -> None:
    (alarm,) = from_history(domain_tasks.history([0.5, 0.9], 1), 1)
    assert "Report the kept epoch" in alarm
    assert "train.select" not in alarm


def test_alarms_of_the_metrics_and_predictions(pixelda: tuple[Any, dict[str, Any], dict[str, Any]]) -> None:
    task, _, metrics = pixelda
    right = {"value": 1.0, "low": 1.0, "high": 1.0, "n": 60}
    found = domains.alarms(task, {**metrics, "test": {"accuracy": right}}, [])
    assert any("Every one of the 60 target test images is right" in text for text in found)
    poor = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 60}
    found = domains.alarms(task, {**metrics, "test": {"accuracy": poor}}, [])
    assert any("Worse than the trivial baseline" in text for text in found)
    # A bias towards one class is the collapse: every target image is a 7.
    last = task.model.head[-1]
    with torch.no_grad():
        last.bias[7] += 50
        found = domains.alarms(task, metrics, [])
        last.bias[7] -= 50
    assert any("collapse to few classes: 100 % are given '7'" in text for text in found)


# ---- drawing ----------------------------------------------------------------------------------

LONG = [f"Tomato___Leaf {letter} {letter}_disease_of_the_{letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]


@pytest.mark.parametrize("classes", [["cat", "dog"], list("0123456789"), LONG], ids=["2", "10", "26"])
@pytest.mark.parametrize("labelled", [True, False])
def test_domain_figures_fit_any_number_of_classes(classes: list[str], labelled: bool) -> None:
    some = {name: [image(8)] * 3 for name in classes}
    drawn = domain_grids.domain_samples(some, some if labelled else [image(299)] * 48)
    assert inside(drawn)
    assert (drawn.get_suptitle() == "16 of 26 classes") == (len(classes) > 16)
    labels = np.arange(60) % len(classes)
    points = np.random.default_rng(0).normal(size=(120, 2))
    shares = np.array([0.5, 0.25])
    target = labels if labelled else np.full(60, -1)
    drawn = domain_charts.feature_maps(
        [("Pixels", points, shares), ("Features", points, shares)], classes, labels, target
    )
    assert [part.get_xlabel() for part in drawn.axes] == ["component 1 (50.0 % of the variance)"] * 2
    assert inside(drawn)
    legend = drawn.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= drawn.canvas.get_width_height()[0]
    assert inside(domain_grids.translation_grid([image()] * 2, [image()] * 2, [[image()] * 3] * 2, classes[:2]))
    assert inside(
        domain_grids.diversity_grid([image()] * 2, [[image()] * 12] * 2, classes[:2], [0.1, 0.2], [0.3, None])
    )


def test_adaptation_marks_the_kept_epoch_and_the_oracles_apart() -> None:
    rows = domain_tasks.history([0.5, 0.9, 0.7], 3)
    drawn = domain_charts.adaptation(rows, "adaptation_score", oracle(rows, 3), 3)
    labels = drawn.axes[0].get_legend_handles_labels()[1]
    assert "oracle: never used" in labels
    assert "kept: epoch 3, oracle 70.0 %" in labels
    assert "oracle's pick: epoch 2, 90.0 %" in labels
    (dashed,) = [line for line in drawn.axes[0].lines if line.get_label() == "oracle: never used"]
    assert dashed.get_linestyle() == "--"
    assert np.asarray(dashed.get_ydata()) == pytest.approx([50, 90, 70])
    assert inside(drawn)


def test_charts_without_history_say_so() -> None:
    for drawn in (
        domain_charts.adaptation([], "accuracy"),
        domain_charts.adversarial_losses([]),
        domain_charts.reversal_losses([]),
    ):
        assert any("recorded" in text.get_text() for part in drawn.axes for text in part.texts)


def test_class_colours_differ() -> None:
    assert len(set(style.CLASS_COLOURS)) == 10
