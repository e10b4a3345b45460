"""What a user says about the adaptation; read by `methods.apply`. Imports no torch."""

from typing import Literal

from pydantic import Field

from finesight.config import Section


class AdaptConfig(Section):
    """Which parameters are trained."""

    method: Literal["full", "head", "lora", "prompts"] = Field(
        "full",
        description="Train everything, only the head, low-rank adapters (LoRA) and the head, or visual prompts and "
        "the head",
    )
    rank: int = Field(8, ge=1, description="Rank of the LoRA matrices")
    alpha: float = Field(16.0, gt=0, description="LoRA scale; the update is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the input of the LoRA matrices")
    targets: list[str] | None = Field(
        None, description="Modules that get LoRA, by full name or its end; attention query and value if none"
    )
    modules_to_save: list[str] | None = Field(
        None, description="Modules trained in full beside LoRA, by full name or its end, such as new cross-attention"
    )
    prompts: int = Field(
        10, ge=1, description="Tokens that method prompts learns; they join those of the image behind [CLS]"
    )
    allow_random_frozen: bool = Field(
        False,
        description="Accept parameters that are neither pretrained nor trained (a random frozen backbone)",
    )
