import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finesight.data import hub, tables
from finesight.data.config import DataConfig
from finesight.errors import DataError
from tests.data.making import make_folder

ROWS = [("img/a.png", "cat"), ("img/b.png", "dog"), ("img/c.png", "cat"), ("img/d.png", "dog")]


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path, [name for name, _ in ROWS])


def read(path, **options):
    read_one = hub.read_parquet if path.suffix == ".parquet" else tables.read_table
    return read_one(path, DataConfig(**options))


def csv_of(folder, text, encoding="utf-8", name="labels.csv"):
    path = folder / name
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


def write(folder, form, columns):
    path = folder / f"labels.{form}"
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if form == "parquet":
        pq.write_table(pa.table(columns), path)
    elif form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        mark = "\t" if form == "tsv" else ","
        path.write_text(
            "\n".join(mark.join(map(str, line)) for line in [list(columns), *(row.values() for row in rows)])
        )
    return path


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_form_of_table_gives_the_same(folder, form):
    columns = {
        "path": [name for name, _ in ROWS],
        "label": [label for _, label in ROWS],
        "split": ["train", "valid", "Test", "training"],
        "group": [1, 2, 3, 1],
        "id": ["w", "x", "y", "z"],
    }
    samples = read(write(folder, form, columns))
    assert samples.ids == ["w", "x", "y", "z"]
    assert samples.classes == ["cat", "dog"]
    assert samples.labels.tolist() == [0, 1, 0, 1]
    assert samples.splits == ["train", "validation", "test", "train"]
    assert samples.groups == ["1", "2", "3", "1"]
    assert samples.images.to_pylist()[1] == {"bytes": None, "path": str(folder / "img" / "b.png")}
    assert samples.folders == ["img"] * 4


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_labels_may_be_numbers_and_the_path_is_the_id(folder, form):
    samples = read(write(folder, form, {"file_name": [name for name, _ in ROWS], "class": [10, 9, 10, 2]}))
    assert samples.classes == ["2", "9", "10"]
    assert samples.labels.tolist() == [2, 1, 2, 0]
    assert samples.ids == [name for name, _ in ROWS]


def test_byte_order_mark_semicolons_quotes_and_windows_line_ends(folder):
    make_folder(folder, ['img/odd; "name".png'])
    text = '\ufeffImage;Label\r\nimg/a.png;"cat; or\r\nnot"\r\n"img/odd; ""name"".png";dög\r\n'
    samples = read(csv_of(folder, text))
    assert samples.classes == ["cat; or\r\nnot", "dög"]
    assert samples.ids == ["img/a.png", 'img/odd; "name".png']


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ('image,label\nimg/a.png,cat\nimg/b.png,"dog\nimg/c.png,cat\n', 4),  # would be one label of two lines
        ('image,label\nimg/a.png,"cat" or "dog"\n', 2),
        ('"image,label\nimg/a.png,cat\n', 2),
    ],
)
def test_a_quote_that_is_not_closed_is_refused(folder, text, row):
    with pytest.raises(DataError, match=rf"row {row}: .*A quote is not closed"):
        read(csv_of(folder, text))


def test_everything_wrong_is_in_one_error_with_file_and_row(folder):
    lines = [
        b"image,label,id,split",
        b"img/a.png,cat,1,train",
        b"img/nowhere.png,dog,2,train",
        b"img/b.png,,3,train",
        b"img/c.png,d\xf6g,4,train",
        b"img/d.png,dog,1,train",
        b"img/d.png,dog",
        b"img/d.png,-1,7,train",
        b"img/d.png,dog,8,extra",
        b",dog,9,test",
    ]
    path = csv_of(folder, b"\n".join(lines))
    with pytest.raises(DataError) as caught:
        read(path)
    causes = {
        3: f"no image at 'img/nowhere.png' (looked for {folder / 'img' / 'nowhere.png'})",
        4: "the label is missing",
        5: "not valid UTF-8",
        6: "'1' already stands in row 2",
        7: "2 cells, but the header has 4",
        8: "label -1 is out of range",
        9: "split 'extra' is not one of train",
        10: "the image path is missing",
    }
    assert len(caught.value.problems) == len(causes)
    for row, cause in causes.items():
        assert any(problem.startswith(f"{path}, row {row}: {cause}") for problem in caught.value.problems)


def test_twenty_problems_are_shown_and_the_others_counted(folder):
    path = csv_of(folder, "image,label\n" + "".join(f"img/{number}.png,cat\n" for number in range(500)))
    with pytest.raises(DataError) as caught:
        read(path)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "... and 480 more such problems."


def test_without_an_id_column_an_image_listed_twice_is_reported(folder):
    path = csv_of(folder, "image,label\nimg/a.png,cat\n./img/a.png,dog\n")
    with pytest.raises(DataError, match="row 3: 'img/a.png' already stands in row 2"):
        read(path)


def test_absolute_paths_and_climbing_paths_are_the_users_own(folder, tmp_path):
    below = folder / "tables"
    below.mkdir()
    text = f"image,label\n../img/a.png,cat\n{folder / 'img' / 'b.png'},dog\n"
    samples = read(csv_of(below, text))
    paths = [image["path"] for image in samples.images.to_pylist()]
    assert all(os.path.samefile(path, folder / name) for path, (name, _) in zip(paths, ROWS, strict=False))
    assert samples.ids == [str(folder / "img" / "a.png"), str(folder / "img" / "b.png")]


def test_columns_are_named_or_found(folder):
    path = csv_of(folder, "photo,diagnosis\nimg/a.png,cat\nimg/b.png,dog\n")
    with pytest.raises(DataError) as caught:
        read(path)
    assert len(caught.value.problems) == 2
    assert "give --data.image_column. Columns: photo, diagnosis." in caught.value.problems[0]
    with pytest.raises(DataError, match="no column 'diagnose'; did you mean 'diagnosis'"):
        read(path, image_column="photo", label_column="diagnose")
    assert read(path, image_column="photo", label_column="diagnosis").classes == ["cat", "dog"]


def test_the_group_column_is_named_or_called_group(folder):
    path = csv_of(folder, "image,label,patient,Group\nimg/a.png,cat,p1,g1\nimg/b.png,dog,p2,g1\n")
    assert read(path).groups == ["g1", "g1"]
    assert read(path, group="patient").groups == ["p1", "p2"]
    assert read(path, group="leaf").groups is None
    path = csv_of(folder, "image,label,group\nimg/a.png,cat,\nimg/b.png,dog,g\n")
    with pytest.raises(DataError, match="row 2: the group is missing"):
        read(path)


def test_damaged_tables(folder):
    with pytest.raises(DataError, match="is UTF-16. Save the file as UTF-8"):
        read(csv_of(folder, "image,label\n", "utf-16"))
    with pytest.raises(DataError, match="header names a column twice"):
        read(csv_of(folder, "image,label,label\n"))
    with pytest.raises(DataError, match="holds no rows"):
        read(csv_of(folder, "image,label\n"))
    path = csv_of(folder, '{"image": "img/a.png", "label": "cat"}\n{"image": \n[1]\n', name="x.jsonl")
    with pytest.raises(DataError) as caught:
        read(path)
    assert "row 2: not valid JSON" in caught.value.problems[0]
    assert "row 3: list, where an object is expected" in caught.value.problems[1]
    with pytest.raises(DataError, match="not a readable parquet file"):
        read(csv_of(folder, "no parquet", name="x.parquet"))


def test_parquet_text_types_of_other_libraries(folder):
    names = pa.array([name for name, _ in ROWS], pa.large_string())
    labels = pa.array([label for _, label in ROWS]).dictionary_encode()
    pq.write_table(pa.table({"image": names, "label": labels}), folder / "x.parquet")
    samples = read(folder / "x.parquet")
    assert samples.classes == ["cat", "dog"]
    assert samples.ids == [name for name, _ in ROWS]
