"""Text to tokens and back: a tokenizer from a folder of files, or one learnt from the training captions."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finesight.errors import ModelError
from finesight.models import pretrained as folders
from finesight.models.weights import first_line

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "*.model", "generation_config.json",
)  # fmt: skip
"""What a tokenizer may consist of, by the names of the Hub, and what says by which token a text begins."""
_VOCABULARIES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_END = "<|endoftext|>"


class Ends(NamedTuple):
    """Token that begins a caption, token that ends it, and the filler behind it (often the end once more)."""

    start: int
    end: int
    pad: int


def load(folder: Path) -> Any:
    """The tokenizer of a folder: as `save_pretrained` writes it, or GPT-2's two vocabulary files.

    Nothing is downloaded and no code of the folder is run. Raises `ModelError` where it is none.
    """
    for name in ("tokenizer_config.json", "config.json"):
        if (folder / name).is_file() and "auto_map" in _json(folder / name):
            raise ModelError(
                f"{folder}: {name} has auto_map: loading it would run Python code that came with it. Use a tokenizer "
                "that transformers itself contains."
            )
    pair = next((pair for pair in _VOCABULARIES if all((folder / name).is_file() for name in pair)), None)
    whole = (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file()
    with folders.quiet(), folders.explained(folder, "a tokenizer"):
        if pair and not whole:
            from transformers import GPT2Tokenizer

            return GPT2Tokenizer(vocab=str(folder / pair[0]), merges=str(folder / pair[1]))
        bare = any(folder.glob("vocab.txt")) or any(folder.glob("*.model"))
        if not whole and not (bare and (folder / "config.json").is_file()):
            alone = "a vocabulary alone, without config.json, says not how texts are cut into words" if bare else None
            raise ModelError(
                f"{folder}: holds no tokenizer ({alone or 'tokenizer.json, or vocab.json and merges.txt'}). Copy the "
                "files of the language model there, or name their folder by model.tokenizer."
            )
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def train(texts: Iterable[str], size: int) -> Any:
    """Byte-level pairs (BPE, Sennrich et al. 2016) learnt from `texts`, at most `size` tokens, one of them the end.

    Any text can be written with it. The same texts give the same tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(sorted(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=_END, eos_token=_END, clean_up_tokenization_spaces=False
    )


def ends(tokenizer: Any, what: str) -> Ends:
    """Start, end and filler; raises `ModelError` for a tokenizer that marks no end of a text."""
    start = _first(tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id)
    end = _first(tokenizer.eos_token_id, tokenizer.sep_token_id)
    if start is None or end is None:
        raise ModelError(
            f"{what}: its tokenizer has no token that ends a text, so a caption would never stop. Use another language "
            "model, or set eos_token in its tokenizer_config.json."
        )
    return Ends(start, end, _first(tokenizer.pad_token_id, end) or 0)


def encode(tokenizer: Any, texts: Sequence[str], end: int, longest: int) -> list[list[int]]:
    """Tokens of each text and the end, cut to `longest`; a text that was cut has no end, for it does not end there.

    The name of a special token, "<|endoftext|>", is in a text what it is there: letters.
    """
    if not texts:
        return []
    # The tokenizer may warn of texts beyond its model's length, which are cut right here.
    with folders.quiet():
        found = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, split_special_tokens=True)
    return [[*row, end][:longest] for row in found["input_ids"]]


_WITHIN_WORDS = (
    (re.compile(r"(?<=\w) ([-/]) (?=\w)"), r"\1"),  # x - ray, mg / l
    (re.compile(r"(?<=\w) (['’]) (?=(?:s|t|re|ve|ll|d|m)\b)"), r"\1"),  # patient ' s
    (re.compile(r"(?<=\d)(?<!\d{4}) ?\. (?=\d)"), "."),  # 2. 5, and not: in 2019. 3 patients
    (re.compile(r"(?<=\d)(?<!\d{4}) ?, (?=\d{3}\b)"), ","),  # 1, 200
)
"""Blanks that word pieces (BERT, and with it BLIP and GIT) put around signs within a word or number."""


def decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of tokens, without special ones and with single blanks.

    Word pieces do not tell "x-ray" from "x - ray": the sign is taken for a part of the word, as it nearly always is.
    """
    text = " ".join(tokenizer.decode(list(tokens), skip_special_tokens=True).split())
    if type(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)).__name__ == "WordPiece":
        for pattern, closed in _WITHIN_WORDS:
            text = pattern.sub(closed, text)
    return text


def fetch(repository: str, revision: str | None) -> None:
    """Bring the tokenizer of a Hub model into the local cache, beside its weights; silent where there is no network."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(repository, revision=revision, allow_patterns=list(FILES), etag_timeout=4.0)
    except Exception as error:
        # `load` says what is missing, and the way out; here it is only known why.
        import logging

        logging.getLogger("finesight").debug("%s: no tokenizer fetched (%s)", repository, first_line(error))


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: not readable as JSON ({first_line(error)}).") from None
    return content if isinstance(content, dict) else {}
