import io

import numpy as np
import pytest
from PIL import Image

from finesight.data import images, loading
from finesight.data.config import DataConfig
from finesight.data.scan import scan
from tests.data.making import class_names, encoded, make_folder, make_zip
from tests.data.scenes import scene


def scanned(root, **options):
    samples = loading.read(DataConfig(root=str(root)))
    found = scan(samples.to_dataset(samples.ids), shown=False, **options)
    return samples.ids, found


def test_thumbs_sizes_kinds_and_hashes(tmp_path):
    make_folder(tmp_path, class_names(2))
    (tmp_path / "cat/00.png").write_bytes(encoded(np.full((10, 20, 3), (255, 0, 0), np.uint8)))
    (tmp_path / "cat/02.jpg").write_bytes(encoded(scene(0), "JPEG"))
    (tmp_path / "dog/02.jpg").write_bytes((tmp_path / "cat/02.jpg").read_bytes())
    ids, found = scanned(tmp_path)
    row = ids.index("cat/00.png")
    assert (found.thumbs[row] == 76).all()  # 0.299 * 255
    assert found.sizes[row].tolist() == [20, 10]
    assert found.kinds[row] == "PNG RGB"
    assert found.kinds[ids.index("cat/02.jpg")] == "JPEG RGB"
    assert found.hashes[ids.index("cat/02.jpg")] == found.hashes[ids.index("dog/02.jpg")]
    assert len(set(found.hashes)) == 5
    assert not found.faults
    assert not found.odd


def test_members_of_a_zip_with_equal_bytes_have_equal_hashes(tmp_path):
    folder = make_folder(tmp_path / "made", class_names(2))
    (folder / "dog/00.png").write_bytes((folder / "cat/01.png").read_bytes())
    ids, found = scanned(make_zip(tmp_path / "made.zip", folder))
    assert found.hashes[ids.index("dog/00.png")] == found.hashes[ids.index("cat/01.png")]


def test_all_faults_are_listed(tmp_path):
    make_folder(tmp_path, class_names(3))
    whole = encoded(scene(0), "JPEG")
    (tmp_path / "cat/00.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cat/01.png").write_bytes(b"")
    (tmp_path / "dog/02.png").write_bytes(b"<html>not found</html>")
    ids, found = scanned(tmp_path)
    reasons = {ids[row]: reason for row, reason in found.faults.items()}
    assert sorted(reasons) == ["cat/00.png", "cat/01.png", "dog/02.png"]
    assert "truncated" in reasons["cat/00.png"]
    assert reasons["cat/01.png"] == "the file is empty (0 bytes)."
    assert "not an image" in reasons["dog/02.png"]


def test_unusual_images_are_named_with_what_is_done(tmp_path):
    make_folder(tmp_path, class_names(2))
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    frames = [scene(seed, 16) for seed in range(2)]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    made = {
        "cmyk.jpg": encoded(scene(0).convert("CMYK"), "JPEG"),
        "clear.png": encoded(scene(0).convert("RGBA")),
        "deep.png": encoded(deep),
        "moving.gif": animated.getvalue(),
        "turned.jpg": encoded(scene(0), "JPEG", exif=turned),
    }
    for name, data in made.items():
        (tmp_path / "cat" / name).write_bytes(data)
    ids, found = scanned(tmp_path)
    remarks = {ids[row]: remark for row, remark in found.odd.items()}
    assert set(remarks) == {f"cat/{name}" for name in made}
    for name, word in zip(made, ("CMYK", "transparency", "16-bit", "frames", "EXIF"), strict=True):
        assert word in remarks[f"cat/{name}"]


def test_each_image_is_decoded_once(tmp_path, monkeypatch):
    make_folder(tmp_path, class_names(100))
    names = []
    original = images.decode_resized
    monkeypatch.setattr(
        "finesight.data.scan.images.decode_resized",
        lambda entry, name, *rest: names.append(name) or original(entry, name, *rest),
    )
    ids, _ = scanned(tmp_path)
    assert sorted(names) == sorted(ids)


@pytest.mark.parametrize("rule", ["full", "minmax"])
def test_sixteen_bit_rule_is_applied(tmp_path, rule):
    make_folder(tmp_path, class_names(2))
    dark = np.tile(np.arange(32, dtype=np.uint16), (32, 1))
    (tmp_path / "cat/dark.png").write_bytes(encoded(Image.fromarray(dark)))
    ids, found = scanned(tmp_path, sixteen_bit=rule)
    assert found.thumbs[ids.index("cat/dark.png")].max() == (255 if rule == "minmax" else 0)
