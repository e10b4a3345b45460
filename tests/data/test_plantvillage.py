import zipfile
from collections import defaultdict

import pytest

from finesight.data.plantvillage import leaf_id

SPOT = "Tomato___Target_Spot"


@pytest.mark.parametrize(
    "suffix",
    ["", "_flipTB", "_flipLR", "_180deg", "_90deg", "_270deg", "_new30degFlipLR", "_new200degFlipTB", "_newPixel25"]
    + ["_newGRR", " copy", " copy 2", " 1", "_180deg_flipTB"],
)
@pytest.mark.parametrize("extension", [".jpg", ".JPG", ".png", ""])
def test_every_copy_of_a_photo_is_the_same_leaf(suffix, extension):
    name = f"train/{SPOT}/01b2013e-4030-4cd0-843c-2dbacf5f3758___Com.G_TgS_FL 8398{suffix}{extension}"
    assert leaf_id(name) == "tomato___target_spot/com.g_tgs_fl 8398"


@pytest.mark.parametrize(
    ("name", "leaf"),
    [
        ("a6e38349-62a4-43e6-bf92-84bc17e6d8eb___GH_HL Leaf 485.1.jpg", "gh_hl leaf 485"),
        ("48c55974-9fe9-4f4b-94f7-c8cd127d1e05___GHLB_PS Leaf 23.7 Day 13.jpg", "ghlb_ps leaf 23"),
        ("1f38a263-cfb5-47fe-8c0e-f8d62141f922___GHLB_PS leaf 28 Day 12 .jpg", "ghlb_ps leaf 28"),
        ("41474732-acc4-4262-931e-9b719abfb8c3___GHLB2 Leaf 8719.jpg", "ghlb2 leaf 8719"),
        ("08bb7828-0b4b-49e7-971a-f3047e3769de___UF.GRC_YLCV_Lab 08423.jpg", "uf.grc_ylcv_lab 08423"),
        ("00416648-be6e-4bd4-bc8d-82f43f8a7240___GCREC_Bact.Sp 3110.jpg", "gcrec_bact.sp 3110"),
        ("b (12).jpg", "b (12)"),
        ("b (1).jpg", "b (1)"),
    ],
)
def test_real_names(name, leaf):
    assert leaf_id(f"test/Tomato___X/{name}") == f"tomato___x/{leaf}"


def test_another_photo_or_class_is_another_leaf():
    assert leaf_id(f"{SPOT}/u___Com.G_TgS_FL 8398.jpg") != leaf_id(f"{SPOT}/u___Com.G_TgS_FL 8399.jpg")
    assert leaf_id("A/u___RS_HL 0135.jpg") != leaf_id("B/u___RS_HL 0135.jpg")


def test_the_tomato_archive_has_its_copies_grouped(real_data):
    with zipfile.ZipFile(real_data / "tomato/tomato.zip") as archive:
        names = archive.namelist()
    assert sum(any(mark in name for mark in ("deg", "_flip", "_newPixel")) for name in names) == 105
    # Here every photo was uploaded once, so its UUID must give the same grouping.
    by_leaf, by_upload = defaultdict(set), defaultdict(set)
    for name in names:
        by_leaf[leaf_id(name)].add(name)
        folder, file = name.rsplit("/", 1)
        by_upload[folder.split("/")[1], file.split("___")[0]].add(name)
    assert len(by_leaf) == 908
    assert sorted(map(sorted, by_leaf.values())) == sorted(map(sorted, by_upload.values()))
    for group in by_leaf.values():
        assert len({name.split("/")[0] for name in group}) == 1  # no leaf on both sides of the given split
