import json
import re
import struct

import numpy as np
import pytest

from finesight.data import check_page
from finesight.data.check import check, main
from finesight.data.check_report import Alike
from finesight.data.config import DataConfig
from finesight.errors import ConfigError, DataError
from tests.data.making import encoded, make_zip
from tests.data.scenes import TURNED, as_jpeg, moved, scene

KEYS = {
    "path": str,
    "images": int,
    "splits_given": bool,
    "splits": dict,
    "classes": list,
    "sizes": dict,
    "corrupt": list,
    "odd": list,
    "blank": list,
    "exact_duplicates": dict,
    "near_duplicates": dict,
    "groups": dict,
    "few_images": list,
    "imbalance": dict,
    "errors": list,
    "warnings": list,
    "leaks": bool,
    "verdict": str,
    "remedies": list,
    "exit_code": int,
}


def add(root, name, picture):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture if isinstance(picture, bytes) else encoded(picture))


@pytest.fixture
def clean(tmp_path):
    """20 training and 2 test pictures of each of two classes, all different."""
    root = tmp_path / "data"
    number = 0
    for split, each in (("train", 20), ("test", 2)):
        for name in ("cat", "dog"):
            for place in range(each):
                add(root, f"{split}/{name}/{place:02d}.png", scene(number, 40))
                number += 1
    return root


def examined(root, **options):
    return check(DataConfig(root=str(root), **options), shown=False)


def as_json(capsys, root, **options):
    code = main(str(root), as_json=True, output=None, options=options)
    return code, json.loads(capsys.readouterr().out)


def test_clean_data_passes(clean, capsys):
    code, found = as_json(capsys, clean)
    assert code == found["exit_code"] == 0
    assert {key: type(value) for key, value in found.items()} == KEYS
    assert found["splits"] == {"train": {"cat": 20, "dog": 20}, "test": {"cat": 2, "dog": 2}}
    assert found["sizes"] == {
        "width": {"min": 40, "median": 40.0, "max": 40},
        "height": {"min": 40, "median": 40.0, "max": 40},
        "kinds": {"PNG RGB": 44},
    }
    empty = {"within": [], "across": [], "conflicting": []}
    assert found["exact_duplicates"] == found["near_duplicates"] == empty
    assert found["groups"] == {"count": None, "across": []}
    assert not found["leaks"]
    assert found["verdict"].startswith("OK")
    assert found["corrupt"] == found["errors"] == found["warnings"] == found["few_images"] == found["remedies"] == []


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (as_jpeg(60), "copy, same way up"),
        (lambda picture: picture.resize((32, 32)), "copy, same way up"),
        (lambda picture: picture.transpose(TURNED["flipped left-right"]), "copy, flipped left-right"),
        (lambda picture: picture.transpose(TURNED["turned by 90°"]), "copy, turned by 90°"),
        (moved(zoom=1.1, angle=2), "photographed again, or shifted"),
    ],
    ids=["jpeg", "resized", "flipped", "turned", "again"],
)
def test_near_duplicates_across_splits_leak(clean, change, how):
    add(clean, "test/cat/leak.png", change(scene(3, 40)))
    report = examined(clean)
    (pair,) = report.near
    assert sorted(pair.ids) == ["test/cat/leak.png", "train/cat/03.png"]
    assert pair.how == how
    assert pair.across
    assert not report.exact
    assert report.leaks
    assert report.exit_code == 1


def test_near_duplicates_within_a_split_do_not_leak(clean):
    add(clean, "train/cat/copy.png", as_jpeg(60)(scene(3, 40)))
    report = examined(clean)
    assert len(report.near) == 1
    assert not report.leaks
    assert report.exit_code == 0


def test_exact_duplicates_within_across_and_conflicting(clean, capsys):
    add(clean, "train/cat/same.png", scene(3, 40))
    add(clean, "train/dog/other.png", scene(5, 40))
    add(clean, "test/cat/leak.png", scene(7, 40))
    code, found = as_json(capsys, clean)
    exact = found["exact_duplicates"]
    assert [sorted(entry["ids"]) for entry in exact["across"]] == [["test/cat/leak.png", "train/cat/07.png"]]
    assert len(exact["within"]) == 2
    assert [sorted(entry["classes"]) for entry in exact["conflicting"]] == [["cat", "dog"]]
    assert found["near_duplicates"]["within"] == found["near_duplicates"]["across"] == []
    assert code == 1
    assert any("one is wrong" in remedy for remedy in found["remedies"])


def test_members_of_a_zip_are_compared_by_content(clean, tmp_path):
    add(clean, "test/cat/leak.png", scene(7, 40))
    report = examined(make_zip(tmp_path / "data.zip", clean))
    assert [alike.across for alike in report.exact] == [True]


def test_a_near_pair_leaks_through_an_equal_file(clean):
    """03 and its copy are both in train; what leaks is the file in test with the bytes of the copy."""
    copy = encoded(as_jpeg(60)(scene(3, 40)))
    add(clean, "train/cat/copy.png", copy)
    add(clean, "test/cat/copy.png", copy)
    report = examined(clean)
    assert sorted(report.near[0].splits) == ["test", "train"]


def test_the_same_files_without_given_splits_do_not_leak(clean, capsys):
    for split in ("train", "test"):
        for path in sorted((clean / split).rglob("*.png")):
            path.rename(clean / f"{path.parent.name}_{split}_{path.name}")
    for path in sorted(clean.glob("*.png")):
        add(clean, f"{path.name.split('_')[0]}/{path.name}", path.read_bytes())
        path.unlink()
    (clean / "train/cat").rmdir(), (clean / "train/dog").rmdir(), (clean / "train").rmdir()
    (clean / "test/cat").rmdir(), (clean / "test/dog").rmdir(), (clean / "test").rmdir()
    add(clean, "cat/twice.png", scene(3, 40))
    code, found = as_json(capsys, clean)
    assert code == 0
    assert found["splits"] == {"all": {"cat": 23, "dog": 22}}
    assert len(found["exact_duplicates"]["within"]) == 1
    assert "--data.near_duplicates group" in found["remedies"][0]


def test_every_corrupt_file_is_listed(clean, capsys):
    whole = encoded(scene(0), "JPEG")
    for number in range(30):
        add(clean, f"train/cat/bad{number:02d}.jpg", whole[: len(whole) // 2] if number % 2 else b"")
    code, found = as_json(capsys, clean)
    assert code == 1
    assert [entry["id"] for entry in found["corrupt"]] == [f"train/cat/bad{number:02d}.jpg" for number in range(30)]
    assert "empty" in found["corrupt"][0]["reason"]
    assert "truncated" in found["corrupt"][1]["reason"]
    assert main(str(clean), as_json=False, output=None, options={}) == 1
    text = capsys.readouterr().out
    assert text.count("train/cat/bad") >= 30
    assert "--data.skip_bad 30" in text


def test_groups_across_splits_leak(clean, capsys):
    add(clean, "test/cat/leak.png", scene(90, 40))
    add(clean, "train/cat/leak.png", scene(91, 40))
    rule = {"group": r"/(leak|\w+/\d+)\.png$"}
    code, found = as_json(capsys, clean, **rule)
    across = {entry["group"]: entry["splits"] for entry in found["groups"]["across"]}
    assert code == 1
    assert across["leak"] == {"train": 1, "test": 1}
    assert across["cat/00"] == {"train": 1, "test": 1}
    assert found["groups"]["count"] == 41
    assert rule["group"] in found["remedies"][0]


def test_few_images_and_imbalance(clean, capsys):
    for number in range(5):
        add(clean, f"train/bird/{number}.png", scene(100 + number, 40))
    add(clean, "train/fish/0.png", scene(200, 40))
    code, found = as_json(capsys, clean)
    assert found["few_images"] == [
        {"class": "fish", "images": 1, "level": "error"},
        {"class": "bird", "images": 5, "level": "warning"},
    ]
    assert code == 1
    assert "'fish' has 1 readable image " in found["errors"][0]
    assert found["imbalance"]["ratio"] == 20.0
    assert any("test split lacks 2 of 4 classes" in warning for warning in found["warnings"])


def test_blank_images_are_named_not_compared(clean):
    for name in ("train/cat/black.png", "test/cat/black.png"):
        add(clean, name, np.full((8, 8 + len(name), 3), 0, np.uint8))
    report = examined(clean)
    assert sorted(report.blank) == ["test/cat/black.png", "train/cat/black.png"]
    assert not report.leaks


def test_text_is_aligned_and_ends_with_verdict_and_remedy(clean, capsys):
    add(clean, "test/cat/leak.png", scene(7, 40))
    assert main(str(clean), as_json=False, output=None, options={}) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{clean}: 45 images, 2 classes"
    assert lines[2:6] == [
        "class        train  test",
        "cat             20     3  ████████████████████████",
        "dog             20     2  ███████████████████████",
        "all classes     40     5",
    ]
    assert lines[-2].startswith("LEAK: 1 image in two splits, byte for byte.")
    assert lines[-1].startswith("Remedy: ")
    assert "--data.splits new" in lines[-1]
    assert any("test/cat/leak.png" in line and "train/cat/07.png" in line for line in lines)


def test_names_cannot_steer_the_terminal(clean, capsys):
    add(clean, "train/c\x1b[31mat/0.png", scene(300, 40))
    main(str(clean), as_json=False, output=None, options={})
    assert "\x1b" not in capsys.readouterr().out


def test_pages_are_escaped_and_self_contained(clean, tmp_path):
    bad = "<script>alert(1)"
    for number in range(20):
        add(clean, f"train/{bad}/{number}.png", scene(300 + number, 40))
    add(clean, "test/cat/<img src=x>.png", scene(7, 40))
    output = tmp_path / "pages"
    assert main(str(clean), as_json=True, output=str(output), options={}) == 1
    page = (output / "check.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<img src=x>" not in page
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page) == []
    for name in ("contact_sheet", "class_chart", "duplicates"):
        data = (output / f"{name}.png").read_bytes()
        assert min(struct.unpack(">II", data[16:24])) > 100
    assert json.loads((output / "check.json").read_text())["exit_code"] == 1


def test_pages_of_clean_data_have_no_pairs(clean, tmp_path):
    output = tmp_path / "pages"
    add(clean, "test/cat/leak.png", scene(7, 40))
    main(str(clean), as_json=True, output=str(output), options={})
    (clean / "test/cat/leak.png").unlink()
    main(str(clean), as_json=True, output=str(output), options={})
    assert not (output / "duplicates.png").exists()


def test_the_two_shown_are_those_that_leak():
    alike = Alike([4, 5, 9], ["a", "b", "c"], ["train", "train", "test"], ["x", "x", "x"], "equal bytes")
    assert check_page.two_of(alike) == [4, 9]
    conflict = Alike([4, 5, 9], ["a", "b", "c"], ["train"] * 3, ["x", "x", "y"], "equal bytes")
    assert check_page.two_of(conflict) == [4, 9]


def test_unusable_input_is_the_users_error(clean, tmp_path):
    with pytest.raises(DataError, match="no such file") as caught:
        main(str(tmp_path / "nowhere"), as_json=False, output=None, options={})
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError):
        main(str(clean), as_json=False, output=None, options={"group": "("})
    with pytest.raises(DataError, match="inside the data"):
        main(str(clean), as_json=False, output=str(clean / "pages"), options={})
    with pytest.raises(DataError, match="is a file"):
        main(str(clean), as_json=False, output=str(clean / "train/cat/00.png"), options={})


def test_tomato_leaks(real_data, capsys):
    code, found = as_json(capsys, real_data / "tomato" / "tomato.zip", group="leaf")
    assert code == 1
    assert found["images"] == 1000
    assert found["exact_duplicates"]["across"] == found["groups"]["across"] == []
    assert sorted(pair["ids"][0] for pair in found["near_duplicates"]["across"]) == [
        "train/Tomato___Late_blight/l (125).jpg",
        "train/Tomato___Tomato_Yellow_Leaf_Curl_Virus/v (12).jpg",
    ]
    assert found["near_duplicates"]["conflicting"] == []
