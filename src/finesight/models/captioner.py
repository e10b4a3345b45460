"""A captioner: an image encoder and a language model joined by cross-attention, or BLIP, or GIT."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from finesight.adaptation.auditing import plain_name
from finesight.errors import ModelError
from finesight.models import caption_loading as loading
from finesight.models import pretrained as folders
from finesight.models import tokenizers
from finesight.models.caption_config import NAMED, CaptionerConfig, check_revision
from finesight.models.caption_parts import KINDS, image_states, see_all
from finesight.models.caption_probe import probe
from finesight.models.classifier import Spec, frozen_modules

__all__ = ["Captioner", "CaptionerConfig", "build"]


class Captioner(nn.Module):
    """A captioner with its preprocessing and tokenizer. images: float32 [B, 3, S, S], normalised by `mean` and `std`.

    `tokenizer` is None until `learn_tokenizer` where it is to be learnt from the captions.
    """

    def __init__(self, net: Any, spec: Spec, tokenizer: Any, notes: list[str]) -> None:
        super().__init__()
        self.net = net
        self.spec, self.notes, self.tokenizer = spec, notes, tokenizer
        self.image_size, self.mean, self.std, self.fit = spec.image_size, spec.mean, spec.std, spec.fit
        self.parts = KINDS[spec.arguments["kind"]]
        text = (
            net.config.decoder if spec.arguments["kind"] == "vision-encoder-decoder" else net.config.get_text_config()
        )
        self.words: int = text.vocab_size
        self.positions = _positions(net, getattr(text, "max_position_embeddings", None))
        see_all(self.backbone)
        _forget_habits(net)

    @property
    def backbone(self) -> nn.Module:
        """The image encoder, which stays in evaluation mode while nothing of it is trained."""
        return self.net.get_submodule(self.parts.prefix.rstrip("."))

    @property
    def frozen_encoder(self) -> bool:
        """Whether no parameter of the image encoder is trained, so that its states of an image never change."""
        return not any(parameter.requires_grad for parameter in self.backbone.parameters())

    @property
    def ends(self) -> tokenizers.Ends:
        """The tokens that begin, end and fill."""
        found = tokenizers.ends(self.tokenizer, self.spec.name)
        start = self.spec.arguments.get("start")
        return found if start is None else found._replace(start=start)

    def encode(self, images: Tensor) -> Tensor:
        """States of images, [B, T, D]."""
        return self.parts.encode(self.net, images)

    def image_states(self, images: Tensor) -> Tensor:
        """What the image encoder alone makes of images, [B, T, D]: as `encode`, but for GIT, which takes them whole."""
        return image_states(self.backbone, images)

    def hidden(self, states: Tensor, tokens: Tensor) -> Tensor:
        """What precedes the word scores: [B, T, D], [B, L] -> [B, L, H]; position l knows the tokens up to l."""
        return self.parts.hidden(self.net, states, tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """Word scores [..., V] of hidden states [..., H]."""
        return self.parts.logits(self.net, hidden)

    @property
    def plain_head(self) -> Tensor | None:
        """The matrix [V, H] that makes word scores of hidden states, where nothing else takes part in that."""
        layer = getattr(getattr(self.net, "decoder", None), "lm_head", None)
        return layer.weight if type(layer) is nn.Linear and layer.bias is None else None

    def generate(self, states: Tensor, options: Any, processors: Any = None) -> Tensor:
        """Token ids [B, L'] by `options` (a transformers GenerationConfig), the start token first.

        `processors`, a LogitsProcessorList, come after those that `options` ask for.
        """
        return self.parts.generate(self.net, states, self.ends.start, options, processors)

    def train(self, mode: bool = True) -> "Captioner":
        """As `nn.Module.train`, but a frozen image encoder stays in evaluation mode: no dropout in it."""
        super().train(mode)
        if mode:
            for module in frozen_modules(self):
                module.eval()
        return self

    def used(self, name: str) -> bool:
        """Whether a parameter takes part in captioning at all; the pooler of an encoder does not (`probe`)."""
        return plain_name(name).removeprefix("net.") not in self.spec.arguments["unused"]

    def random_parameters(self) -> list[str]:
        """Names of the parameters that began with random weights and are used."""
        random = tuple(self.spec.random)
        return [
            name
            for name, _ in self.named_parameters()
            if self.used(name) and any(_below(plain_name(name), start) for start in random)
        ]

    def learn_tokenizer(self, captions: list[str]) -> None:
        """Learn the tokenizer from the training captions, for as many words as the model has."""
        self.tokenizer = tokenizers.train(captions, self.words)
        self.notes.append(f"The tokenizer was learnt from the training captions: {len(self.tokenizer):,} tokens.")

    def save_spec(self, directory: Path) -> None:
        """Write what `build(config, saved=directory)` rebuilds architecture and tokenizer from."""
        directory.mkdir(parents=True, exist_ok=True)
        self.spec.write(directory)
        self.tokenizer.save_pretrained(directory)
        self.net.config.save_pretrained(directory)


def _below(name: str, start: str) -> bool:
    return name == start or name.startswith(f"{start}.")


def _positions(net: nn.Module, known: int | None) -> int | None:
    """Positions that a text may take; RoBERTa and its like count them from behind that of the padding."""
    if known is None:
        return None
    tables = (module for name, module in net.named_modules() if name.endswith("position_embeddings"))
    paddings = [table.padding_idx for table in tables if isinstance(table, nn.Embedding)]
    return known - max((padding + 1 for padding in paddings if padding is not None), default=0)


def _forget_habits(net: nn.Module) -> None:
    """Drop how the model was used to write (beams, lengths, penalties): whatever `generate` is not told it takes there.

    Such settings come with some weights only, and not with a rebuilt model.
    """
    from transformers import GenerationConfig

    for module in net.modules():
        if getattr(module, "generation_config", None) is not None:
            module.generation_config = GenerationConfig()  # type: ignore[assignment]


def build(config: CaptionerConfig, saved: Path | None = None) -> Captioner:
    """The captioner `config` asks for; with `saved` (of `save_spec`) its weights are random.

    Raises `ModelError` for an unknown name, unsafe or unfitting weights, a language model that cannot look at an
    image, an image encoder that gives no row of states or other ones each time, and a Hub that cannot be reached.
    """
    if saved is not None:
        spec = Spec.read(saved)
        net = loading.with_random_weights(folders.settings_of(saved, loading.WHAT), config)
        return _checked(Captioner(net, spec, tokenizers.load(saved), []))
    check_revision(config)
    notes: list[str] = []
    if config.name in NAMED:
        net, preprocessing, tokenizer = *loading.named(config), None
        arguments: dict[str, Any] = {"kind": "vision-encoder-decoder"}
        random: tuple[str, ...] = ("net",)
    elif "+" in config.name and not Path(config.name).is_dir():
        net, preprocessing, tokenizer, random = loading.pair(config, notes)
        arguments = {"kind": "vision-encoder-decoder"}
    else:
        net, preprocessing, tokenizer, arguments = loading.existing(config, notes)
        random = () if config.pretrained else ("net",)
    if config.tokenizer is not None:
        tokenizer = tokenizers.load(Path(config.tokenizer))
    p = preprocessing
    spec = Spec("huggingface", config.name, (), p.image_size, p.mean, p.std, p.fit, random, arguments)
    return _checked(Captioner(net, spec, tokenizer, notes))


def _checked(model: Captioner) -> Captioner:
    if model.tokenizer is not None and len(model.tokenizer) > model.words:
        raise ModelError(
            f"{model.spec.name}: the tokenizer has {len(model.tokenizer):,} tokens, the language model "
            f"{model.words:,}; take both from one source."
        )
    model.eval()
    if "unused" not in model.spec.arguments:
        model.spec.arguments["unused"] = probe(model)
    return model
