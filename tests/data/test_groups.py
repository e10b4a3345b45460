import numpy as np
import pytest

from finesight.data.groups import merge, resolve
from finesight.data.samples import Samples, path_images
from finesight.errors import ConfigError, DataError

IDS = ["train/A/u___RS 12_flipLR.jpg", "train/A/v___RS 12.jpg", "train/A/p7/x.jpg", "test/B/p7/y.jpg"]


def samples(**fields):
    return Samples(IDS, np.array([0, 0, 0, 1]), ["A", "B"], path_images(IDS), **fields)


def test_without_a_rule_samples_are_independent():
    assert resolve(samples(), None) == IDS
    assert resolve(samples(groups=["a", "b", "c", "d"]), None) == ["a", "b", "c", "d"]


def test_folder_is_the_one_below_the_class_whatever_the_class():
    assert resolve(samples(folders=["", "", "p7", "p7"]), "folder") == [IDS[0], IDS[1], "p7", "p7"]
    with pytest.raises(DataError, match="'folder' needs images in folders below their class"):
        resolve(samples(folders=[""] * 4), "folder")


def test_leaf_comes_from_the_file_name():
    assert resolve(samples(), "leaf") == ["a/rs 12", "a/rs 12", "p7/x", "p7/y"]
    arrays = Samples(["train/00001"], np.array([0]), ["A"], path_images(["x"]))
    with pytest.raises(DataError, match=r"1 of 1 ids are no image file names: 'train/00001'"):
        resolve(arrays, "leaf")


def test_a_regular_expression_names_the_group():
    assert resolve(samples(), r"/([AB])/") == ["A", "A", "A", "B"]
    with pytest.raises(DataError, match=r"2 of 4 ids do not match .*'train/A/u___RS 12_flipLR.jpg'"):
        resolve(samples(), r"(p\d)")
    with pytest.raises(DataError, match="4 of 4 ids do not match"):
        resolve(samples(), r"(zzz)?")


@pytest.mark.parametrize(
    ("rule", "cause"),
    [
        ("(p\\d", "not a valid regular expression"),
        ("patient", r"exactly one group in round brackets.*has 0\. Columns: image, subject\."),
        ("(a)(b)", "has 2"),
    ],
)
def test_an_impossible_rule_is_an_error_of_configuration(rule, cause):
    with pytest.raises(ConfigError, match=cause):
        resolve(samples(columns=["image", "subject"]), rule)


def test_merging_joins_chains():
    groups = ["a", "b", "c", "d", "e", "a"]
    assert merge(groups, [1, 1, 2, 2, 3, 4]) == ["a", "a", "c", "c", "e", "a"]
    # b and c share cluster 5, c and d share cluster 6: one chain, whatever the order of rows.
    assert merge(["b", "c", "c", "d", "x"], [5, 5, 6, 6, 7]) == ["b", "b", "b", "b", "x"]
    assert merge(["d", "c", "c", "b", "x"], [6, 6, 5, 5, 7]) == ["b", "b", "b", "b", "x"]
    assert merge(["a", "b"], [1, 2]) == ["a", "b"]
