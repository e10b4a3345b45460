import csv
import zipfile
from pathlib import Path

import pytest

from finesight.data import rocov2
from finesight.data.images import split_zip_path
from finesight.errors import DataError
from tests.data.making import encoded, pixels

HEADER = "ID,Caption\n"


def archive(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for seed, name in enumerate(names):
            file.writestr(name, encoded(pixels(seed), "JPEG"))


def make(root: Path, **parts: list[str]) -> Path:
    """`<part>_images.zip` and a caption for each ID."""
    root.mkdir(exist_ok=True)
    for part, ids in parts.items():
        archive(root / f"{part}_images.zip", [f"{part}/{name}.jpg" for name in ids])
        rows = "".join(f'{name},"Caption, of {name}"\n' for name in ids)
        (root / f"{part}_captions.csv").write_text(HEADER + rows)
    return root


def problems(root: Path, *, captions: bool = True) -> list[str]:
    with pytest.raises(DataError) as caught:
        rocov2.read(root, captions=captions)
    return [problem.replace(f"{root}/", "") for problem in caught.value.problems]


def test_ids_with_dots_and_all_three_splits(tmp_path):
    root = make(tmp_path, train=["b", "1.2.annot.original"], valid=["c.jpg"], test=["d"])
    found = rocov2.read(root, captions=True)
    assert rocov2.is_rocov2(root)
    assert found.ids == ["1.2.annot.original", "b", "c.jpg", "d"]
    assert found.splits == ["train", "train", "validation", "test"]
    assert found.classes == ["image"]
    assert found.labels.tolist() == [0, 0, 0, 0]
    assert found.captions == [f"Caption, of {name}" for name in found.ids]
    assert found.concepts == [[], [], [], []]
    place = split_zip_path(found.images[0].as_py()["path"])
    assert place == (str(root / "train_images.zip"), "train/1.2.annot.original.jpg")


def test_the_order_of_rows_and_members_changes_nothing(tmp_path):
    ids = [f"x{number}" for number in range(9)]
    one, other = make(tmp_path / "1", train=ids), make(tmp_path / "2", train=ids[::-1])
    found = [rocov2.read(root, captions=True) for root in (one, other)]
    assert found[0].ids == found[1].ids == ids
    assert found[0].captions == found[1].captions


def test_without_captions_no_table_is_opened(tmp_path):
    root = make(tmp_path, train=["a", "b"], test=["c"])
    (root / "train_captions.csv").write_bytes(b"\xff nonsense")
    (root / "test_captions.csv").unlink()
    found = rocov2.read(root, captions=False)
    assert found.ids == ["a", "b", "c"]
    assert found.captions == []


def test_concepts_are_named(tmp_path):
    root = make(tmp_path, train=["a", "b", "c"])
    (root / "train_concepts.csv").write_text("ID,CUIs\nb,C0040405;C1306645\na,C9;C0040405\n")
    assert rocov2.read(root, captions=True).concepts == [["C9", "C0040405"], ["C0040405", "C1306645"], []]
    (root / "cui_mapping.csv").write_text('CUI,Canonical name\nC0040405,"X-ray, computed"\nC1306645,Plain x-ray\n')
    named = [["C9", "X-ray, computed"], ["X-ray, computed", "Plain x-ray"], []]
    assert rocov2.read(root, captions=True).concepts == named


def test_every_fault_is_reported_at_once_with_file_and_row(tmp_path):
    root = make(tmp_path, train=["a", "b", "c", "lonely"], test=["d", "e"])
    (root / "train_captions.csv").write_bytes(
        HEADER.encode()
        + b'a,"two\nlines"\n'  # rows 2 and 3
        + b"\n"
        + b"b,   \n"  # row 5
        + b"a,again\n"
        + b"nowhere,Nothing to see\n"
        + b"c,caf\xe9\n"
        + b",no name\n"
        + b"x,a comma, not quoted\n"
    )
    (root / "test_captions.csv").write_text(HEADER + "d,fine\na,of the other split\ne,fine\n")
    (root / "train_concepts.csv").write_text("ID,CUIs\na,C1\na,C2\n")
    train = "train_captions.csv, row"
    assert [problem.split(". ")[0] for problem in problems(root)] == [
        f"{train} 6: the ID 'a' already stands in row 2",
        f"{train} 8: not valid UTF-8",
        f"{train} 9: the ID is missing",
        f"{train} 10: 3 cells, but the header has 2",
        f"{train} 5: the caption of 'b' is empty",
        f"{train} 7: no image 'nowhere' in train_images.zip",
        "train_images.zip: the image 'train/lonely.jpg' has no row in train_captions.csv",
        "train_concepts.csv, row 3: the ID 'a' already stands in row 2",
        "test_captions.csv, row 3: the ID 'a' is also in train_captions.csv, row 2, another split",
        "test_captions.csv, row 3: no image 'a' in test_images.zip",
    ]
    assert rocov2.read(root, captions=False).ids == ["a", "b", "c", "lonely", "d", "e"]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"ID,Text\na,x\n", "train_captions.csv, row 1: no column Caption. Columns: ID, Text."),
        (b"name,text\na,x\n", "train_captions.csv, row 1: no column ID and Caption. Columns: name, text."),
        (b"", "train_captions.csv, row 1: no column ID and Caption. Columns: none."),
        (b"\xff\xfeI\0D\0", "train_captions.csv, row 1: not valid UTF-8. Save the file as UTF-8."),
        (HEADER.encode() + b'a,x\nb,"open\n', "train_captions.csv, row 3: unexpected end of data. Mend this row."),
    ],
)
def test_a_table_that_cannot_be_read_is_one_problem(tmp_path, content, cause):
    root = make(tmp_path, train=["a", "b"])
    (root / "train_captions.csv").write_bytes(content)
    assert problems(root) == [cause]


def test_a_mark_at_the_beginning_and_other_capitals_are_fine(tmp_path):
    root = make(tmp_path, train=["a"])
    (root / "train_captions.csv").write_bytes(b"\xef\xbb\xbf id ,caption,more\r\na, Lungs ,1\r\n")
    assert rocov2.read(root, captions=True).captions == ["Lungs"]


def test_an_id_in_two_splits_or_in_two_places_is_always_refused(tmp_path):
    root = make(tmp_path, train=["a", "b"], test=["b"])
    archive(root / "valid_images.zip", ["valid/c.jpg", "more/c.png"])
    for captions in (True, False):
        found = problems(root, captions=captions)
        assert "valid_images.zip: the ID 'c' is there twice, as 'more/c.png' and 'valid/c.jpg'. Remove one." in found
        assert any("the ID 'b' is in train_images.zip and in test_images.zip" in problem for problem in found)
    assert "test_captions.csv, row 2: the ID 'b' is also in train_captions.csv, row 3" in "\n".join(problems(root))


def test_missing_files(tmp_path):
    root = make(tmp_path, train=["a"], test=["b"])
    (root / "test_captions.csv").unlink()
    assert problems(root)[0].startswith("test_captions.csv: is missing, while test_images.zip is there")
    make(tmp_path, test=["b"])
    (root / "train_images.zip").unlink()
    (root / "test_images.zip").unlink()
    assert not rocov2.is_rocov2(root)
    found = problems(root)
    assert found[0].startswith("train_images.zip: is missing")
    assert found[1].startswith("test_images.zip: is missing, while test_captions.csv is there")


def test_a_damaged_zip_and_one_without_images(tmp_path):
    root = make(tmp_path, train=["a"])
    (root / "test_images.zip").write_bytes(b"PK nothing")
    assert "test_images.zip: not a readable zip archive" in problems(root, captions=False)[0]
    (root / "test_images.zip").unlink()
    archive(root / "train_images.zip", ["readme.txt"])
    with pytest.raises(DataError, match="its zips hold no images"):
        rocov2.read(root, captions=False)


def test_the_radiology_set(real_data):
    folder = real_data / "radiology"
    found = rocov2.read(folder, captions=True)
    assert (found.splits.count("train"), found.splits.count("test"), len(found.ids)) == (228, 57, 285)
    with open(folder / "test_captions.csv", encoding="utf-8", newline="") as file:
        expected = {row["ID"]: row["Caption"].strip() for row in csv.DictReader(file)}
    assert dict(zip(found.ids[228:], found.captions[228:], strict=True)) == expected
    assert "4ad30bc6-2da0-4f84-bc9b-62acabfd518a.annot.original" in expected
    assert len(set(found.captions)) == 219
