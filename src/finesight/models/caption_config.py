"""What a user says about a captioner; read by `captioner.build`. Imports no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from finesight.config import Section
from finesight.errors import ModelError

NAMED: Mapping[str, tuple[dict[str, int], dict[str, int]]] = {
    "small-captioner": (
        {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512,
         "image_size": 96, "patch_size": 12},
        {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 256, "vocab_size": 2048},
    ),
    "vit-base+distilgpt2": ({}, {"n_layer": 6}),
}  # fmt: skip
"""What differs from ViT base and from GPT-2; both halves begin with random weights."""


class CaptionerConfig(Section):
    """Which captioner, and from where its weights come."""

    name: str = Field(
        "small-captioner",
        min_length=1,
        description=f"{', '.join(NAMED)} (random weights); ENCODER+LANGUAGE_MODEL, each a local folder or a Hub id; or "
        "one existing captioner (a pair saved as one model, BLIP, GIT)",
    )
    tokenizer: str | None = Field(
        None,
        description="Folder of a tokenizer (or of GPT-2's vocabulary files); that of the language model if none, and "
        "one learnt from the training captions for random weights",
    )
    revision: str | None = Field(
        None,
        description="Commit, tag or branch of a model on the Hub; of a pair two, as ENCODER+LANGUAGE_MODEL, one of "
        "which may be empty",
    )
    pretrained: bool = Field(True, description="false takes only the architecture of folders and Hub models")
    image_size: int | None = Field(
        None, ge=8, description="Side of the square input in pixels, where weights are random; the model's own if none"
    )
    longest: int = Field(128, ge=4, description="Tokens of a training caption; what is behind them is cut off")
    attention: Literal["auto", "eager", "sdpa"] = Field("auto", description="auto is eager on a CPU, sdpa on a GPU")

    @field_validator("name", "tokenizer")
    @classmethod
    def _whole_paths(cls, value: str | None) -> str | None:
        """Folders made absolute, both of a pair, so that the run can be continued from anywhere."""
        if value is None or value in NAMED or Path(value).expanduser().is_dir():
            return value if value is None or value in NAMED else str(Path(value).expanduser().absolute())
        parts = [Path(part.strip()).expanduser() for part in value.split("+")]
        names = [
            str(path.absolute()) if path.is_dir() else part.strip()
            for path, part in zip(parts, value.split("+"), strict=True)
        ]
        return "+".join(names)


def check_revision(config: CaptionerConfig) -> None:
    """Raise `ModelError` for a revision of what has none: random weights, and folders on this machine."""
    if config.revision is None:
        return
    asked = names(config)
    if len(revisions(config)) != len(asked):
        raise ModelError(
            f"model.revision {config.revision!r}: {config.name} is {len(asked)} model{'s' * (len(asked) > 1)}. Give "
            "one revision for each, two joined by a plus sign (one of them may be empty)."
        )
    for name, revision in zip(asked, revisions(config), strict=True):
        if revision and (name in NAMED or Path(name).expanduser().is_dir()):
            what = "random weights" if name in NAMED else "a folder on this machine"
            raise ModelError(
                f"model.revision {config.revision!r}: {name} is {what} and has no revisions; leave it out."
            )


def names(config: CaptionerConfig) -> list[str]:
    """The one model that is named, or the two of a pair."""
    whole = config.name in NAMED or Path(config.name).expanduser().is_dir()
    return [config.name] if whole else [part.strip() for part in config.name.split("+")]


def revisions(config: CaptionerConfig) -> list[str | None]:
    """The revision of each of `names`."""
    if config.revision is None:
        return [None] * len(names(config))
    return [part.strip() or None for part in config.revision.split("+")]
