"""What is trained of a captioner: everything, its text half, or adapters in it; with an audit that names it all."""

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from finesight.adaptation import lora
from finesight.adaptation.auditing import Audit, audit, families, grouped, plain_name
from finesight.adaptation.config import AdaptConfig
from finesight.errors import ModelError
from finesight.models.weights import listed

if TYPE_CHECKING:
    from finesight.models.captioner import Captioner


class CaptionAdaptConfig(AdaptConfig):
    """Which parameters are trained."""

    method: Literal["full", "decoder", "lora"] = Field(  # type: ignore[assignment]
        "full", description="Train everything, all but the image encoder, or low-rank adapters (LoRA) in the text half"
    )
    targets: list[str] | None = Field(
        None,
        description="Modules of the text half that get LoRA, by full name or its end; attention query and value "
        "if none. Those of the image encoder are meant only by names that begin with its own, such as encoder.layers",
    )


@dataclass(frozen=True)
class CaptionAudit(Audit):
    """The audit of a captioner: as `Audit`, and it names every module of which parameters will get a gradient."""

    def lines(self) -> list[str]:
        """Counts exact, the share to four digits, and the modules; layers that differ by a number share a line."""
        share = 100 * self.trainable / self.total
        found = [f"Trained: {self.trainable:,} of {self.total:,} parameters ({share:.4f} %)."]
        found.append(f"Parameters of {len(self.adapted)} modules will get a gradient:")
        return [*found, *grouped(self.adapted, "modules"), *self.left_random()]


def apply(model: "Captioner", config: CaptionAdaptConfig) -> CaptionAudit:
    """Make exactly the parameters trainable that `config` names, in place; returns the audit.

    What takes no part in captioning (the pooler of a ViT) is never trained. Raises `ModelError` for LoRA targets
    that match nothing, where nothing at all would be trained, and for parameters that are neither pretrained nor
    trained unless `allow_random_frozen`: new cross-attention of which LoRA adapts a part and leaves the rest random
    is what report 000 trained.
    """
    net, prefix = model.net, model.parts.prefix
    if config.method == "lora":
        lora.inject(net, config, targets(model, config))
    else:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(config.method == "full" or not name.startswith(prefix))
    for name, parameter in net.named_parameters():
        if not model.used(name):
            parameter.requires_grad_(False)
    found = audit(model)
    found = CaptionAudit(**{field.name: getattr(found, field.name) for field in fields(found)})
    if not found.trainable:
        raise ModelError(
            f"adapt.method {config.method}: nothing of {model.spec.name} would be trained. Give other "
            "adapt.targets, or adapt.method full."
        )
    if found.frozen_random and not config.allow_random_frozen:
        raise ModelError(_refusal(model, config, found))
    model.train(model.training)
    return found


def targets(model: "Captioner", config: CaptionAdaptConfig) -> list[str]:
    """Names within `model.net` of the modules that get LoRA.

    A name such as q_proj is that of many layers of the image encoder too: those are taken only where they are meant.
    """
    prefix = model.parts.prefix
    if config.targets is None:
        names = lora.attention_projections(model.net, without=prefix)
    else:
        names = []
        for target in config.targets:
            short = target.removeprefix("net.")
            hits = lora.matching(model.net, [short])
            meant = short.startswith(prefix)
            kept = [name for name in hits if name.startswith(prefix) == meant]
            if not kept:
                raise ModelError(
                    f"adapt.targets: {target!r} matches the image encoder only ({listed(hits, 3)}); name its modules "
                    f"by names that begin with {prefix!r}."
                )
            names += kept
    return list(dict.fromkeys(names))


def _refusal(model: "Captioner", config: CaptionAdaptConfig, found: Audit) -> str:
    sizes = {plain_name(name): p.numel() for name, p in model.named_parameters() if not p.requires_grad}
    count = sum(sizes[name] for name in found.frozen_random)
    kinds = [f"{pattern} ({len(names)} tensors)" for pattern, names in families(found.frozen_random).items()]
    modules = list(dict.fromkeys(_module(name) for name in found.frozen_random))
    if config.method == "lora" and len(modules) <= 4:
        remedy = f"Train them too: --adapt.modules_to_save {','.join([*(config.modules_to_save or []), *modules])}"
    else:
        remedy = "Give pretrained weights (a folder or Hub id as model.name), or train them with --adapt.method full"
    return (
        f"adapt.method {config.method}: {len(found.frozen_random)} randomly initialised tensors with {count:,} "
        f"parameters would stay frozen: {listed(kinds, 4)}. {remedy}; or accept it: --adapt.allow_random_frozen true."
    )


def _module(name: str) -> str:
    """The part of a layer that a parameter belongs to: 'decoder.h.3.crossattention.q_attn.bias' -> 'crossattention'."""
    behind = re.split(r"\.\d+\.", name)[-1].split(".")
    return behind[0] if re.search(r"\.\d+\.", name) else behind[-2] if len(behind) > 1 else behind[0]
