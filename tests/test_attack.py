"""`finesight attack` end to end: a run becomes its stress test, and what could go wrong on the way does not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import finesight
from finesight import stress, stress_results, surrogates
from finesight.attacks import prepared, protocol, stored
from finesight.cli import main
from finesight.errors import ConfigError, RunError
from finesight.files import sha256
from finesight.models import resnet20
from finesight.run_folder import RunFolder
from tests import pictures

TRAIN = [
    "--train.epochs", "12", "--train.lr", "0.01", "--train.batch_size", "16", "--model.image_size", "24",
    "--data.size", "32", "--model.width", "8", "--precision", "fp32",
    "--evaluation.resamples", "100",
]  # fmt: skip
QUICK = [
    "--eps", "2/255,8/255", "--iters", "3", "--steps", "1,3", "--auto", "6", "--auto_iters", "5", "--queries", "10",
    "--corruptions", "brightness",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder(tmp_path_factory.mktemp("data") / "shapes", each=40)


def train(images: Path, output: Path, *more: str) -> Path:
    assert main(["run", "classify", "--data.root", str(images), "--output", str(output), *TRAIN, *more]) == 0
    return output


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(images, tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def attacked(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = Path(shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "attacked"))
    assert main(["attack", str(output), *QUICK]) == 0
    return output


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "attack" / "attack.json").read_text())


def state(run: Path) -> dict[str, str]:
    return {str(path.relative_to(run)): sha256(path) for path in sorted(run.rglob("*")) if path.is_file()}


# ---- what is written --------------------------------------------------------------------------


def test_everything_is_written_and_fits_together(attacked: Path) -> None:
    about = results(attacked)
    rows = pq.read_table(attacked / "attack" / "predictions.parquet").to_pylist()
    own = {
        row["id"]: row for row in pq.read_table(attacked / "predictions.parquet").to_pylist() if row["split"] == "test"
    }
    assert about["images"] == about["of"] == len(rows) == len(own)
    assert {"id", "group", "reference", *about["conditions"]} == set(rows[0])
    for name, condition in about["conditions"].items():
        said = [(row[name], row["reference"]) for row in rows if row[name] is not None]
        entry = condition["accuracy"]
        assert entry["n"] == len(said)
        assert entry["value"] == pytest.approx(np.mean([a == b for a, b in said]))
        assert condition["seconds"] >= 0
    assert about["resolution"] == {"attacked": 32, "model": 24}
    assert about["options"]["eps"] == ["2/255", "8/255"]
    assert about["command"].startswith("finesight attack ")
    # The pixels are resized inside the model, where the run resized 8-bit images: nearly the same predictions.
    same = [row["clean"] == own[row["id"]]["prediction"] for row in rows]
    assert np.mean(same) > 0.9
    assert about["conditions"]["pgd eps 8/255"]["accuracy"]["value"] < about["conditions"]["clean"]["accuracy"]["value"]


def test_the_stored_set_is_the_attacks_and_within_its_budget(attacked: Path, images: Path) -> None:
    from PIL import Image

    kept = stored.read(attacked / "attack" / "adversarial.npz")
    about = results(attacked)
    assert kept.classes == about["classes"]
    assert kept.about["data"]["fingerprint"] == json.loads((attacked / "run.json").read_text())["data"]["fingerprint"]
    assert kept.about["model"] == about["model"]
    original = torch.stack(
        [torch.from_numpy(np.array(Image.open(images / name))).permute(2, 0, 1) for name in kept.ids]
    )
    moved = (kept.images.int() - original.int()).abs().amax((1, 2, 3))
    assert moved.max() == 8
    assert [kept.classes[label] for label in kept.labels] == [name.split("/")[0] for name in kept.ids]


def test_the_report_shows_the_section(attacked: Path) -> None:
    text = (attacked / "report.html").read_text()
    assert '<section id="robustness">' in text
    assert "pgd eps 8/255" not in text.partition('<section id="robustness">')[0]
    for name in ("attack_budget", "attack_steps", "attack_corruptions", "attack_examples"):
        assert f'id="figure-{name}"' in text
        assert (attacked / "attack" / "figures" / f"{name}.png").is_file()
    assert "<script" not in text


def test_resume_writes_the_report_with_the_section_again(attacked: Path) -> None:
    before = state(attacked / "attack")
    (attacked / "report.html").unlink()
    assert main(["run", "--resume", "--output", str(attacked)]) == 0
    assert '<section id="robustness">' in (attacked / "report.html").read_text()
    assert state(attacked / "attack") == before


def test_json_and_python_give_the_same_numbers(attacked: Path, run: Path, capsys: Any) -> None:
    assert main(["attack", str(run), *QUICK, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    again = stress.attack(
        finesight.load_run(run).path,
        {
            "eps": ["2/255", "8/255"], "iters": 3, "steps": [1, 3], "auto": 6, "auto_iters": 5, "queries": 10,
            "corruptions": ["brightness"],
        },
        overwrite=True,
    )  # fmt: skip
    values = [
        {name: condition["accuracy"] for name, condition in about["conditions"].items()}
        for about in (printed, again, results(attacked), results(run))
    ]
    assert values[0] == values[1] == values[2] == values[3]
    assert again["corruption"] == printed["corruption"]


def test_another_norm_brings_its_own_budgets() -> None:
    """A run whose configuration has a section `attack` stores the options that it did not give, too."""
    from finesight import config as configuration
    from finesight.attacks.config import AttackConfig
    from finesight.tasks.robustness import RobustnessConfig

    stored = configuration.build(RobustnessConfig, {"train": {"epochs": 0}}).model_dump(mode="json")["attack"]
    assert configuration.build(AttackConfig, stored, {"norm": "l2"}).budgets == [0.25, 0.5, 1, 2]
    given = {"eps": ["2/255", "8/255"], "auto_eps": "8/255", "norm": "linf", "iters": 7}
    config = stress._options(given, {"norm": "l2"})
    assert (config.budgets, config.ensemble_budget, config.iters) == ([0.25, 0.5, 1, 2], 2, 7)
    assert stress._options(given, {"norm": "l2", "eps": ["0.1"]}).budgets == [0.1]
    assert stress._options(given, {"norm": "linf", "iters": 3}).budgets == [2 / 255, 8 / 255]


# ---- which images -----------------------------------------------------------------------------


def test_images_are_chosen_by_seed_and_id_in_the_classes_proportions() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    ids = [f"image-{row}" for row in range(100)]
    rows = stress.chosen_rows(ids, labels, 20, 0)
    assert np.bincount(labels[rows]).tolist() == [12, 6, 2]
    assert len(set(rows.tolist())) == 20
    assert stress.chosen_rows(ids, labels, 10, 0).tolist() == rows[:10].tolist()
    assert sorted(stress.chosen_rows(ids, labels, 1000, 0).tolist()) == list(range(100))
    order = np.random.default_rng(0).permutation(100)
    mixed = stress.chosen_rows([ids[row] for row in order], labels[order], 20, 0)
    assert order[mixed].tolist() == rows.tolist()
    assert stress.chosen_rows(ids, labels, 20, 1).tolist() != rows.tolist()


# ---- a stored set on another run --------------------------------------------------------------


def test_the_stored_set_on_its_own_run_is_the_condition_stored(attacked: Path, run: Path, capsys: Any) -> None:
    file = attacked / "attack" / "adversarial.npz"
    assert main(["attack", str(run), "--stored", str(file), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    first = results(attacked)["conditions"]
    assert about["accuracy"]["value"] == first["stored"]["accuracy"]["value"]
    assert about["clean"]["n"] == about["accuracy"]["n"] == first["clean"]["accuracy"]["n"]
    assert about["alarms"] == []
    name = sha256(file)[:12]
    assert json.loads((run / "stored" / f"{name}.json").read_text()) == about
    rows = pq.read_table(run / "stored" / f"{name}.parquet").to_pylist()
    assert np.mean([row["prediction"] == row["reference"] for row in rows]) == about["accuracy"]["value"]
    text = (run / "report.html").read_text()
    assert "Stored images of other runs" in text
    assert name in text
    assert not (run / "attack").exists()


def test_another_split_raises_the_alarm_that_it_may_have_seen_the_images(
    attacked: Path, images: Path, tmp_path: Path, capsys: Any
) -> None:
    other = train(images, tmp_path / "other", "--seed", "5", "--train.max_steps", "1")
    capsys.readouterr()
    assert main(["attack", str(other), "--stored", str(attacked / "attack" / "adversarial.npz")]) == 0
    text = capsys.readouterr().out
    assert "ALARM: Not all of the stored images are in this run's test split" in text
    assert "without the attack: not known" in text


def test_other_data_under_the_same_names_is_noticed(attacked: Path, run: Path, tmp_path: Path, capsys: Any) -> None:
    about = json.loads((run / "run.json").read_text())
    about["data"] |= {"fingerprint": "0" * 32, "fingerprints": {"test": "1" * 32}}
    (run / "run.json").write_text(json.dumps(about))
    assert main(["attack", str(run), "--stored", str(attacked / "attack" / "adversarial.npz"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["clean"] is None
    (alarm,) = found["alarms"]
    assert "made from other data" in alarm


def test_another_resolution_is_said(attacked: Path, run: Path, capsys: Any) -> None:
    text = (run / "config.yaml").read_text()
    assert "  size: 32" in text
    (run / "config.yaml").write_text(text.replace("  size: 32", "  size: 48"))
    assert main(["attack", str(run), "--stored", str(attacked / "attack" / "adversarial.npz"), "--json"]) == 0
    (alarm,) = json.loads(capsys.readouterr().out)["alarms"]
    assert "32 pixels wide, and this run holds its own at 48" in alarm


def test_a_changed_file_and_other_classes_are_refused(attacked: Path, run: Path, tmp_path: Path, capsys: Any) -> None:
    copy = Path(shutil.copytree(attacked / "attack", tmp_path / "copy"))
    content = bytearray((copy / "adversarial.npz").read_bytes())
    content[5000] ^= 1
    (copy / "adversarial.npz").write_bytes(content)
    before = state(run)
    assert main(["attack", str(run), "--stored", str(copy / "adversarial.npz")]) == 2
    assert "changed since it was written" in capsys.readouterr().err
    kept = stored.read(attacked / "attack" / "adversarial.npz")
    named = stored.StoredSet(kept.images, kept.labels, kept.ids, kept.groups, ["disc", "square", "cube"], kept.about)
    shutil.rmtree(copy)
    copy.mkdir()
    about = {key: value for key, value in kept.about.items() if key not in ("sha256", "classes", "images", "format")}
    stored.write(copy, stored.StoredSet(named.images, named.labels, named.ids, named.groups, named.classes, about))
    assert main(["attack", str(run), "--stored", str(copy / "adversarial.npz")]) == 2
    assert "does not know: cube" in capsys.readouterr().err
    assert main(["attack", str(run), "--stored", str(copy / "adversarial.npz"), "--iters", "3"]) == 2
    assert "takes no options" in capsys.readouterr().err
    assert {name: digest for name, digest in state(run).items() if name != ".lock"} == {
        name: digest for name, digest in before.items() if name != ".lock"
    }


def test_a_stored_set_gives_no_local_path_away(attacked: Path) -> None:
    assert stress_results._public("/home/me/secret/clip") == "clip"
    assert stress_results._public("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"
    assert str(attacked.parent) not in (attacked / "attack" / "adversarial.json").read_text()


def test_a_contrastive_run_is_sent_to_its_export(run: Path) -> None:
    (run / "config.yaml").write_text("task: contrastive\n")
    with pytest.raises(ConfigError, match="finesight export .* clip-zero-shot"):
        stress.attackable(RunFolder(run))


# ---- whole or not at all ----------------------------------------------------------------------


def test_results_are_replaced_only_when_asked(attacked: Path, tmp_path: Path, capsys: Any) -> None:
    copy = Path(shutil.copytree(attacked, tmp_path / "copy"))
    before = state(copy / "attack")
    assert main(["attack", str(copy), *QUICK]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert state(copy / "attack") == before
    less = ["--eps", "4/255", "--iters", "1", "--steps=", "--auto", "0", "--corruptions", "none"]
    assert main(["attack", str(copy), *less, "--overwrite"]) == 0
    assert set(results(copy)["conditions"]) == {
        "clean", "noise eps 4/255", "fgsm eps 4/255", "pgd eps 4/255", "check eps 127.5/255", "stored",
    }  # fmt: skip
    assert {path.stem for path in (copy / "attack" / "figures").glob("*.png")} <= {"attack_budget", "attack_examples"}


@pytest.mark.parametrize("when", ["measuring", "writing", "swapping"])
def test_an_interrupt_leaves_what_was_there(run: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "attack").mkdir()
    (run / "attack" / "attack.json").write_text("{}")
    before = state(run)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    if when == "measuring":
        monkeypatch.setattr(protocol, "_corrupted", stop)
    elif when == "writing":
        monkeypatch.setattr(stress_results, "write_json", stop)
    else:
        rename, calls = stress_results.os.rename, []

        def second(*paths: Any) -> None:
            calls.append(paths)
            if len(calls) == 2:
                raise KeyboardInterrupt
            rename(*paths)

        monkeypatch.setattr(stress_results.os, "rename", second)
    assert main(["attack", str(run), *QUICK, "--overwrite"]) == 130
    monkeypatch.undo()
    after = {name: digest for name, digest in state(run).items() if name != ".lock"}
    assert after == {name: digest for name, digest in before.items() if name != ".lock"}
    assert not list(run.glob(".tmp-*"))


def test_two_attacks_at_once_are_refused(run: Path, capsys: Any) -> None:
    held = RunFolder(run)
    held.lock()
    try:
        assert main(["attack", str(run), *QUICK]) == 2
        assert "in use by this process" in capsys.readouterr().err
        assert not (run / "attack").exists()
    finally:
        held.unlock()


# ---- surrogates -------------------------------------------------------------------------------


def test_another_run_is_a_surrogate_and_classes_are_matched_by_name(images: Path, run: Path, tmp_path: Path) -> None:
    """The other run knows one class more, so its numbers of the classes are others."""
    more = Path(shutil.copytree(images, tmp_path / "more"))
    shutil.copytree(images / "disc", more / "a blob")
    other = train(more, tmp_path / "other", "--data.size", "24")
    assert main(["attack", str(run), *QUICK, "--surrogate", str(other)]) == 0
    about = results(run)
    clean = json.loads((other / "metrics.json").read_text())["test"]["accuracy"]["value"]
    assert about["surrogate"]["name"] == "other"
    assert len(about["surrogate"]["weights"]) == 32
    assert about["surrogate"]["clean"] > max(0.45, clean - 0.3)
    assert about["conditions"]["transfer eps 8/255"]["accuracy"]["n"] == about["images"]
    assert "the surrogate other itself" in (run / "report.html").read_text()


def test_surrogates_that_do_not_fit_are_refused(images: Path, run: Path, tmp_path: Path, capsys: Any) -> None:
    weights = tmp_path / "resnet.th"
    torch.save({"state_dict": {f"module.{k}": v for k, v in resnet20().state_dict().items()}}, weights)
    stray = tmp_path / "stray.th"
    torch.save({"linear.weight": torch.zeros(3, 64)}, stray)
    two = Path(shutil.copytree(images, tmp_path / "two"))
    shutil.rmtree(two / "disc")
    fewer = train(two, tmp_path / "fewer", "--train.max_steps", "1")
    for path, words in (
        (weights, "does not know the classes disc, square, stripes"),
        (stray, "no weights of a ResNet-20"),
        (fewer, "does not know the class disc"),
        (run, "is the attacked run itself"),
        (tmp_path / "nothing.th", "no such file or folder"),
        (images, "not a run folder"),
    ):
        assert main(["attack", str(run), *QUICK, "--surrogate", str(path)]) == 2
        assert words in capsys.readouterr().err
        assert not (run / "attack").exists()


def test_cifar_classes_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = resnet20()
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "resnet.th")
    order = ["truck", "cat", "airplane"]
    found, name = surrogates.load(str(tmp_path / "resnet.th"), order, torch.device("cpu"))
    pixels = torch.rand(2, 3, 64, 64)  # resized to 32 inside, and normalised as ImageNet
    small = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in surrogates.IMAGENET)
    with torch.no_grad():
        torch.testing.assert_close(found(pixels), model.eval()((small - mean) / std)[:, [9, 3, 0]])
    assert name == "resnet.th"
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in prepared(found).modules())


# ---- what is refused --------------------------------------------------------------------------


def test_only_finished_runs_of_classifiers_are_attacked(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        stress.attack(tmp_path / "nowhere")
    other = Path(shutil.copytree(run, tmp_path / "other"))
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("task: classification", "task: reconstruction"))
    with pytest.raises(ConfigError, match="reconstruction run gives images no classes"):
        stress.attack(other)
    (other / "metrics.json").unlink()
    with pytest.raises(RunError, match="not finished"):
        stress.attack(other)
    with pytest.raises(ConfigError, match="'fog' is unknown"):
        stress.attack(run, {"corruptions": ["fog"]})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        stress.attack(run)


def test_changed_data_is_refused(images: Path, tmp_path: Path, capsys: Any) -> None:
    own = Path(shutil.copytree(images, tmp_path / "own"))
    run = train(own, tmp_path / "run", "--train.max_steps", "1")
    shutil.copyfile(own / "disc" / "000.png", own / "disc" / "001.png")
    assert main(["attack", str(run), *QUICK]) == 2
    assert "the data changed since the run began" in capsys.readouterr().err


def test_help_says_every_option(capsys: Any) -> None:
    assert main(["attack", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--surrogate" in text
    assert "--stored FILE.npz" in text
    assert main(["attack", "--eps", "3"]) == 2
    assert "name the run folder first" in capsys.readouterr().err


def test_an_adapted_run_is_attacked_on_its_target(tmp_path: Path) -> None:
    """Domain adaptation has the members of a classifier, so it can be attacked too."""
    generator = np.random.default_rng(0)
    for name in ("source", "target"):
        pictures.folder(tmp_path / name, each=12, seed=int(generator.integers(100)))
    output = tmp_path / "run"
    words = ["run", "adapt", "--data.source", str(tmp_path / "source"), "--data.target", str(tmp_path / "target")]
    words += [
        "--method",
        "source-only",
        "--train.epochs",
        "1",
        "--output",
        str(output),
        "--evaluation.resamples",
        "100",
    ]
    assert main(words) == 0
    assert main(["attack", str(output), *QUICK]) == 0
    rows = pq.read_table(output / "predictions.parquet").to_pylist()
    assert results(output)["images"] == sum(row["split"] == "test" for row in rows)
