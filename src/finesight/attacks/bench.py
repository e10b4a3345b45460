"""What every condition of a stress test needs: the images, the model in its two forms, batches, draws and verdicts."""

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finesight.attacks.config import AttackConfig, written
from finesight.attacks.gradient import pgd
from finesight.attacks.model import attacking, logits_of, prepared
from finesight.attacks.scores import Condition
from finesight.engine import has_native_bf16
from finesight.errors import ModelError
from finesight.progress import Progress

FIRST_CHECK = 16
MOST_PIXELS, MOST_IMAGES = 1_000_000, 200
"""Of a batch: more pixels leave a processor's cache; 16 images of 256 x 256 went 1.4 times as fast as 50."""

Rows = NDArray[np.int64]
Say = Callable[[str], None]
Attack = Callable[[Tensor, Tensor, torch.Generator], Tensor]
Keep = Callable[[Rows, Tensor, Rows], None]


class Bench:
    """The images and the conditions measured so far.

    model: pixels float32 [B, 3, H, W] in [0, 1] to logits; images: uint8 [N, 3, H, W]; labels: int64 [N]; bf16: the
    precision of the verdicts. `attacked` is the copy of the model that gradients are taken of, `adversarial` the 8-bit
    images to be stored, `facts` what was chosen on the way.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Rows,
        ids: Sequence[str],
        config: AttackConfig,
        *,
        bf16: bool = False,
        say: Say = lambda _: None,
        shown: bool = False,
    ) -> None:
        self.model, self.images, self.labels, self.ids = model, images, np.asarray(labels), list(ids)
        self.config, self.bf16, self.say, self.shown = config, bf16, say, shown
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.steps_bf16 = config.bf16 == "on" or (config.bf16 == "auto" and has_native_bf16(self.device))
        self.attacked = prepared(model)
        fitting = MOST_PIXELS // images[0, 0].numel() if self.device.type == "cpu" else MOST_IMAGES
        self.batch_size = config.batch_size or min(max(fitting, 8), MOST_IMAGES)
        self.conditions: dict[str, Condition] = {}
        self.adversarial = images.clone()
        self.everything = np.arange(len(images))
        self.facts: dict[str, Any] = {
            "steps_in_bf16": self.steps_bf16, "verdicts_in_bf16": bf16, "batch_size": self.batch_size, "alone": {},
        }  # fmt: skip

    def check(self) -> None:
        """The copy that is attacked must give the logits of the model that judges. Raises `ModelError`.

        That an attack with eps 0 returns its images holds by construction (`pgd`), so it is no check of the attack:
        what shows one that fails are the alarms on noise, on more budget and on more steps.
        """
        rows = self.everything[:FIRST_CHECK]
        pixels, labels = self.pixels(rows), self.truth(rows)
        unmoved = pgd(self.attacked, pixels, labels, 0.0, 0.1, 1, norm=self.config.norm)
        with attacking(self.model, self.device), torch.no_grad():
            expected, found = logits_of(self.model, pixels, labels), logits_of(self.attacked, unmoved, labels)
        gap = (expected - found).abs().max().item()
        if gap > 1e-2 * max(1.0, expected.abs().max().item()):
            raise ModelError(
                f"An attack with eps 0 moves the logits of clean images by {gap:.3g}: the model that is attacked is "
                "not the one that is judged. Look for a model whose output depends on more than its input."
            )

    # ---- parts of a condition -----------------------------------------------------------------

    def pixels(self, rows: Rows) -> Tensor:
        """float32 [B, 3, H, W] in [0, 1]"""
        return self.images[torch.from_numpy(rows)].to(self.device).float() / 255

    def truth(self, rows: Rows) -> Tensor:
        return torch.from_numpy(self.labels[rows]).to(self.device)

    def judge(self, pixels: Tensor) -> Rows:
        """The likeliest classes, int64 [B], by the model as it is, in the precision of the verdicts."""
        return self.probabilities(pixels).argmax(1)

    def probabilities(self, pixels: Tensor) -> NDArray[np.float64]:
        """Of every class, [B, C], by the model as it is, in the precision of the verdicts."""
        with attacking(self.model, self.device, self.bf16), torch.no_grad():
            parts = [logits_of(self.model, part) for part in pixels.split(self.batch_size)]
        return torch.cat(parts).cpu().double().softmax(1).numpy()

    def generator(self, name: str, number: int) -> torch.Generator:
        """Draws of one batch of one condition, a function of (seed, name, number)."""
        digest = hashlib.blake2b(f"{self.config.seed}/{name}/{number}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

    def right(self, rows: Rows) -> Rows:
        """Those of `rows` that the model gets right without an attack."""
        return rows[self.conditions["clean"].predictions[rows] == self.labels[rows]]

    def named(self, kind: str, eps: float) -> str:
        return f"{kind} eps {written(eps, self.config.norm)}"

    def over(self, name: str, rows: Rows, attack: Attack, keep: Keep | None = None, *, shown: bool = True) -> Rows:
        """What the model makes of the images `rows` after the attack, batch by batch.

        `keep` gets the rows of a batch, the attacked images float32 [B, 3, H, W] and the predictions.
        """
        said, size = np.empty(len(rows), dtype=np.int64), self.batch_size
        progress = Progress(name, len(rows), "images", shown=self.shown and shown)
        for number, start in enumerate(range(0, len(rows), size)):
            part = rows[start : start + size]
            result = attack(self.pixels(part), self.truth(part), self.generator(name, number))
            said[start : start + size] = predicted = self.judge(result)
            if keep is not None:
                keep(part, result, predicted)
            progress.update(start + len(part))
        progress.close()
        return said

    def ascent(self, model: nn.Module, eps: float, iters: int, *, early_stop: bool) -> Attack:
        """PGD from a random start, bound to its numbers."""
        step, norm = self.config.step_of(eps, iters), self.config.norm

        def attack(pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
            return pgd(
                model, pixels, labels, eps, step, iters,
                norm=norm, generator=generator, bf16=self.steps_bf16, early_stop=early_stop,
            )  # fmt: skip

        return attack

    def record(self, name: str, kind: str, rows: Rows, said: Rows, since: float, **about: Any) -> None:
        """Keep a condition that began at `since` (time.monotonic)."""
        self.conditions[name] = found = Condition(kind, rows, said, time.monotonic() - since, about)
        if kind != "corruption":
            self.say(f"  {name:<34} {found.accuracy(self.labels):7.1%} of {len(rows):,}  ({found.seconds:.1f} s)")
