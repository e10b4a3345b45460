"""Which leaf a PlantVillage file shows, from its name.

Names as they are in the published set and its copies:

    002213fb-b620-4593-b9ac-6a6cc119b100___Com.G_TgS_FL 8360.jpg        photo 8360
    01b2013e-4030-4cd0-843c-2dbacf5f3758___Com.G_TgS_FL 8398_flipTB.jpg a mirrored copy of photo 8398
    ..._180deg  _90deg  _270deg  _flipLR  _new30degFlipLR  _newPixel25  further copies
    48c55974-9fe9-4f4b-94f7-c8cd127d1e05___GHLB_PS Leaf 23.7 Day 13.jpg leaf 23 on one of several days
    a6e38349-62a4-43e6-bf92-84bc17e6d8eb___GH_HL Leaf 485.1.jpg         a further photo of leaf 485
    5496 copy 2                                                         a tile cut from photo 5496
    b (12).jpg                                                          renumbered by a later editor

The code before the number is place and disease, the UUID is new in every upload of the same photo,
so a leaf is its class with code and number. Of most leaves several photos were taken one after the
other; names do not say where one leaf ends. `--data.near_duplicates group` finds many of these, and
a CSV with a `group` column made from the publisher's leaf map finds all.
"""

import re
from pathlib import PurePosixPath

from finesight.data.images import EXTENSIONS

_UPLOAD = re.compile(r"^.*___")
_COPY = re.compile(
    r"(_(new)?\d+deg(flip(LR|TB))?|_flip(LR|TB)|_newPixel\d+|_newG[A-Z]{2}|\s+copy(\s*\d+)?|(?<=\d)\s\d)$",
    re.I,
)
_LEAF_NUMBER = re.compile(r"(\bleaf\s+\d+)(\.\d+)?(\s+day\s+\d+)?$", re.I)


def leaf_id(path: str) -> str:
    """`.../CLASS/NAME.jpg` -> `CLASS/code number` in lower case, the same for every copy of one photo."""
    place = PurePosixPath(path.replace("\\", "/"))
    name = _UPLOAD.sub("", place.stem if place.suffix.lower() in EXTENSIONS else place.name).strip()
    while (shorter := _COPY.sub("", name).strip()) != name:
        name = shorter
    name = _LEAF_NUMBER.sub(r"\1", name)
    return f"{place.parent.name}/{' '.join(name.split())}".lower()
