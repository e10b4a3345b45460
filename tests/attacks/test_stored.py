"""Stored adversarial images: rounding keeps the budget, and a file that changed or is none is refused."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from finesight.attacks import stored
from finesight.attacks.budget import distances
from finesight.attacks.stored import StoredSet, to_8_bit
from finesight.errors import DataError
from finesight.files import sha256, write_json

ABOUT = {"eps": 8 / 255, "norm": "linf", "attack": "pgd", "model": {"name": "small-cnn"}, "data": {}}


def images() -> Tensor:
    return torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def moved(clean: Tensor, eps: float, norm: str) -> Tensor:
    """A perturbation that uses the whole budget."""
    drawn = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    change = drawn.sign() * eps if norm == "linf" else drawn * eps / drawn.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (clean / 255 + change).clamp(0, 1)


@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", 8 / 255), ("linf", 0.03), ("linf", 0.5 / 255), ("l2", 0.3), ("l2", 2)]
)
def test_rounding_keeps_the_budget_and_next_to_all_of_the_change(norm: str, eps: float) -> None:
    clean = images()
    adversarial = moved(clean, eps, norm)
    kept = to_8_bit(adversarial, clean, eps, norm)  # type: ignore[arg-type]
    assert kept.dtype == torch.uint8
    used = distances(kept.double() / 255, clean.double() / 255, norm)  # type: ignore[arg-type]
    assert (used <= eps * (1 + 1e-5)).all()
    if norm == "linf":
        assert (used * 255).round().eq(np.floor(255 * eps + 1e-4)).all()
    else:
        possible = distances(adversarial, clean / 255, "l2")
        assert (used > 0.97 * possible).all()


def test_plain_rounding_would_break_the_budget() -> None:
    clean = images()
    for eps, norm in ((0.03, "linf"), (0.15, "l2")):
        plain = (moved(clean, eps, norm) * 255).round() / 255
        assert (distances(plain, clean / 255, norm) > eps * 1.001).any()  # type: ignore[arg-type]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    found = StoredSet(images(), np.arange(6) % 2, [f"id/{row}" for row in range(6)], ["a"] * 6, ["cat", "dög"], ABOUT)
    stored.write(tmp_path, found)
    return tmp_path / "adversarial.npz"


def test_a_stored_set_comes_back(written: Path) -> None:
    found = stored.read(written)
    assert torch.equal(found.images, images())
    assert found.labels.tolist() == [0, 1] * 3
    assert found.ids[5] == "id/5"
    assert found.groups == ["a"] * 6
    assert found.classes == ["cat", "dög"]
    assert found.about["sha256"] == sha256(written)
    assert found.about["eps"] == 8 / 255


def test_the_same_images_give_the_same_file(written: Path, tmp_path: Path) -> None:
    before = sha256(written)
    stored.write(tmp_path, stored.read(written))
    assert sha256(written) == before


def test_the_file_is_also_a_data_set(written: Path) -> None:
    """`finesight eval RUN --data.root adversarial.npz` reads it."""
    from finesight.data.config import DataConfig
    from finesight.data.loading import load_test_set

    rows = load_test_set(DataConfig(root=str(written)), ["cat", "dög"])
    assert len(rows) == 6


def test_one_changed_byte_is_refused(written: Path) -> None:
    content = bytearray(written.read_bytes())
    content[len(content) // 2] ^= 1
    written.write_bytes(content)
    with pytest.raises(DataError, match="changed since it was written"):
        stored.read(written)


def test_missing_files_are_named(written: Path) -> None:
    written.with_suffix(".json").unlink()
    with pytest.raises(DataError, match=r"adversarial.json: no such file"):
        stored.read(written)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 99, "sha256": ""}'])
def test_a_damaged_manifest_is_refused(written: Path, content: str) -> None:
    written.with_suffix(".json").write_text(content)
    with pytest.raises(DataError, match="damaged|another version"):
        stored.read(written)


def resign(path: Path) -> None:
    manifest = path.with_suffix(".json")
    write_json(manifest, json.loads(manifest.read_text()) | {"sha256": sha256(path)})


def test_pickled_objects_are_refused(written: Path) -> None:
    arrays = dict(np.load(written))
    arrays["ids"] = np.array([{"a": 1}] * 6, dtype=object)
    np.savez(written, **arrays)
    resign(written)
    with pytest.raises(DataError, match="not a stored set"):
        stored.read(written)


@pytest.mark.parametrize("change", ["labels", "images", "classes", "extra", "floats"])
def test_arrays_that_do_not_fit_are_refused(written: Path, change: str) -> None:
    arrays = dict(np.load(written))
    if change == "labels":
        arrays["labels"] = arrays["labels"] + 2
    elif change == "images":
        arrays["images"] = arrays["images"][:5]
    elif change == "classes":
        arrays["classes"] = arrays["classes"][::-1]
    elif change == "floats":
        arrays["images"] = arrays["images"] / np.float32(255)
    else:
        arrays["more"] = np.zeros(3)
    np.savez(written, **arrays)
    resign(written)
    with pytest.raises(DataError):
        stored.read(written)


def npy(shape: tuple[int, ...], content: bytes) -> bytes:
    """An npy file of uint8 whose header claims `shape`."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def repacked(path: Path, content: bytes) -> None:
    """The same archive with other bytes for its images."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, whole in (parts | {"images.npy": content}).items():
            archive.writestr(name, whole)
    resign(path)


@pytest.mark.parametrize("shape", [(10**7, 10**7), (10**20,), (-1, -100), (99,)])
def test_a_header_that_lies_about_the_size_is_refused(written: Path, shape: tuple[int, ...]) -> None:
    """numpy would reserve the memory that it claims."""
    repacked(written, npy(shape, b"x" * 100))
    with pytest.raises(DataError, match=r"images.npy is no plain|not a stored set"):
        stored.read(written)


def test_a_damaged_stream_is_refused(written: Path) -> None:
    arrays = dict(np.load(written))
    np.savez_compressed(written, **arrays)
    with zipfile.ZipFile(written) as archive:
        part = archive.getinfo("images.npy")
    content = bytearray(written.read_bytes())
    start = part.header_offset + 30 + len("images.npy") + 20
    content[start : start + 200] = b"\xff" * 200
    written.write_bytes(content)
    resign(written)
    with pytest.raises(DataError):
        stored.read(written)


def test_a_bomb_is_refused_before_it_is_unpacked(written: Path) -> None:
    arrays = dict(np.load(written))
    arrays["images"] = np.zeros((6, 2000, 2000, 3), dtype=np.uint8)
    np.savez_compressed(written, **arrays)
    resign(written)
    with pytest.raises(DataError, match="would unpack to 72.0 MB"):
        stored.read(written)
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("../images.npy", b"")
    resign(written)
    with pytest.raises(DataError, match="holds ../images.npy"):
        stored.read(written)
