"""Captions in the JSON of COCO: `images` beside `annotations`, or `images` with `sentences` and splits (Karpathy).

The first form is that of captions_train2017.json (Chen et al. 2015, 1504.00325): images {id, file_name}, annotations
{image_id, caption}. The second is that of dataset_coco.json, dataset_flickr8k.json and dataset_flickr30k.json
(Karpathy & Fei-Fei 2015): images {filepath (if any), filename, split, sentences: [{raw}]}; its split "restval" is
used for training, as is usual.
"""

import json
import os
from pathlib import Path
from typing import Any

from finesight.data.config import DataConfig
from finesight.data.problems import refuse
from finesight.data.samples import Samples
from finesight.data.tables import from_columns
from finesight.errors import DataError

COLUMN = "caption"
_FORMS = (
    "expected {images: [{id, file_name}], annotations: [{image_id, caption}]}, or Karpathy's {images: [{filename, "
    "split, sentences: [{raw}]}]}"
)


def read(path: Path, config: DataConfig, folder: str | None) -> Samples:
    """Samples of such a file, one for each image; ids are the file names.

    The classes are the lists of captions as text. The file names begin from `folder`, or from the first of
    these in which the first image is: the folder of `path`, `images` in it, the one above, there a folder named after
    the file (captions_val2017.json: val2017), and `images`. Raises one `DataError` with all that is wrong, entries
    counted from 1.
    """
    content = _json(path)
    problems: list[str] = []
    images = content["images"]
    entries = _karpathy(images) if "annotations" not in content else _coco(path, content, problems)
    lost = [number for number, (name, _, _) in enumerate(entries, start=1) if not name]
    if lost:
        raise DataError(f"{path}: {len(lost)} images have no file name, such as number {lost[0]}; {_FORMS}.")
    home = _home(path, entries[0][0], folder)
    columns: dict[str, list[Any]] = {
        "image": [os.path.join(home, name) for name, _, _ in entries],
        "id": [name for name, _, _ in entries],
        COLUMN: [[text if text is None else str(text) for text in texts] or None for _, texts, _ in entries],
    }
    if any(split for _, _, split in entries):
        columns["split"] = ["train" if split == "restval" else split for _, _, split in entries]
    chosen = config.model_copy(update={"image_column": "image", "label_column": COLUMN})
    return from_columns(path, range(1, len(entries) + 1), columns, chosen, problems)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({' '.join(str(error).split())[:200]}).") from None
    lists = [content.get(name, []) for name in ("images", "annotations")] if isinstance(content, dict) else [None]
    if not all(isinstance(found, list) and all(isinstance(entry, dict) for entry in found) for found in lists):
        raise DataError(f"{path}: not the JSON of COCO; {_FORMS}.")
    if not lists[0]:
        raise DataError(f"{path}: lists no images; {_FORMS}.")
    return content


def _karpathy(images: list[dict[str, Any]]) -> list[tuple[str, list[Any], str | None]]:
    """(file name, captions, split) of each image."""
    found = []
    for image in images:
        name = os.path.join(
            str(image.get("filepath") or ""), str(image.get("filename") or image.get("file_name") or "")
        )
        sentences = image.get("sentences") or []
        captions = [one.get("raw") if isinstance(one, dict) else one for one in sentences]
        found.append((name, captions, image.get("split")))
    return found


def _coco(path: Path, content: dict[str, Any], problems: list[str]) -> list[tuple[str, list[Any], str | None]]:
    """(file name, captions, split) of each image; annotations of no image are added to `problems`."""
    images = content["images"]
    captions: dict[str, list[Any]] = {str(image.get("id")): [] for image in images}
    if len(captions) < len(images):
        raise DataError(f"{path}: {len(images) - len(captions)} images have no id of their own; {_FORMS}.")
    for number, entry in enumerate(content["annotations"], start=1):
        of_image = captions.get(str(entry.get("image_id")))
        if of_image is None:
            problems.append(f"{path}, annotation {number}: no image with the id {entry.get('image_id')!r}.")
        else:
            of_image.append(entry.get("caption"))
    refuse(problems if len(problems) == len(content["annotations"]) else [])
    return [(str(image.get("file_name") or ""), captions[str(image.get("id"))], image.get("split")) for image in images]


def _home(path: Path, name: str, folder: str | None) -> str:
    """The folder that the file names begin from; that of `path` where the first image is nowhere."""
    here, above = path.parent, path.parent.parent
    places = [here, here / "images", above, above / path.stem.rpartition("_")[2], above / "images"]
    if folder is not None:
        places = [Path(folder)]
        if not places[0].is_dir():
            raise DataError(f"data.image_folder {folder}: no such folder.")
    return str(next((place for place in places if (place / name).is_file()), places[0]))
