"""From a configured name to a variational autoencoder."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from finesight.config import Section
from finesight.errors import ModelError
from finesight.models.endovae import Bottleneck, EndoVAE

_FILE = "model.json"
BOTTLENECKS: dict[str, Bottleneck] = {"endovae": "dense", "endovae-light": "convolutional"}


class VAEConfig(Section):
    """Which variational autoencoder."""

    name: Literal["endovae", "endovae-light"] = Field(
        "endovae", description="endovae-light has a 1 x 1 convolution in place of the dense layer of 9.4 M weights"
    )
    latent: int = Field(6, ge=1, description="Dimensions of the latent space")
    image_size: int = Field(
        96, ge=16, multiple_of=8, description="Side of the square images in pixels, a multiple of 8"
    )

    BUILT_IN: ClassVar[tuple[str, ...]] = tuple(BOTTLENECKS)


def build(config: VAEConfig, saved: Path | None = None) -> EndoVAE:
    """The model with random weights; with `saved` (of `save_spec`) the architecture of a finished run."""
    arguments: dict[str, Any] = {
        "latent": config.latent,
        "image_size": config.image_size,
        "bottleneck": BOTTLENECKS[config.name],
    }
    if saved is not None:
        try:
            arguments = json.loads((saved / _FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{saved / _FILE}: cannot be read ({error}); restore it from a copy of the run.") from None
    return EndoVAE(**arguments)


def save_spec(model: EndoVAE, directory: Path) -> None:
    """Write what `build(config, saved=directory)` rebuilds the architecture from."""
    directory.mkdir(parents=True, exist_ok=True)
    spec = {"latent": model.latent, "image_size": model.image_size, "bottleneck": model.bottleneck}
    (directory / _FILE).write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
