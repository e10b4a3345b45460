"""The options of `finesight attack`; imports no torch."""

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from finesight.config import Section, describe

BUDGETS = {
    "linf": ["0.5/255", "1/255", "2/255", "4/255", "8/255"],
    "l2": ["0.25", "0.5", "1", "2"],
}
"""The budgets that are tried where none is given, by norm."""

USAGE = """\
usage: finesight attack RUN [options]

Stress-test a finished classification run: accuracy under attacks of growing strength, under transferred attacks,
under an ensemble of attacks and under corruptions, with intervals; written into RUN/attack and into RUN/report.html.

  --overwrite
        Replace the results of an earlier stress test of this run
  --stored FILE.npz
        Only measure this run on the stored adversarial images of another run (its attack/adversarial.npz)
  --json
        Print the results as JSON
"""


class AttackConfig(Section):
    """What a stress test measures, and how hard it tries. Lengths are in units of a pixel's range."""

    eps: list[float | str] | None = Field(
        None,
        description="Budgets of the attacks, as 8/255 or 0.03; default "
        + "; ".join(f"{','.join(eps)} with {norm}" for norm, eps in BUDGETS.items()),
    )
    norm: Literal["linf", "l2"] = Field("linf", description="How a perturbation is measured")
    iters: int = Field(20, ge=1, description="Steps of PGD")
    step: float | str | None = Field(None, description="Length of a step of PGD; default 2.5 eps / steps")
    restarts: int = Field(1, ge=1, description="Random starts of PGD for each image that withstands")
    images: int = Field(1000, ge=1, description="Test images, drawn by seed and id in the classes' proportions")
    steps: list[int] = Field(
        [1, 2, 5, 10, 20, 50],
        description="Numbers of steps to compare at the budget where PGD halves the accuracy; --steps= for none",
    )
    steps_images: int = Field(200, ge=1, description="Images of that comparison")
    auto: int = Field(
        200,
        ge=0,
        description="Images for the ensemble of APGD, targeted APGD (with 4 classes or more) and Square; 0 is off",
    )
    auto_eps: float | str | None = Field(None, description="Budget of the ensemble; default the largest of eps")
    auto_iters: int = Field(100, ge=1, description="Steps of APGD")
    queries: int = Field(5000, ge=1, description="Queries of Square for each image")
    surrogate: str | None = Field(
        None, description="Weights of a CIFAR ResNet-20 (.th), or another run: attack that, and judge this run"
    )
    corruptions: list[str] = Field(
        ["all"],
        description="all, none, or some of gaussian_noise, shot_noise, impulse_noise, defocus_blur, motion_blur, "
        "brightness, contrast, pixelate, jpeg; at five severities each",
    )
    seed: int = Field(0, ge=0, description="Seed of the choice of images, the random starts and the corruptions")
    bf16: Literal["auto", "on", "off"] = Field(
        "auto", description="Steps of PGD in bf16; the verdict is in the run's own precision. auto: where it is native"
    )
    batch_size: int | None = Field(
        None, ge=1, description="Images attacked at once; default a million pixels' worth, at most 200"
    )

    @field_validator("eps", "step", "auto_eps")
    @classmethod
    def _are_lengths(cls, given: Any) -> Any:
        for value in given if isinstance(given, list) else [given]:
            if value is not None:
                length(value)
        if given == []:
            raise ValueError("give one budget or more, such as 8/255")
        return given

    @field_validator("steps")
    @classmethod
    def _are_counts(cls, given: list[int]) -> list[int]:
        if any(count < 1 for count in given):
            raise ValueError("a number of steps is 1 or more")
        return sorted(set(given))

    @model_validator(mode="after")
    def _within_a_pixel(self) -> "AttackConfig":
        widest = max(self.budgets[-1], self.ensemble_budget)
        if self.norm == "linf" and widest > 1:
            raise ValueError(f"eps {widest:g} is wider than the range of a pixel; for 8-bit steps write {widest:g}/255")
        return self

    @property
    def wanted_eps(self) -> list[float | str]:
        """`eps`, or what is usual for the norm. Not filled in before: another norm may yet be laid over it."""
        return self.eps or list(BUDGETS[self.norm])

    @property
    def budgets(self) -> list[float]:
        """The lengths of `eps`, or those usual for the norm, smallest first; none twice, as `written` writes them."""
        lengths = sorted(length(value) for value in self.wanted_eps)
        return list({written(value, self.norm): value for value in lengths}.values())

    @property
    def ensemble_budget(self) -> float:
        """The length of `auto_eps`."""
        return self.budgets[-1] if self.auto_eps is None else length(self.auto_eps)

    def step_of(self, eps: float, iters: int) -> float:
        """The length of one of `iters` steps within `eps`."""
        return 2.5 * eps / iters if self.step is None else length(self.step)


def length(value: float | str) -> float:
    """'8/255' -> 8 / 255. Raises `ValueError` for what is no positive number."""
    above, slash, below = str(value).partition("/")
    try:
        found = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is no length; give a number such as 0.03, or a fraction such as 8/255") from None
    if not (math.isfinite(found) and found > 0):
        raise ValueError(f"{value!r} is no length above 0; accuracy without an attack is measured anyway")
    return found


def written(eps: float, norm: str) -> str:
    """'8/255' for linf, the plain number for l2; four digits."""
    return f"{255 * eps:.4g}/255" if norm == "linf" else f"{eps:.4g}"


def usage() -> str:
    """Everything `finesight attack --help` says."""
    return f"{USAGE}{describe(AttackConfig)}\n"
