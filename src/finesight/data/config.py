"""What a user says about the data; read by `loading.load`."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from finesight.config import Section
from finesight.errors import ConfigError


class DataConfig(Section):
    """Where the images are, how they are split and prepared."""

    root: str | None = Field(
        None,
        description="Image folder, zip of one, CSV/JSONL/parquet with paths, npz, CIFAR-10 python batches, "
        "'sklearn:digits', or 'hub:OWNER/NAME'",
    )
    revision: str | None = Field(None, description="Commit or tag of a hub dataset")
    image_column: str | None = Field(None, description="Column with the image or its path; found by name if not given")
    label_column: str | None = Field(None, description="Column with the label; found by name if not given")
    group: str | None = Field(
        None,
        description="Samples that share an origin stay in one split: a column name, 'folder', 'leaf' (PlantVillage "
        "file names), or a regular expression with one group, searched in the sample's id",
    )
    near_duplicates: Literal["ignore", "group"] = Field(
        "ignore", description="'group' also keeps visually near-identical images in one split"
    )
    splits: Literal["given", "new"] = Field(
        "given",
        description="'given' keeps the splits of the source and makes missing ones; 'new' pools and splits anew",
    )
    validation: float = Field(0.1, gt=0, lt=1, description="Share of the training images held out to choose the epoch")
    test: float = Field(
        0.2, gt=0, lt=1, description="Share held out for the final number, where the source has no test split"
    )
    limit_train: int | None = Field(None, ge=1, description="Use at most this many training images, stratified")
    limit_validation: int | None = Field(None, ge=1, description="Use at most this many validation images, stratified")
    limit_test: int | None = Field(None, ge=1, description="Use at most this many test images, stratified")
    skip_bad: int = Field(0, ge=0, description="Leave out up to this many unreadable images instead of stopping")
    sixteen_bit: Literal["full", "minmax"] = Field(
        "full",
        description="16-bit images to 8: by the full range 0-65535, or by each image's own minimum and maximum",
    )
    fit: Literal["squash", "crop", "pad", "border"] | None = Field(
        None,
        description="How an image becomes square: stretched, centre-cropped, black borders added, or an endoscope's "
        "black border cut off; the model's own if none",
    )
    size: int | None = Field(
        None,
        ge=8,
        description="Side in pixels at which images are held before augmentation; default: the model's input",
    )
    cache_dir: str | None = Field(
        None, description="Folder for decoded images and features; default ~/.cache/finesight"
    )

    def require(self) -> None:
        """Raise `ConfigError` where no data is named."""
        if self.root is None:
            raise ConfigError(
                "data.root: required, and not given. Name your images: --data.root FOLDER "
                "(or a zip, CSV, npz, hub:OWNER/NAME)."
            )

    @property
    def where(self) -> str | None:
        """The source, for run.json and the report."""
        return self.root

    def notes(self, data: Mapping[str, Any]) -> list[str]:
        """How the data was split, in sentences for the report."""
        given = self.splits == "given"
        notes = [
            "Splits of the source were kept where it has them." if given else "All images were pooled and split anew."
        ]
        if self.group is not None:
            count = sum(len(set(data[split]["group"])) for split in data)
            notes.append(f"Samples that share '{self.group}' stay in one split ({count:,} groups).")
        if self.near_duplicates == "group":
            notes.append("Visually near-identical images stay in one split.")
        return notes
