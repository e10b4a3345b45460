"""Exported folders: what transformers makes of them is what the run itself predicts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finesight import load_run
from finesight.cli import main
from tests import pictures
from tests.models import folders
from tests.models.test_captioner import pair
from tests.tasks.test_contrastive import TINY

FEW = ["--train.epochs", "1", "--train.batch_size", "16", "--evaluation.resamples", "100", "--precision", "fp32"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.folder(tmp_path_factory.mktemp("data") / "shapes", each=24)


def probabilities(run: Path, files: list[Path]) -> np.ndarray:
    """float64 [N, C], by the run itself."""
    return np.array([list(row["scores"].values()) for row in load_run(run).predict(files)])


def pictured(folder: Path, size: int) -> list[Path]:
    """A file of each shape at the size of a model's input, so that nothing has to be resized."""
    generator = np.random.default_rng(0)
    files = [folder / f"{shape}.png" for shape in pictures.SHAPES]
    for file in files:
        Image.fromarray(pictures.picture(file.stem, generator, size)).save(file)
    return files


@pytest.fixture(scope="module")
def clip_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "clip"
    recipe = output.parent / "shapes.yaml"
    recipe.write_text(json.dumps({"task": "contrastive"}))
    flags = [word for key, value in TINY.items() for word in (f"--{key}", str(value))]
    assert main(["run", str(recipe), "--data.root", str(images), "--output", str(output), *flags, *FEW[:2]]) == 0
    return output


def test_a_contrastive_run_becomes_a_clip_folder(images: Path, clip_run: Path, tmp_path: Path, capsys: Any) -> None:
    """The processor reads the files and the prompts, with padding: parity of the whole way, not of the towers alone."""
    from transformers import AutoModel, AutoProcessor

    folder = tmp_path / "clip"
    capsys.readouterr()
    assert main(["export", str(clip_run), str(folder)]) == 0
    assert capsys.readouterr().out == f"Exported: {folder}\n"
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    assert (type(model).__name__, type(processor).__name__) == ("CLIPModel", "CLIPProcessor")
    files = sorted(images.rglob("*.png"))[::9]
    prompts = [f"a photo of a {name}." for name in pictures.SHAPES]
    inputs = processor(text=prompts, images=[Image.open(file) for file in files], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
    expected = probabilities(clip_run, files)
    np.testing.assert_allclose(logits.double().softmax(1).numpy(), expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3  # the images are told apart at all
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    assert settings["image_mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert settings["size"] == {"height": 32, "width": 32}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", ["vit", "dinov2", "resnet"])
def test_a_classifier_keeps_its_classes_and_logits(images: Path, tmp_path: Path, kind: str, method: str) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    if (kind, method) == ("resnet", "lora"):
        pytest.skip("no attention to adapt")
    folders.save(kind, tmp_path / "source", ["x", "y"])
    words = ["run", "classify", "--data.root", str(images), "--output", str(tmp_path / "run"), *FEW]
    size = {"vit": 32, "dinov2": 28, "resnet": 40}[kind]
    words += ["--model.name", str(tmp_path / "source"), "--adapt.method", method, "--train.lr", "1e-2"]
    assert main([*words, "--augment.flip", "0.5", "--model.image_size", str(size)]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    model, report = AutoModelForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.id2label == dict(enumerate(pictures.SHAPES))
    files = pictured(tmp_path, size)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = model.eval()(**processor([Image.open(file) for file in files], return_tensors="pt")).logits
    expected = probabilities(tmp_path / "run", files)
    np.testing.assert_allclose(logits.double().softmax(1).numpy(), expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-3  # the images are told apart at all


def test_another_image_size_than_the_architectures_own_is_said(images: Path, tmp_path: Path, capsys: Any) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folders.save("vit", tmp_path / "source", ["x", "y"])
    words = ["run", "classify", "--data.root", str(images), "--output", str(tmp_path / "run"), *FEW]
    assert main([*words, "--model.name", str(tmp_path / "source"), "--model.image_size", "48"]) == 0
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert "call it with interpolate_pos_encoding=True" in capsys.readouterr().out
    files = pictured(tmp_path, 48)
    inputs = AutoImageProcessor.from_pretrained(tmp_path / "out")([Image.open(f) for f in files], return_tensors="pt")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        logits = model(**inputs, interpolate_pos_encoding=True).logits
    np.testing.assert_allclose(logits.double().softmax(1).numpy(), probabilities(tmp_path / "run", files), atol=1e-5)


def test_the_exported_classifier_is_a_source_for_the_next_run(images: Path, tmp_path: Path) -> None:
    folders.save("vit", tmp_path / "source", ["x", "y"])
    words = ["run", "classify", "--data.root", str(images), *FEW, "--output"]
    assert main([*words, str(tmp_path / "run"), "--model.name", str(tmp_path / "source")]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert main([*words, str(tmp_path / "next"), "--model.name", str(tmp_path / "out")]) == 0
    notes = json.loads((tmp_path / "next" / "run.json").read_text())["model"]["notes"]
    assert any("The head came with the model" in note for note in notes)


def test_a_folder_that_holds_something_is_left_alone(clip_run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for name in ("mine", "file"):
        assert main(["export", str(clip_run), str(tmp_path / name)]) == 2
        assert "is not an empty folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["export", str(clip_run), str(tmp_path / "empty")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "mine"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_export_that_fails_leaves_nothing(clip_run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from finesight import export

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "_save", full)
    with pytest.raises(OSError, match="No space left"):
        export.export(clip_run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_transformers_does_not_know_is_refused_in_one_line(images: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["run", "classify", "--data.root", str(images), "--output", str(tmp_path / "run"), *FEW]
    assert main([*words, "--model.image_size", "32", "--model.width", "8"]) == 0
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: 'small-cnn' of a classification run")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["small-captioner", "pair"])
def test_a_captioner_writes_the_same_captions(images: Path, tmp_path: Path, name: str) -> None:
    """Adapters merged, start, end and filler in its configuration: `generate` needs to be told nothing more."""
    from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

    files = sorted(images.rglob("*.png"))
    rows = [
        f"{file},a {file.parent.name} in a {'small' if place % 2 else 'big'} photo" for place, file in enumerate(files)
    ]
    (tmp_path / "table.csv").write_text("\n".join(["image,caption", *rows]))
    words = ["run", "caption", "--data.root", str(tmp_path / "table.csv"), "--output", str(tmp_path / "run"), *FEW]
    if name == "pair":
        name = pair(tmp_path).name
        words += ["--adapt.method", "lora", "--adapt.modules_to_save", "crossattention,ln_cross_attn"]
    else:
        words += ["--model.image_size", "24"]
    words += ["--model.name", name, "--train.epochs", "8", "--train.lr", "3e-3", "--generation.max_tokens", "12"]
    assert main(words) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    model, report = VisionEncoderDecoderModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    shown = files[::20]
    size = model.config.encoder.image_size
    for file in shown:
        Image.open(file).resize((size, size)).save(tmp_path / file.name)
    shown = [tmp_path / file.name for file in shown]
    processor, tokenizer = (kind.from_pretrained(tmp_path / "out") for kind in (AutoImageProcessor, AutoTokenizer))
    inputs = processor([Image.open(file) for file in shown], return_tensors="pt")
    found = tokenizer.batch_decode(model.eval().generate(**inputs, max_new_tokens=12), skip_special_tokens=True)
    expected = [row["caption"] for row in load_run(tmp_path / "run").predict(shown)]
    assert [" ".join(text.split()) for text in found] == expected
    assert any(expected)
