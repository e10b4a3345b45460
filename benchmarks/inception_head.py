"""Inception v3 at 299 px, frozen with a new head, 10 epochs, against a plain float32 loop.

The peer runs the frozen network on every image in every epoch, as notebooks do. Its epoch is
measured once and counted ten times; ours is measured whole: decoding, feature cache, ten epochs of the head.
"""

import os
import tempfile
import zipfile
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional
from torchvision import transforms as T

from benchmarks import timing

EPOCHS, EACH = 10, 24
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
        os.environ["FINESIGHT_CACHE"] = str(Path(scratch) / "cache")
        train = [(path, label) for path, label in files if path.parent.parent.name == "train"]
        theirs = timing.seconds(lambda: _plain_epoch(train))
        ours = timing.seconds(lambda: _ours(root, Path(scratch) / "run"))
    print(f"Inception v3 299 px, frozen + head, {len(train)} training images [{timing.machine()}]")
    print(
        f"  {EPOCHS} epochs: {EPOCHS * theirs / ours:.0f}x ({ours:.1f} s, with decoding, feature cache, held-out "
        f"splits, baselines and report, against {EPOCHS} x {theirs:.1f} s for the plain training epochs alone)"
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


def _plain_epoch(files: list[tuple[Path, int]]) -> None:
    from finesight.models import inception_v3

    model = inception_v3(classes=6)
    for parameter in model.backbone.parameters():
        parameter.requires_grad = False
    optimizer = torch.optim.Adam(model.head.parameters(), 1e-3)
    model.train()
    model.backbone.eval()
    for image, label in torch.utils.data.DataLoader(_Folder(files), batch_size=32, shuffle=True):
        loss = functional.cross_entropy(model(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _ours(root: Path, output: Path) -> None:
    import finesight

    options = {
        "data.root": str(root), "data.splits": "given", "data.group": None, "data.near_duplicates": "ignore",
        "train.epochs": EPOCHS, "train.balance": None, "adapt.allow_random_frozen": True,
    }  # fmt: skip
    finesight.run("tomato-inception-head", options, output=output)
