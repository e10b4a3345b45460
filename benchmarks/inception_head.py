"""Inception v3 at 299 px, frozen with a new head, 10 epochs, against a plain float32 loop.

The peer runs the frozen network on every image in every epoch, as notebooks do. Its epoch is
measured and counted ten times; ours is measured whole: decoding, feature cache, ten epochs of the head.
"""

import statistics
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from torch.nn import functional
from torchvision import transforms as T

import finesight
from benchmarks import timing
from finesight import config as configuration
from finesight import recipes
from finesight.data import loading
from finesight.engine import Engine
from finesight.models import inception_v3
from finesight.reopen import quiet
from finesight.run_folder import RunFolder
from finesight.tasks.classification import Classification
from finesight.train import Loop

EPOCHS, EACH, ROUNDS = 10, 60, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Folder(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, files: list[tuple[Path, int]]) -> None:
        self.files = files
        self.transform = T.Compose([T.Resize((299, 299)), T.ToTensor(), T.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.files[index]
        return self.transform(Image.open(path).convert("RGB")), label


def main() -> None:
    data = timing.test_data()
    if data is None:
        print("inception head: skipped, FINESIGHT_TEST_DATA is not set")
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "leaves"
        files = _extract(data / "tomato" / "tomato.zip", root)
        train = [(path, label) for path, label in files if path.parent.parent.name == "train"]
        folders = iter(Path(scratch) / f"round-{number}" for number in range(ROUNDS + 1))
        peer = _Peer(train)
        ours, theirs = timing.interleaved(lambda: _train(root, next(folders)), peer.epoch, ROUNDS)
        whole = timing.seconds(lambda: _run(root, next(folders)))
    plain = [EPOCHS * seconds for seconds in theirs]
    print(f"Inception v3 299 px, frozen + head, {EPOCHS} epochs, {len(train)} training images [{timing.machine()}]")
    print(
        f"  training, with decoding and feature cache: {timing.ratio(ours, plain)}; {statistics.median(ours):.1f} s "
        f"against {EPOCHS} x {statistics.median(theirs):.1f} s"
    )
    print(
        f"  whole run, with held-out splits, baselines and report, against training alone: "
        f"{statistics.median(plain) / whole:.0f}x; {whole:.1f} s"
    )


def _extract(archive: Path, root: Path) -> list[tuple[Path, int]]:
    """A few images of each class, as files."""
    count: dict[str, int] = {}
    files = []
    with zipfile.ZipFile(archive) as source:
        for name in sorted(source.namelist()):
            folder = str(Path(name).parent)
            count[folder] = count.get(folder, 0) + 1
            if count[folder] <= (EACH if folder.startswith("train") else EACH // 4):
                target = root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read(name))
                files.append(target)
    classes = sorted({path.parent.name for path in files})
    return [(path, classes.index(path.parent.name)) for path in files]


class _Peer:
    """The frozen network run on every image in every epoch; made once, outside the timed epochs."""

    def __init__(self, files: list[tuple[Path, int]]) -> None:
        self.model = inception_v3(classes=6)
        self.model.backbone.requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.model.head.parameters(), 1e-3)
        self.model.train()
        self.model.backbone.eval()
        self.loader = torch.utils.data.DataLoader(_Folder(files), batch_size=32, shuffle=True)

    def epoch(self) -> None:
        for image, label in self.loader:
            loss = functional.cross_entropy(self.model(image), label)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def _options(root: Path, scratch: Path) -> dict[str, Any]:
    return {
        "data.root": str(root), "data.cache_dir": str(scratch / "cache"), "data.splits": "given", "data.group": None,
        "data.near_duplicates": "ignore", "train.epochs": EPOCHS, "train.balance": None,
        "adapt.allow_random_frozen": True,
    }  # fmt: skip


def _train(root: Path, scratch: Path) -> None:
    """What the peer does, as finesight does it: every training image, nothing held out, no report."""
    name, base = recipes.read("tomato-inception-head")
    config = configuration.build(Classification.Config, base, configuration.nest(_options(root, scratch)))
    data = loading.load(config.data, config.seed)
    train = datasets.concatenate_datasets([data["train"], data["validation"]])
    task = Classification(config, list(train.features["label"].names), Engine(config.precision), quiet)
    task.prepare(datasets.DatasetDict(train=train))
    loop = Loop(task, config.train, task.engine, RunFolder(scratch / name), config.seed, quiet)
    task.model.train()
    for epoch in range(EPOCHS):
        for batch in task.train.epoch(epoch):
            loop.step(batch)
            loop.state.step += 1


def _run(root: Path, scratch: Path) -> None:
    finesight.run("tomato-inception-head", _options(root, scratch), output=scratch / "run")
