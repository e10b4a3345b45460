"""What a user says about the model; read by `backbones.build`. Imports no torch."""

from typing import ClassVar, Literal

from pydantic import Field

from finesight.config import Section

NAMED = ("small-cnn", "mlp", "leaf-vit-64", "leaf-vit-256", "inception-v3", "pixelda", "resnet20")


class ModelConfig(Section):
    """Which classifier, from where its weights come, and its few free choices."""

    name: str = Field(
        "small-cnn",
        min_length=1,
        description=f"{', '.join(NAMED)}, a local Hugging Face folder, a Hub id OWNER/NAME (or "
        "hf:OWNER/NAME), or timm:NAME",
    )
    weights: str | None = Field(
        None,
        description="Local weight file (.safetensors, .pth, .th, .pt) for a named architecture or timm:NAME",
    )
    revision: str | None = Field(None, description="Commit, tag or branch of a Hub model")
    pretrained: bool = Field(True, description="false takes only the architecture of a Hugging Face or timm model")
    image_size: int | None = Field(
        None, ge=8, description="Side of the square input in pixels; the model's own if none"
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout before the head's last layer; the model's own if none"
    )
    hidden: int = Field(512, ge=1, description="Hidden units in the head of inception-v3")
    width: int = Field(32, ge=4, description="Channels of the first layer of small-cnn")
    attention: Literal["auto", "eager", "sdpa"] = Field(
        "auto", description="Attention of Hugging Face models; auto is eager on a CPU, sdpa on a GPU"
    )

    BUILT_IN: ClassVar[tuple[str, ...]] = NAMED
