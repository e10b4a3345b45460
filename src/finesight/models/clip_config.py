"""What a user says about a zero-shot classifier; read by `clip.build`. Imports no torch."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from finesight.config import Section

NAMED = ("small-clip", "clip-vit-base-patch32")
TEMPLATE = "a photo of a {}."


def template_problem(template: str) -> str | None:
    """What is wrong with a template for a class name, None for nothing."""
    count = template.count("{}")
    if count != 1 or "{" in template.replace("{}", "") or "}" in template.replace("{}", ""):
        return (
            f"the template {template!r} has {count} places for the class name; write {{}} exactly once and no other "
            f"braces, such as {TEMPLATE!r}"
        )
    return None


class ClipConfig(Section):
    """Which CLIP, from where its weights come, and the sentences that stand for a class."""

    name: str = Field(
        "small-clip",
        min_length=1,
        description=f"{', '.join(NAMED)} (random weights), a local Hugging Face folder of a CLIP, or a Hub id "
        "OWNER/NAME (or hf:OWNER/NAME) such as openai/clip-vit-base-patch32",
    )
    revision: str | None = Field(None, description="Commit, tag or branch of a Hub model")
    pretrained: bool = Field(True, description="false takes only the architecture of a folder or Hub model")
    attention: Literal["auto", "eager", "sdpa"] = Field("auto", description="auto is eager on a CPU, sdpa on a GPU")
    image_size: int | None = Field(
        None,
        ge=8,
        description="Side of the square input in pixels, a multiple of the patch size; the model's own if none. "
        "Another size interpolates the pretrained positions",
    )
    tokenizer: str | None = Field(
        None, description="Folder of a tokenizer; that of the model if none, and single bytes for a random model"
    )
    templates: list[str] = Field(
        [TEMPLATE],
        min_length=1,
        description="Sentences with {} for the class name; several are an ensemble (mean of their unit vectors). An "
        'article before {} fits the name. As a flag with commas inside, give JSON: ["a {}, a pet.", "the {}."]',
    )

    BUILT_IN: ClassVar[tuple[str, ...]] = NAMED

    @field_validator("templates")
    @classmethod
    def _one_place_each(cls, value: list[str]) -> list[str]:
        problems = [problem for template in value if (problem := template_problem(template))]
        if len(set(value)) != len(value):
            problems.append("a template stands twice, and would count twice")
        if problems:
            raise ValueError("; ".join(problems))
        return value

    @field_validator("name", "tokenizer")
    @classmethod
    def _whole_paths(cls, value: str | None) -> str | None:
        """Folders made absolute, so that the run can be continued from anywhere."""
        if value is None or value in NAMED or not Path(value).expanduser().is_dir():
            return value
        return str(Path(value).expanduser().absolute())
