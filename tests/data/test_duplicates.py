import numpy as np
import pytest
from PIL import Image

from finesight.data import loading
from finesight.data.config import DataConfig
from finesight.data.duplicates import clusters, exact_duplicates, near_duplicate_groups, near_duplicates
from finesight.data.plantvillage import leaf_id
from finesight.data.scan import scan
from finesight.data.similarity import OTHER_WAY
from tests.data.making import encoded
from tests.data.scenes import TURNED, as_jpeg, moved, scene


@pytest.fixture
def folder(tmp_path):
    """Eight pictures of two classes, and what `add` puts beside them."""
    for number in range(8):
        add(tmp_path, f"{'cat' if number % 2 else 'dog'}/{number}.png", scene(number))
    return tmp_path


def add(root, name, picture):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture if isinstance(picture, bytes) else encoded(picture))


def listed(root):
    samples = loading.read(DataConfig(root=str(root)))
    return samples.ids, samples.to_dataset(samples.ids)


def test_exact_duplicates_are_sets_of_rows():
    assert exact_duplicates(["b", "a", "", "b", "", "c", "a", "b"]) == [[0, 3, 7], [1, 6]]


def test_groups_join_equal_bytes_copies_and_retakes(folder):
    add(folder, "cat/equal.png", encoded(scene(0)))
    add(folder, "cat/turned.png", scene(0).transpose(TURNED["turned by 90°"]))
    add(folder, "dog/again.png", moved(zoom=1.08)(scene(1)))
    add(folder, "dog/jpeg.jpg", encoded(as_jpeg(50)(moved(zoom=1.08)(scene(1)))))
    ids, dataset = listed(folder)
    number = dict(zip(ids, near_duplicate_groups(dataset), strict=True))
    assert len(set(number.values())) == 8
    assert number["dog/0.png"] == number["cat/equal.png"] == number["cat/turned.png"]
    # jpeg = again = 1: a chain, whichever of its links were found.
    assert number["cat/1.png"] == number["dog/again.png"] == number["dog/jpeg.jpg"]


def test_unrelated_pictures_of_one_class_are_alone(folder):
    assert len(set(near_duplicate_groups(listed(folder)[1]))) == 8


def test_blank_pictures_do_not_match_by_accident(folder):
    """Correlation is undefined for them; rounding would make any two the same."""
    generator = np.random.default_rng(0)
    for number, level in enumerate((0, 3, 128, 255)):
        noise = np.clip(level + generator.integers(-1, 2, (64, 64, 3)), 0, 255).astype(np.uint8)
        add(folder, f"dog/blank{number}.png", noise)
    assert len(set(near_duplicate_groups(listed(folder)[1]))) == 12


def test_equal_blank_files_are_exact_duplicates(folder):
    black = encoded(np.zeros((16, 16, 3), np.uint8))
    add(folder, "dog/black.png", black)
    add(folder, "cat/black.png", black)
    ids, dataset = listed(folder)
    found = scan(dataset, shown=False)
    assert [{ids[row] for row in rows} for rows in exact_duplicates(found.hashes)] == [
        {"dog/black.png", "cat/black.png"}
    ]
    assert not len(near_duplicates(found, shown=False).first)
    assert len(set(clusters(found, near_duplicates(found, shown=False)).tolist())) == 9


def test_unreadable_images_are_alone(folder):
    add(folder, "dog/broken1.png", b"no image")
    add(folder, "dog/broken2.png", b"no image")
    assert len(set(near_duplicate_groups(listed(folder)[1]))) == 10


def test_pictures_of_other_shapes_are_compared(folder):
    """A panorama and its quarter turn: thumbnails are square, so the shape does not matter."""
    wide = scene(0).resize((200, 80), Image.Resampling.BICUBIC)
    add(folder, "cat/wide.png", wide)
    add(folder, "cat/tall.png", wide.transpose(TURNED["turned by 270°"]))
    ids, dataset = listed(folder)
    number = dict(zip(ids, near_duplicate_groups(dataset), strict=True))
    assert number["cat/wide.png"] == number["cat/tall.png"] == number["dog/0.png"]


def test_tomato_leaves(real_data):
    """File names say which images are copies; eight leaves photographed twice were found by looking."""
    ids, dataset = listed(real_data / "tomato" / "tomato.zip")
    pairs = near_duplicates(scan(dataset, shown=False), shown=False)
    ends = list(zip(pairs.first.tolist(), pairs.second.tolist(), pairs.retake.tolist(), strict=True))
    copies = [(one, two) for one, two, retake in ends if not retake]
    assert all(leaf_id(ids[one]) == leaf_id(ids[two]) for one, two in copies)
    mirrored = [row for row, name in enumerate(ids) if "_new" not in name]
    leaves = {row: leaf_id(ids[row]) for row in mirrored}
    expected = {(one, two) for one in mirrored for two in mirrored if one < two and leaves[one] == leaves[two]}
    assert len(expected) == 86
    assert expected <= set(copies)
    across = {
        frozenset((ids[one].split("/")[-1][:12], ids[two].split("/")[-1][:12]))
        for one, two, _ in ends
        if ids[one].split("/")[0] != ids[two].split("/")[0]
    }
    assert across == {frozenset(("l (125).jpg", "8826e278-b47")), frozenset(("v (12).jpg", "12b2b901-035"))}
    assert 5 <= sum(retake for *_, retake in ends) <= 20


def test_the_order_of_the_listing_does_not_matter(folder):
    add(folder, "cat/turned.png", scene(0).transpose(TURNED["turned by 90°"]))
    add(folder, "dog/again.png", moved(zoom=1.08)(scene(1)))
    ids, dataset = listed(folder)
    order = np.random.default_rng(0).permutation(len(ids))
    made = []
    for listing in (np.arange(len(ids)), order):
        pairs = near_duplicates(scan(dataset.select(listing), shown=False), shown=False)
        columns = zip(pairs.first, pairs.second, pairs.similarity.tolist(), pairs.turn, strict=True)
        found = set()
        for one, two, similarity, turn in columns:
            ends = [ids[listing[one]], ids[listing[two]]]
            found.add((*sorted(ends), similarity, int(OTHER_WAY[turn]) if ends != sorted(ends) else int(turn)))
        made.append(found)
    assert len(made[0]) == 2
    assert made[0] == made[1]
