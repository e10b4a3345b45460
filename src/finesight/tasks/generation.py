"""Captions as the model writes them, token by token, and how likely it finds given ones."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from finesight.config import Section
from finesight.data import draws as drawing
from finesight.data.batches import Batch
from finesight.errors import ModelError
from finesight.losses.frozen_head import frozen_cross_entropy
from finesight.models.captioner import Captioner
from finesight.models.pretrained import quiet

NOTHING = -1
"""Fills the token rows of predictions behind the end."""

_WORDS = 5
"""The stream of random numbers that nucleus sampling draws words from."""


class GenerationOptions(Section):
    """How captions are written."""

    method: Literal["greedy", "beam", "nucleus"] = Field(
        "greedy", description="The likeliest word each time, the likeliest of several beams, or words drawn by chance"
    )
    max_tokens: int = Field(128, ge=1, description="Longest caption in tokens")
    beams: int = Field(4, ge=2, description="beam: captions followed at once")
    length_penalty: float = Field(1.0, description="beam: exponent of the length that a caption's score is divided by")
    top_p: float = Field(0.9, gt=0, le=1, description="nucleus: share of the probability that words are drawn from")
    temperature: float = Field(1.0, gt=0, description="nucleus: below 1 the likelier words gain")
    no_repeat: int = Field(0, ge=0, description="Never write the same n words in a row twice; 0 is no such rule")


def write(
    model: Captioner, states: Tensor, ids: Sequence[str], options: GenerationOptions, seed: int
) -> NDArray[np.int64]:
    """The model's own captions: token rows int64 [B, max_tokens], the end included, `NOTHING` behind it.

    A row without the end was cut at `max_tokens`. `states` are those of `Captioner.encode`. What nucleus
    sampling draws for a sample is a function of seed, id and place, whoever is in the batch beside it.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    end, pad = model.ends.end, model.ends.pad
    settings = GenerationConfig(
        max_new_tokens=room(model, options), eos_token_id=end, pad_token_id=pad, bos_token_id=model.ends.start,
        no_repeat_ngram_size=options.no_repeat, use_cache=True, num_beams=1, num_return_sequences=1, do_sample=False,
    )  # fmt: skip
    if options.method == "beam":
        settings.num_beams, settings.length_penalty = options.beams, options.length_penalty
    drawn = LogitsProcessorList([Nucleus(ids, options, seed)] if options.method == "nucleus" else [])
    with quiet():
        written = model.generate(states, settings, drawn)[:, 1:].cpu().numpy()
    rows = np.full((len(written), options.max_tokens), NOTHING, np.int64)
    for row, tokens in enumerate(written):
        ended = np.flatnonzero(tokens == end)
        kept = tokens[: ended[0] + 1] if len(ended) else tokens
        rows[row, : len(kept)] = kept
    return rows


class Nucleus:
    """Makes the likeliest word a draw from the nucleus of the words (Holtzman et al. 2020), a processor of scores.

    Gumbel noise on log-probabilities: the largest sum is a draw from them (Gumbel 1954; Maddison et al. 2014).
    """

    def __init__(self, ids: Sequence[str], options: GenerationOptions, seed: int) -> None:
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        self.ids, self.seed = ids, seed
        self.narrowing = TemperatureLogitsWarper(options.temperature), TopPLogitsWarper(options.top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Tokens so far [B, L], scores of the next one [B, V] -> [B, V]."""
        scores = scores.float()
        for narrow in self.narrowing:
            scores = narrow(input_ids, scores)
        chance = drawing.uniform(self.ids, scores.shape[1], self.seed, input_ids.shape[1], _WORDS)
        noise = -np.log(-np.log(np.maximum(chance, 2.0**-54)))
        return scores + torch.from_numpy(noise).to(scores)


def room(model: Captioner, options: GenerationOptions) -> int:
    """`max_tokens`, or fewer where the language model knows no further positions; the start takes one."""
    return options.max_tokens if model.positions is None else min(options.max_tokens, model.positions - 1)


def shifted(tokens: Tensor, length: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """What the model reads, int64 [B, L], and where it has something to say, bool [B, L].

    Position l reads the token before the one it is to say: the start first. Shifted here, once; a caption's own
    length tells where padding begins, so that the end, which may be the same token, stays something to say.
    """
    read = torch.cat([tokens.new_full((len(tokens), 1), start), tokens[:, :-1]], 1)
    return read, torch.arange(tokens.shape[1], device=tokens.device) < length[:, None]


def token_losses(model: Captioner, states: Tensor, tokens: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood in nats of each token, float32 [n], and the sample it belongs to, int64 [n].

    Word scores are made only where there is a token, not for padding, and a few at a time where the head is not
    to learn from them.
    """
    read, said = shifted(tokens, length, model.ends.start)
    hidden, owner = model.hidden(states, read)[said], said.nonzero()[:, 0]
    head = model.plain_head
    if head is None or (head.requires_grad and torch.is_grad_enabled()):
        return functional.cross_entropy(model.logits(hidden).float(), tokens[said], reduction="none"), owner
    half = torch.is_autocast_enabled(hidden.device.type)
    with torch.autocast(hidden.device.type, enabled=False):
        return frozen_cross_entropy(hidden, head.bfloat16() if half else head, tokens[said]), owner


def likelihood(model: Captioner, states: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the references of each image in nats, float64 [B], and their tokens, int64 [B].

    `batch` as `CaptionBatches` makes it.
    """
    total = torch.zeros(len(batch["id"]), dtype=torch.float64, device=states.device)
    if "references" not in batch:
        losses, owner = token_losses(model, states, batch["tokens"], batch["length"])
        return total.index_add_(0, owner, losses.double()), batch["length"]
    tokens, length = batch["references"], batch["reference_length"]
    for place in range(tokens.shape[1]):
        known = length[:, place].nonzero()[:, 0]
        width = int(length[:, place].max())
        losses, owner = token_losses(model, states[known], tokens[known, place, :width], length[known, place])
        total.index_add_(0, known[owner], losses.double())
    return total, length.sum(1)


def refuse_leak(model: Captioner, states: Tensor, tokens: Tensor) -> None:
    """Raise `ModelError` where the scores of a word depend on that word or on later ones: such a model learns to copy.

    `states` of one image [1, T, D] and its caption [1, L]. Every word is replaced by another; the score of the first
    must not change, nor that of the second when the first is put back, and so on (three places are tried).
    """
    words = model.words

    def scores(given: Tensor) -> Tensor:
        read, _ = shifted(given, given.new_tensor([given.shape[1]]), model.ends.start)
        return model.logits(model.hidden(states, read)).float()

    if leaks(scores, tokens, words):
        raise ModelError(
            f"{model.spec.name}: its score of a word depends on that very word, so training would teach it to copy the "
            "answer, and nothing it writes by itself could be trusted. Use a causal language model (is_decoder true)."
        )


def leaks(scores: Callable[[Tensor], Tensor], tokens: Tensor, words: int) -> bool:
    """Whether `scores` of tokens, [1, L] -> [1, L, V], know at some place the token of that place or a later one."""
    whole = scores(tokens)
    for place in sorted({0, tokens.shape[1] // 2, tokens.shape[1] - 1}):
        other = tokens.clone()
        other[:, place:] = (other[:, place:] + 1 + words // 2) % words
        if not torch.allclose(scores(other)[:, : place + 1], whole[:, : place + 1], rtol=1e-3, atol=1e-3):
            return True
    return False


def text_of(model: Captioner, row: NDArray[Any]) -> str:
    """The caption of a token row."""
    from finesight.models.tokenizers import decode

    return decode(model.tokenizer, [int(token) for token in row if token != NOTHING])


def word_attention(model: Captioner, states: Tensor, row: NDArray[Any]) -> list[tuple[str, NDArray[np.float64]]] | None:
    """How a caption's words looked at the image: (word, attention [side, side] over its patches, sum at most 1).

    `states` of one image [1, T, D], `row` the tokens that were written for it. Cross-attention when the word was
    chosen, mean over layers and heads, and over the tokens of the word. None where the model has no cross-attention.
    """
    from finesight.models.caption_parts import text_model

    tokens = [int(token) for token in row if token not in (NOTHING, model.ends.end)]
    if model.spec.arguments["kind"] != "vision-encoder-decoder" or not tokens:
        return None
    read = torch.tensor([[model.ends.start, *tokens[:-1]]], device=states.device)
    seen = model.net.enc_to_dec_proj(states) if hasattr(model.net, "enc_to_dec_proj") else states
    decoder, before = model.net.decoder, model.net.decoder.config._attn_implementation
    with quiet():
        decoder.set_attn_implementation("eager")  # the only one that tells its attention
        try:
            found = text_model(decoder)(
                input_ids=read, encoder_hidden_states=seen, output_attentions=True, use_cache=False
            ).cross_attentions
        finally:
            decoder.set_attn_implementation(before)
    if not found:
        return None
    of_token = torch.stack([layer[0].float().mean(0) for layer in found]).mean(0).double().cpu().numpy()  # [L, T]
    side = math.isqrt(of_token.shape[1])
    maps = of_token[:, of_token.shape[1] - side * side :].reshape(-1, side, side)
    return [(word, maps[places].mean(0)) for word, places in _words(model.tokenizer, tokens)]


def _words(tokenizer: Any, tokens: list[int]) -> list[tuple[str, list[int]]]:
    """The words of a text, each with the places of its tokens."""
    words = tokenizer.decode(tokens, skip_special_tokens=True).split()
    places: list[list[int]] = [[] for _ in words]
    for place in range(len(tokens)):
        count = len(tokenizer.decode(tokens[: place + 1], skip_special_tokens=True).split())
        if words:
            places[min(max(count, 1), len(words)) - 1].append(place)
    return [(word, of_word) for word, of_word in zip(words, places, strict=True) if of_word]
