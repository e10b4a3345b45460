"""A training step of CLIP ViT-B/32 with LoRA on adversarial images (TeCoA), 224 pixels, batch 64, against float32.

The peer is a careful notebook: transformers' CLIPModel with peft's LoRA on queries, keys and values in float32, an
attack as in torchattacks (gradients of the image alone), the prompts read once. Both attack with three steps and
then update the same 442,368 weights. Random weights, random images: timing alone.
"""

import tempfile
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import timing
from finesight import config as configuration
from finesight.data.cifar10 import CLASSES
from finesight.engine import Engine
from finesight.reopen import quiet
from finesight.tasks.robustness import Robustness, RobustnessConfig

BATCH, SIZE, EPS, STEPS, ROUNDS = 64, 224, 4 / 255, 3, 2


class _Peer:
    """Plain transformers and peft, float32."""

    def __init__(self) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import CLIPConfig, CLIPModel

        targets = r"vision_model.*\.(q_proj|k_proj|v_proj)"
        lora = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=targets)
        self.model = get_peft_model(CLIPModel(CLIPConfig()), lora)
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        assert sum(weight.numel() for weight in self.weights) == 442_368
        self.optimizer = torch.optim.AdamW(self.weights, 5e-4)
        texts = torch.randint(0, 49_000, (len(CLASSES), 9))
        texts[:, -1] = 49_407
        with torch.no_grad():
            self.texts = functional.normalize(self.model.get_text_features(input_ids=texts).pooler_output, dim=-1)
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def logits(self, images: Tensor) -> Tensor:
        features = self.model.get_image_features(pixel_values=(images - self.mean) / self.std).pooler_output
        return 100 * functional.normalize(features, dim=-1) @ self.texts.T

    def step(self, images: Tensor, labels: Tensor) -> None:
        moved = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
        for _ in range(STEPS):
            moved.requires_grad_()
            gradient = torch.autograd.grad(functional.cross_entropy(self.logits(moved), labels), moved)[0]
            moved = moved.detach() + 2.5 * EPS / STEPS * gradient.sign()
            moved = torch.min(torch.max(moved, images - EPS), images + EPS).clamp(0, 1)
        self.optimizer.zero_grad()
        functional.cross_entropy(self.logits(moved), labels).backward()
        self.optimizer.step()


def _task(scratch: str) -> Robustness:
    options = {
        "data.root": "unused", "data.cache_dir": scratch, "model.name": "clip-vit-base-patch32", "adapt.method": "lora",
        "adapt.allow_random_frozen": True, "defence.method": "tecoa", "defence.eps": "4/255", "defence.iters": STEPS,
        "train.lr": 5e-4,
    }  # fmt: skip
    settings = configuration.build(RobustnessConfig, configuration.nest(options))
    task = Robustness(settings, list(CLASSES), Engine("auto"), quiet)
    assert task.audit.trainable == 442_368
    return task


def main() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.randint(0, len(CLASSES), (BATCH,))
    with tempfile.TemporaryDirectory() as scratch:
        task, peer = _task(scratch), _Peer()
        optimizer = task.optimizers()["model"]
        batch: dict[str, Any] = {"image": images, "label": labels, "id": ["x"] * BATCH, "items": BATCH}

        def ours() -> None:
            task.model.train()
            with task.engine.autocast():
                loss = next(task.train_step(batch)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        pixels = images.float() / 255
        peer.model.train()
        own, theirs = timing.interleaved(ours, lambda: peer.step(pixels, labels), ROUNDS)
        print(
            f"CLIP ViT-B/32, LoRA on adversarial images ({STEPS} steps), {SIZE} pixels, batch {BATCH} "
            f"[{timing.machine()}, {task.engine.precision}]"
        )
        print(f"  float32, transformers and peft: {timing.ratio(own, theirs)}")
