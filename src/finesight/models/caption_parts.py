"""The three ways in which captioners join image and text: cross-attention pairs, BLIP, and GIT.

A part is a set of plain functions on the transformers model `net`: `encode` images to states, `hidden` states of text
tokens given those, `logits` of hidden states, and `generate` token ids. Only `prefix`, the name of the image
encoder within `net`, tells what may be frozen and cached.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Parts(NamedTuple):
    """How to use a captioner. B images, T states of width D, L tokens, V words."""

    prefix: str
    """Parameters of the image encoder begin so."""
    encode: Callable[[Any, Tensor], Tensor]
    """(net, images [B, 3, S, S]) -> [B, T, D]"""
    hidden: Callable[[Any, Tensor, Tensor], Tensor]
    """(net, states, tokens [B, L]) -> [B, L, H]; causal: position l knows tokens up to l."""
    logits: Callable[[Any, Tensor], Tensor]
    """(net, hidden [..., H]) -> [..., V]"""
    generate: Callable[[Any, Tensor, int, Any, Any], Tensor]
    """(net, states, start token, GenerationConfig, further logits processors) -> tokens [B, L'], the start first."""
    optional: tuple[str, ...]
    """Parameters with these words in their name may be without weights: they take no part in captioning."""


def image_states(encoder: Any, images: Tensor) -> Tensor:
    """The last states of an image encoder, [B, 3, S, S] -> [B, T, D]."""
    if encoder.config.model_type != "vit_mae":
        return encoder(pixel_values=images).last_hidden_state
    # It puts the patches into the order of noise, by itself random (how many it leaves out: see `see_all`).
    order = torch.arange(encoder.embeddings.patch_embeddings.num_patches, device=images.device)
    return encoder(pixel_values=images, noise=order.expand(len(images), -1)).last_hidden_state


def see_all(encoder: Any) -> None:
    """Make ViT-MAE take all patches of an image, of which it hides three quarters even in evaluation mode."""
    if encoder.config.model_type == "vit_mae":
        for module in encoder.modules():
            if hasattr(module, "config"):
                module.config.mask_ratio = 0.0


def _pair_encode(net: Any, images: Tensor) -> Tensor:
    return image_states(net.encoder, images)


def _pair_hidden(net: Any, states: Tensor, tokens: Tensor) -> Tensor:
    if hasattr(net, "enc_to_dec_proj"):
        states = net.enc_to_dec_proj(states)
    # Padding stands behind the text, where no earlier position sees it: no mask is needed.
    return text_model(net.decoder)(input_ids=tokens, encoder_hidden_states=states, use_cache=False).last_hidden_state


def text_model(decoder: Any) -> nn.Module:
    """The decoder without its head."""
    return getattr(decoder, decoder.base_model_prefix)


def _head(decoder: Any, hidden: Tensor) -> Tensor:
    for name in ("lm_head", "cls", "output_projection"):
        if hasattr(decoder, name):
            return getattr(decoder, name)(hidden)
    return decoder.get_output_embeddings()(hidden)


def _pair_logits(net: Any, hidden: Tensor) -> Tensor:
    return _head(net.decoder, hidden)


def _pair_generate(net: Any, states: Tensor, start: int, options: Any, processors: Any) -> Tensor:
    from transformers.modeling_outputs import BaseModelOutput

    options.decoder_start_token_id = start
    return net.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        generation_config=options,
        logits_processor=processors,
    )


def _blip_encode(net: Any, images: Tensor) -> Tensor:
    return image_states(net.vision_model, images)


def _blip_hidden(net: Any, states: Tensor, tokens: Tensor) -> Tensor:
    seen = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    return net.text_decoder.bert(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        encoder_hidden_states=states,
        encoder_attention_mask=seen,
        is_decoder=True,
        use_cache=False,
    ).last_hidden_state


def _blip_logits(net: Any, hidden: Tensor) -> Tensor:
    return net.text_decoder.cls(hidden)


def _blip_generate(net: Any, states: Tensor, start: int, options: Any, processors: Any) -> Tensor:
    seen = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    return net.text_decoder.generate(
        input_ids=seen.new_full((len(states), 1), start),
        attention_mask=seen.new_ones((len(states), 1)),
        encoder_hidden_states=states,
        encoder_attention_mask=seen,
        generation_config=options,
        logits_processor=processors,
    )


def _git_encode(net: Any, images: Tensor) -> Tensor:  # noqa: ARG001
    # Image and text pass through one decoder together, so that there is nothing to keep of the image alone.
    return images


def _git_hidden(net: Any, states: Tensor, tokens: Tensor) -> Tensor:
    found = net.git(input_ids=tokens, pixel_values=states, use_cache=False).last_hidden_state
    return found[:, found.shape[1] - tokens.shape[1] :]


def _git_logits(net: Any, hidden: Tensor) -> Tensor:
    return net.output(hidden)


def _git_generate(net: Any, states: Tensor, start: int, options: Any, processors: Any) -> Tensor:
    tokens = torch.full((len(states), 1), start, dtype=torch.long, device=states.device)
    return net.generate(input_ids=tokens, pixel_values=states, generation_config=options, logits_processor=processors)


PAIR = Parts("encoder.", _pair_encode, _pair_hidden, _pair_logits, _pair_generate, ("encoder.pooler.",))
BLIP = Parts("vision_model.", _blip_encode, _blip_hidden, _blip_logits, _blip_generate, ("pooler.",))
GIT = Parts("git.image_encoder.", _git_encode, _git_hidden, _git_logits, _git_generate, ("img_temporal_embedding",))

KINDS = {"vision-encoder-decoder": PAIR, "blip": BLIP, "git": GIT}
"""By the model_type of their configuration."""
