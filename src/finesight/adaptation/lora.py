"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) put into a model in place, and merged back."""

import difflib
import re
import sys
import warnings
from typing import TYPE_CHECKING, Any

from finesight.adaptation.config import AdaptConfig
from finesight.errors import ModelError
from finesight.models.weights import listed

if TYPE_CHECKING:
    from torch import nn

# Names that libraries give to attention projections, tried in this order; the first that occurs is taken.
ATTENTION = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("to_q", "to_v"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("qkv",),
    ("c_attn", "q_attn"),  # GPT-2: q, k and v in one; the query of its cross-attention stands apart
)


def inject(backbone: "nn.Module", config: AdaptConfig, names: list[str] | None = None) -> list[str]:
    """Wrap the target modules of `backbone` by LoRA layers and freeze all else in it; returns their names.

    `names` are the modules to wrap where the caller found them. Those within `config.modules_to_save` are not wrapped
    but trained in full. The adapters start as an exact zero change. Raises `ModelError` for a target that matches
    no module, or one of a kind that LoRA cannot wrap, and for a backbone without attention where no targets are given.
    """
    if names is None:
        names = attention_projections(backbone) if config.targets is None else matching(backbone, config.targets)
    whole = saved_modules(backbone, config.modules_to_save or [])
    names = [name for name in names if not _within(name, whole)]
    if names:
        _wrap(backbone, names, config)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_("lora_" in name or _within(name, whole))
    return names


def _wrap(backbone: "nn.Module", names: list[str], config: AdaptConfig) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        # As one expression peft wants the whole name, as a list it would also take every name that ends so.
        target_modules="|".join(re.escape(name) for name in names),
    )
    try:
        with warnings.catch_warnings():
            # The weights of GPT-2's Conv1D stand the other way round; peft sees that, sets it, and warns of it.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            inject_adapter_in_model(settings, backbone)
    except (ValueError, NotImplementedError) as error:
        raise ModelError(f"adapt.method lora: peft cannot wrap {listed(names, 4)}: {error}") from None


def saved_modules(backbone: "nn.Module", wanted: list[str]) -> list[str]:
    """Names of the modules, of any kind, that a name in `wanted` gives in full or by its last parts."""
    every = [name for name, _ in backbone.named_modules() if name]
    problems, chosen = [], dict[str, None]()
    for target in wanted:
        short = target.removeprefix("backbone.")
        hits = [name for name in every if name == short or name.endswith(f".{short}")]
        if not hits:
            problems.append(f"adapt.modules_to_save: {target!r} matches no module{_near(short, every)}.")
        chosen.update(dict.fromkeys(hits))
    if problems:
        raise ModelError(*problems)
    return list(chosen)


def _within(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def attention_projections(backbone: "nn.Module", without: str | None = None) -> list[str]:
    """Names of the attention query and value projections (or the fused one), found by listing the modules.

    Those that begin with `without` are as if they were not there: another part may give the same layers other names.
    """
    layers = {
        name: kind for name, kind in _wrappable(backbone).items() if without is None or not name.startswith(without)
    }
    linear = [name for name, kind in layers.items() if kind in ("Linear", "Conv1D")]
    for leaves in ATTENTION:
        found = [name for name in linear if name.rpartition(".")[2] in leaves]
        if found:
            return found
    raise ModelError(
        "adapt.method lora: the backbone has no attention query and value projections. Use adapt.method "
        f"head or full, or name layers by adapt.targets; it has {len(layers)}, among them "
        f"{listed(layers, 4)}."
    )


def matching(backbone: "nn.Module", targets: list[str]) -> list[str]:
    """Names of the modules that a target names in full or by its last parts; every target must match one."""
    every = [name for name, _ in backbone.named_modules() if name]
    wrappable = _wrappable(backbone)
    problems: list[str] = []
    chosen: dict[str, None] = {}
    for target in targets:
        short = target.removeprefix("backbone.")
        hits = [short] if short in every else [name for name in every if name.endswith(f".{short}")]
        usable = [name for name in hits if name in wrappable]
        if not hits:
            problems.append(f"adapt.targets: {target!r} matches no module{_near(short, list(wrappable))}.")
        elif not usable:
            kind = type(backbone.get_submodule(hits[0])).__name__
            problems.append(
                f"adapt.targets: {target!r} is {kind}, which LoRA cannot wrap; name a linear or conv layer"
                f"{_near(short, list(wrappable))}."
            )
        chosen.update(dict.fromkeys(usable))
    if problems or not targets:
        raise ModelError(*problems or ["adapt.targets: is empty; name at least one module, or leave it out."])
    return list(chosen)


def merge(model: "nn.Module") -> "nn.Module":
    """Fold every adapter into the layer it wraps, in place: W + alpha / rank * B A; returns the model.

    Outputs stay equal up to rounding. Raises `ModelError` where an adapter would make weights not finite.
    """
    if "peft" not in sys.modules:
        return model  # nothing can have been wrapped
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            try:
                module.merge(safe_merge=True)
            except ValueError as error:
                raise ModelError(
                    f"{name}: the adapter cannot be merged ({error}); take an earlier checkpoint."
                ) from None
            model.set_submodule(name, module.get_base_layer())
    return model


def _wrappable(backbone: "nn.Module") -> dict[str, str]:
    """Name and kind of the modules that LoRA can wrap."""
    from torch import nn

    kinds: tuple[Any, ...] = (nn.Linear, nn.Conv2d, nn.Embedding, nn.MultiheadAttention)
    if "transformers" in sys.modules:
        from transformers.pytorch_utils import Conv1D  # the linear layer of GPT-2

        kinds += (Conv1D,)
    return {name: type(module).__name__ for name, module in backbone.named_modules() if isinstance(module, kinds)}


def _near(target: str, names: list[str]) -> str:
    """`"; near names: a, b"`, comparing the whole name and its last part."""
    last = {name.rpartition(".")[2]: name for name in reversed(names)}
    found = difflib.get_close_matches(target.rpartition(".")[2], list(last), n=3, cutoff=0.3)
    shown = [last[leaf] for leaf in found] or names[:3]
    return f"; near names: {', '.join(shown)}" if shown else ""
