"""What a CLIP learns against attacks: the options of `defence`. Imports no torch."""

from typing import Literal

from pydantic import Field, field_validator

from finesight.attacks.config import length
from finesight.config import Section

ADVERSARIAL = "adversarial_accuracy"


class DefenceConfig(Section):
    """What the vision tower learns from. Lengths are in units of a pixel's range, such as 4/255."""

    method: Literal["none", "cross-entropy", "tecoa", "fare", "coprompt"] = Field(
        "none",
        description="none: zero-shot as it is; cross-entropy with the prompts, on clean images; tecoa: the same on "
        "adversarial images; fare: adversarial images keep the original features, without labels; coprompt: "
        "cross-entropy, and consistency with the original model on changed images and other prompts",
    )
    eps: float | str = Field("4/255", description="tecoa, fare: budget of the attack (l-infinity) during training")
    iters: int = Field(3, ge=1, description="tecoa, fare: steps of the attack during training")
    step: float | str | None = Field(
        None, description="tecoa, fare: length of a step; default 2.5 eps / iters, at most eps"
    )
    consistency: float = Field(8.0, ge=0, description="coprompt: weight of the consistency")
    validated: int = Field(
        500, ge=1, description=f"Validation images on which {ADVERSARIAL} is measured after each epoch (PGD, 10 steps)"
    )

    @field_validator("eps", "step")
    @classmethod
    def _are_lengths(cls, value: float | str | None) -> float | str | None:
        if value is not None and length(value) > 1:
            raise ValueError(f"{value} is wider than the range of a pixel; for 8-bit steps write {length(value):g}/255")
        return value

    @property
    def budget(self) -> float:
        return length(self.eps)

    @property
    def stride(self) -> float:
        """The length of one step."""
        return min(self.budget, 2.5 * self.budget / self.iters) if self.step is None else length(self.step)
