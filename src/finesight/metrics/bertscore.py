"""BERTScore: captions beside references by the contextual embeddings of their tokens (Zhang et al. 2020, 1904.09675).

What a caption and a reference share is found by meaning and not by letters: each token is matched with the most
similar one of the other text. Numbers equal those of `bert-score` 0.3.13, whose scores can be rescaled by a baseline
of each model and layer; these are not. Rescaling is linear: it changes neither an order nor a p-value.
"""

import inspect
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finesight.errors import ConfigError, ModelError
from finesight.metrics.bootstrap import Floats
from finesight.metrics.caption_inputs import check_texts
from finesight.models import hub, tokenizers
from finesight.models import pretrained as folders
from finesight.models.weights import check_folder, listed, state_hash

NAMES = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
TUNED = {
    "bert-base-uncased": 9, "bert-large-uncased": 18, "bert-base-multilingual-cased": 9, "roberta-base": 10,
    "roberta-large": 17, "distilroberta-base": 5, "distilbert-base-uncased": 5, "xlm-roberta-base": 9,
    "xlm-roberta-large": 17, "scibert_scivocab_uncased": 8,
}  # fmt: skip
"""The layer that agrees best with people on WMT16, as the authors' `bert-score` takes it."""
BLOCK = 256
"""Samples that are encoded together."""
_MOST_BYTES = 1 << 30
_WHAT = "a text encoder"
_REPOSITORY = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


class _Text(NamedTuple):
    """A text as tokens: ids [T], both special ones included, and states of length 1, float32 [T, D]."""

    ids: list[int]
    states: Tensor


class BertScore:
    """Precision, recall and F1 of BERTScore as per-sample statistics and their means; at most 1, more is better.

    With x the tokens of the reference, y those of the caption and unit embeddings of one layer: recall is the mean
    over x of the largest cosine with a token of y, precision the mean over y, F1 their harmonic mean. The two special
    tokens at the ends can be matched, but do not count themselves. Of several references the best counts, for each of
    the three scores on its own. An empty caption scores 0.

    `name` is a folder or a Hub id of an encoder such as BERT or RoBERTa; `layer` counts from 1, 0 being what goes
    into the first, and is that of `TUNED` by default, or three quarters of the way up. With `idf`, a token counts
    log((M + 1) / (m + 1)) where m of the M references of one call of `statistics` hold it, so a split is given whole.
    `batch_size` texts of similar length are encoded at once; the embeddings of references are kept, up to 1 GiB, for
    the next call. What is behind the model's longest input is cut off.

    Raises `ModelError` for a model that is none of that kind, unsafe or incomplete, `ConfigError` for an
    impossible layer.
    """

    names = NAMES
    loss = "bertscore_f1"

    def __init__(
        self,
        name: str | Path,
        layer: int | None = None,
        idf: bool = False,
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
    ) -> None:
        self.idf, self.batch_size = idf, batch_size
        with _advised():
            folder = _folder(str(name))
            self.model, self.layer, layers = _encoder(folder, str(name), layer)
            self.tokenizer = _tokenizer(folder)
        self.model.to(device)
        self._longest = _longest(self.model, self.tokenizer)
        self._spaced = type(self.tokenizer.backend_tokenizer.pre_tokenizer).__name__ == "ByteLevel"
        self._kept: dict[tuple[str, ...], dict[str, _Text]] = {}
        # The pooler is not used, and random where the weights have none.
        used = {part: tensor for part, tensor in self.model.state_dict().items() if "pooler" not in part}
        self._of = f"{folder.name if Path(name).is_dir() else name} {state_hash(used)[:8]}, layer {self.layer}/{layers}"

    @property
    def signature(self) -> str:
        """What the scores are, in words: model with a hash of its weights, layer and weighting."""
        return f"bertscore ({self._of}, {'idf of these references' if self.idf else 'no idf'}, not rescaled)"

    def statistics(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
        """Table float64 [N, 4] of N captions and their lists of references: one, precision, recall, F1.

        Raises `DataError` with all that is wrong with the texts.
        """
        captions, lists = list(predictions), [list(texts) if _is_list(texts) else texts for texts in references]
        check_texts(captions, lists)
        weigh = self._weigher([text for texts in lists for text in texts])
        rows: list[NDArray[Any]] = []
        with torch.inference_mode():
            for start in range(0, len(captions), BLOCK):
                truth = lists[start : start + BLOCK]
                # Candidates and references apart: what a text is encoded with, and with it the last bits of its
                # states, depends on the texts of this call alone and not on what is remembered of others.
                own = self._encoded(captions[start : start + BLOCK])
                true = self._remembered([text for texts in truth for text in texts])
                for caption, texts in zip(captions[start : start + BLOCK], truth, strict=True):
                    found = [_matched(own[caption], true[text], weigh) for text in texts]
                    rows.append(np.max(found, axis=0))
        return np.column_stack([np.ones(len(rows)), np.stack(rows)])

    def reduce(self, total: Floats) -> dict[str, NDArray[Any]]:
        """Means [...] by name, from sums [..., 4] of rows of `statistics`; NaN of no row."""
        return means(total)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, the special ones at its ends included."""
        # Byte-level tokenizers know a word by the blank before it; the first word gets one like the others.
        given = [f"{' ' if self._spaced and text.strip() else ''}{text.strip()}" for text in texts]
        with folders.quiet():
            found = self.tokenizer(given, truncation=True, max_length=self._longest, return_attention_mask=False)
        return found["input_ids"]

    def _weigher(self, references: Sequence[str]) -> Any:
        """Ids -> what each of them counts, float64 [T]."""
        ends = {self.tokenizer.cls_token_id, self.tokenizer.sep_token_id}
        if not self.idf:
            return lambda ids: np.array([float(token not in ends) for token in ids])
        held = Counter(token for ids in self._tokens(references) for token in set(ids))
        most = len(references) + 1
        return lambda ids: np.array([math.log(most / (held[token] + 1)) for token in ids])

    def _remembered(self, texts: Iterable[str]) -> dict[str, _Text]:
        """`_encoded` of references, from the memory where the same ones were asked for before."""
        key = tuple(sorted(set(texts)))
        if key not in self._kept:
            self._kept[key] = self._encoded(key)
            while len(self._kept) > 1 and sum(map(_size, self._kept.values())) > _MOST_BYTES:
                del self._kept[next(iter(self._kept))]
        return self._kept[key]

    def _encoded(self, texts: Iterable[str]) -> dict[str, _Text]:
        """Each different text once, in batches of similar length."""
        names = sorted(set(texts))
        rows = self._tokens(names)
        order = sorted(range(len(names)), key=lambda row: len(rows[row]))
        device = next(self.model.parameters()).device
        found = {}
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            lengths = torch.tensor([len(rows[row]) for row in part])
            ids = torch.zeros(len(part), int(lengths.max()), dtype=torch.long)
            for place, row in enumerate(part):
                ids[place, : len(rows[row])] = torch.tensor(rows[row])
            filled = torch.arange(ids.shape[1]) < lengths[:, None]
            ids[~filled] = self.tokenizer.pad_token_id or 0
            states = self.model(input_ids=ids.to(device), attention_mask=filled.long().to(device)).last_hidden_state
            for row, of_text in zip(part, states.float(), strict=True):
                unit = torch.nn.functional.normalize(of_text[: len(rows[row])], dim=1)
                found[names[row]] = _Text(rows[row], unit.clone())  # not a view that holds the whole batch
        return found


def means(total: Floats) -> dict[str, NDArray[Any]]:
    """`BertScore.reduce`, which needs no encoder."""
    with np.errstate(invalid="ignore"):
        return {name: total[..., index] / total[..., 0] for index, name in enumerate(NAMES, start=1)}


def _matched(caption: _Text, reference: _Text, weigh: Any) -> tuple[float, float, float]:
    """Precision, recall and F1 of one pair; 0 where no token of a side counts."""
    of_caption, of_reference = weigh(caption.ids), weigh(reference.ids)
    if not of_caption.sum() or not of_reference.sum():
        return 0.0, 0.0, 0.0
    similar = np.clip((caption.states @ reference.states.T).cpu().double().numpy(), -1, 1)
    precision = float(similar.max(1) @ of_caption / of_caption.sum())
    recall = float(similar.max(0) @ of_reference / of_reference.sum())
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0


def _size(texts: dict[str, _Text]) -> int:
    return sum(text.states.numel() * text.states.element_size() for text in texts.values())


def _is_list(value: Any) -> bool:
    return not isinstance(value, str) and isinstance(value, Iterable)


@contextmanager
def _advised() -> Iterator[None]:
    """What is wrong with a model, with the remedies that there are for this one."""
    others = {
        "--model.name": "--evaluation.bertscore",
        ", or set model.pretrained false": "",
        ", or name their folder by model.tokenizer": "",
        "; a Hub model often has a converted revision, model.revision refs/pr/N": "",
    }
    try:
        yield
    except ModelError as error:
        problems = list(error.problems)
        for ours, theirs in others.items():
            problems = [problem.replace(ours, theirs) for problem in problems]
        raise ModelError(*problems) from None


def _folder(name: str) -> Path:
    """The folder of a local or Hub model, checked to be safe, with its tokenizer."""
    path = Path(name).expanduser()
    if not path.is_dir():
        if not _REPOSITORY.fullmatch(name):
            raise ModelError(
                f"evaluation.bertscore {name!r}: no such folder. Give the folder or the Hub id of a text encoder such "
                "as FacebookAI/roberta-large or google-bert/bert-base-uncased."
            )
        path = hub.fetch(name)
        tokenizers.fetch(name, None)
    check_folder(path)
    return path


def _encoder(folder: Path, name: str, layer: int | None) -> tuple[Any, int, int]:
    """The model cut above `layer`, that layer, and how many the whole model has."""
    from transformers import AutoModel

    settings = folders.settings_of(folder, _WHAT)
    layers = getattr(settings, "num_hidden_layers", 0)
    if not layers or getattr(settings, "is_encoder_decoder", False) or hasattr(settings, "vision_config"):
        raise ModelError(f"{folder}: a {settings.model_type} model; BERTScore needs a text encoder such as BERT.")
    if layer is None:
        layer = min(TUNED.get(Path(name).name, math.ceil(0.75 * layers)), layers)
    if not 0 <= layer <= layers:
        raise ConfigError(
            f"evaluation.bertscore_layer {layer}: {name} has {layers} layers; give 0 to {layers}, or leave it out."
        )
    # Layers above it are not needed, and neither read nor computed.
    settings.num_hidden_layers = layer
    kind = SimpleNamespace(from_pretrained=partial(AutoModel.from_pretrained, config=settings))
    with torch.random.fork_rng(devices=[]):  # scoring otherwise must not change what is drawn later
        model, missing, _ = folders.from_weights(kind, folder, "auto", _WHAT)
    lost = sorted(part for part in missing if "pooler" not in part)
    if lost:
        folders.refuse_weights(
            folder, [f"{folder}: {len(lost)} weights are missing and would stay random: {listed(lost)}."]
        )
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise ModelError(f"{folder}: {type(model).__name__} reads no text; BERTScore needs an encoder such as BERT.")
    return model.eval().requires_grad_(False), layer, layers


def _tokenizer(folder: Path) -> Any:
    found = tokenizers.load(folder)
    if found.cls_token_id is None or found.sep_token_id is None or not hasattr(found, "backend_tokenizer"):
        raise ModelError(
            f"{folder}: its tokenizer has no tokens for both ends of a text, as that of BERT or RoBERTa has. Copy "
            "tokenizer.json and tokenizer_config.json of the model there, or give another encoder."
        )
    return found


def _longest(model: Any, tokenizer: Any) -> int:
    """Tokens that the model can read at once."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    places = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    # RoBERTa counts places from behind its padding.
    padding = getattr(table, "padding_idx", None)
    return min(places - (0 if padding is None else padding + 1), tokenizer.model_max_length)
