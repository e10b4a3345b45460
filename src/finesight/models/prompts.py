"""Class names in sentences, and the sentences as vectors of a CLIP's text tower (Radford et al. 2021, sec. 3.1.4)."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from finesight.errors import ModelError
from finesight.models import pretrained as folders
from finesight.models import tokenizers
from finesight.models.clip_config import template_problem
from finesight.models.weights import check_folder, listed, state_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray

AT_ONCE = 128
"""Sentences in one forward pass."""
_LEGACY_END = 2
"""The eos_token_id that old CLIP configurations give by mistake; see `check_tokenizer`."""


# ---- sentences ------------------------------------------------------------------------------------

_ARTICLE = re.compile(r"(?<![\w-])(an?)(?=\s+\{\})", re.IGNORECASE)
# The order matters: the first pattern that fits decides. After Lingua::EN::Inflect (Conway 1998).
_SOUNDS = (
    # Numbers as they are read: eight..., eleven, eighteen (also hundred and thousand of them).
    ("an", re.compile(r"8|1[18](?!\d)|1[18]\d\d(?!\d)")),
    ("a", re.compile(r"\d")),
    # Single letters by their names, alone or before a dash or dot: an x-ray, a T-shirt, a U.
    ("an", re.compile(r"[aefhilmnorsx]([.\-'’]|$)", re.IGNORECASE)),
    ("a", re.compile(r"[a-z]([.\-'’]|$)", re.IGNORECASE)),
    # Capitals that nobody could pronounce as a word are spelled: an MRI, an F150, but a NASA rover, a FROG, a SKY.
    ("an", re.compile(r"(?![FHLMNRSX][AEIOU]|[FS][LR]|S[CHKLMNPQTVW][AEIOULRH]|RH[AEIOU])[FHLMNRSX][A-Z0-9]+\b(?<!Y)")),
    ("an", re.compile(r"(HIV|LED|SUV)s?\b")),
    ("a", re.compile(r"U[A-Z0-9]{1,2}\b")),
    # A silent h, and vowels that begin with the sound of "you" or "won".
    ("an", re.compile(r"hour(?!i)|heir|honest|hono|hors d", re.IGNORECASE)),
    (
        "a",
        re.compile(r"e[uw]|onc?e\b|ouija|unanim|uni([^nmd]|mo)|u[bcfghjkqrstv][aeiou]|ukr", re.IGNORECASE),
    ),
    ("an", re.compile(r"[aeiou]|y[^aeiou]", re.IGNORECASE)),
)


def article(name: str) -> str:
    """ "a" or "an", by how the first word of `name` sounds as far as its letters tell.

    Numbers are read (an 8-ball), single letters and unpronounceable capitals spelled (an x-ray, an MRI, a UFO), a
    silent h and a vowel that sounds like a consonant are known by their beginnings (an hour, a unicorn, a European
    roller). Wrong for words that no rule tells apart, such as capitals that could be read or spelled (a FAQ).
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    plain = re.sub(r"^\W+", "", plain.replace("_", " "))
    return next((found for found, pattern in _SOUNDS if pattern.match(plain)), "a")


def filled(template: str, name: str) -> str:
    """The sentence of a class: underscores in its name become blanks, an article right before {} fits it.

    Raises `ModelError` for a template without exactly one {}, and for a name without a letter or digit.
    """
    problem = template_problem(template)
    if problem:
        raise ModelError(f"model.templates: {problem}.")
    name = " ".join(name.replace("_", " ").split())
    if not any(character.isalnum() for character in name):
        raise ModelError(f"class {name!r}: no letter or digit to make a sentence of; give the class a name.")

    def fitting(found: re.Match[str]) -> str:
        fit = article(name)
        return fit.capitalize() if found[1][0].isupper() else fit

    return _ARTICLE.sub(fitting, template).replace("{}", name)


def sentences(classes: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """[T][C]: the sentences of every template, in the order of the classes."""
    return [[filled(template, name) for name in classes] for template in templates]


# ---- the text tower -------------------------------------------------------------------------------


class TextTower(NamedTuple):
    """The half of a CLIP that reads: its transformer, the projection to D dimensions, and its tokenizer.

    `name` is for messages.
    """

    model: Any
    projection: nn.Linear
    tokenizer: Any
    name: str

    def vectors(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Unit vectors float32 [N, D] of token rows, each with its start and end."""
        longest = max(len(row) for row in rows)
        # What stands behind the end is never seen: attention is causal.
        tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        with torch.no_grad():
            states = self.model(input_ids=tokens).last_hidden_state
            ends = torch.tensor([len(row) - 1 for row in rows])
            return functional.normalize(self.projection(states[torch.arange(len(rows)), ends]).float(), dim=-1)

    def key(self) -> str:
        """Text that is equal for two towers exactly if they make the same vectors of the same tokens."""
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        state["projection"] = self.projection.weight
        settings = self.model.config
        return f"{state_hash(state)} {settings.to_json_string()} {settings._attn_implementation}"


def load_text_tower(folder: Path, tokenizer: Any = None) -> TextTower:
    """The text tower of a whole CLIP's folder, loaded strictly; with another tokenizer where one is given.

    Raises `ModelError` for a folder that is unsafe, incomplete or of another kind of model, and for a tokenizer that
    does not fit.
    """
    from transformers import CLIPTextModelWithProjection

    settings = clip_settings(folder, needs_weights=True)
    model, missing, unused = folders.from_weights(
        _with_config(CLIPTextModelWithProjection, settings.text_config), folder, "auto", "a CLIP"
    )
    other = [name for name in unused if not name.startswith(("vision_model.", "visual_projection.", "logit_scale"))]
    refuse_gaps(folder, missing, other)
    found: Any = model.eval()
    made = TextTower(found.text_model, found.text_projection, tokenizer or load_tokenizer(folder), str(folder))
    check_tokenizer(made)
    return made


def _with_config(kind: Any, settings: Any) -> Any:
    from functools import partial
    from types import SimpleNamespace

    return SimpleNamespace(from_pretrained=partial(kind.from_pretrained, config=settings))


def clip_settings(folder: Path, *, needs_weights: bool) -> Any:
    """The configuration of a folder that holds a whole CLIP and is safe to load, else `ModelError`."""
    check_folder(folder, needs_weights=needs_weights)
    settings = folders.settings_of(folder, "a CLIP")
    if settings.model_type in ("clip_vision_model", "clip_text_model"):
        raise ModelError(
            f"{folder}: holds one tower of a CLIP ({settings.model_type}); zero-shot classification needs both. Give "
            "the folder of the whole model, as CLIPModel.save_pretrained writes it."
        )
    if settings.model_type != "clip":
        raise ModelError(
            f"{folder}: a {settings.model_type} model, not a CLIP (model_type clip). Give a CLIP, such as "
            "openai/clip-vit-base-patch32 or a folder of one; other image models go with the task classification."
        )
    return settings


def refuse_gaps(folder: Path, missing: set[str], unused: Sequence[str]) -> None:
    """Raise `ModelError` for weights that are missing or have no place; old files may hold `position_ids`."""
    extra = [name for name in unused if not name.endswith(".position_ids")]
    found = (("are missing and would stay random", sorted(missing)), ("have no place in the model", sorted(extra)))
    problems = [f"{folder}: {len(names)} weights {what}: {listed(names)}." for what, names in found if names]
    if problems:
        folders.refuse_weights(folder, problems)


# ---- tokens ---------------------------------------------------------------------------------------


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; CLIP's own where there are only its vocab.json and merges.txt."""
    pair = folder / "vocab.json", folder / "merges.txt"
    whole = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    if whole or not all(path.is_file() for path in pair) or "</w>" not in pair[0].read_text(encoding="utf-8"):
        return tokenizers.load(folder)
    from transformers import CLIPTokenizer

    with folders.quiet(), folders.explained(folder, "a tokenizer"):
        return CLIPTokenizer(vocab=str(pair[0]), merges=str(pair[1]))


def check_tokenizer(tower: TextTower) -> None:
    """Raise `ModelError` for a tokenizer whose tokens the text tower does not know, or whose end it takes for another.

    The sentence's vector is read at its end token. Old configurations name 2 by mistake; the model then reads at the
    highest token (so does transformers), which must be the end.
    """
    settings, tokenizer = tower.model.config, tower.tokenizer
    end, remedy = tokenizers.ends(tokenizer, tower.name).end, "take tokenizer and weights from one source"
    if len(tokenizer) > settings.vocab_size:
        raise ModelError(
            f"{tower.name}: the tokenizer has {len(tokenizer):,} tokens, the text tower {settings.vocab_size:,}; "
            f"{remedy}."
        )
    if settings.eos_token_id == _LEGACY_END:
        if end != len(tokenizer) - 1:
            raise ModelError(
                f"{tower.name}: text_config.eos_token_id is 2, so the text tower reads a sentence at its highest "
                f"token, but the tokenizer ends with {end} of {len(tokenizer):,} tokens; {remedy}."
            )
    elif settings.eos_token_id != end:
        raise ModelError(
            f"{tower.name}: the text tower reads a sentence at token {settings.eos_token_id} "
            f"(text_config.eos_token_id), the tokenizer ends it with {end}; {remedy}."
        )


def token_rows(tower: TextTower, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text with start and end. Raises `ModelError` for a text longer than the tower reads."""
    ends, most = tokenizers.ends(tower.tokenizer, tower.name), tower.model.config.max_position_embeddings
    with folders.quiet():  # it would warn of long texts, which are refused below
        rows = tower.tokenizer(list(texts), return_attention_mask=False)["input_ids"]
    if any(row[-1:] != [ends.end] for row in rows):
        # One token for both: transformers reads at the first of them, which must not be the start.
        start = [ends.start] if ends.start != ends.end else []
        rows = [[*start, *row, ends.end] for row in rows]
    long = [f"{text!r} ({len(row)})" for text, row in zip(texts, rows, strict=True) if len(row) > most]
    if long:
        raise ModelError(
            f"{len(long)} sentences have more than the {most} tokens that {tower.name} reads: {listed(long, 3)}. "
            "Shorten the template or the class names, or give a tokenizer with longer tokens."
        )
    return rows


# ---- vectors --------------------------------------------------------------------------------------


def quiet(text: str) -> None:
    """Say nothing."""


def text_vectors(
    source: TextTower | Path | str,
    classes: Sequence[str],
    templates: Sequence[str],
    cache_dir: str | None = None,
    say: Callable[[str], None] = quiet,
) -> Tensor:
    """Unit vectors of every sentence, float32 [T, C, D]: template by template, in the order of the classes.

    `source` is a text tower or the folder of a CLIP. Computed once in float32: the cache knows them by the tower's
    weights and the tokens. Raises `ModelError` for classes whose sentences have the same tokens, and as the functions
    above do.
    """
    from finesight import cache

    tower = source if isinstance(source, TextTower) else load_text_tower(Path(source).expanduser())
    texts = sentences(classes, templates)
    rows = token_rows(tower, [text for row in texts for text in row])
    _refuse_twins(classes, texts, rows)
    width = tower.projection.out_features
    key = cache.key_of("prompts-1", tower.key(), torch.__version__, *(" ".join(map(str, row)) for row in rows))

    def fill(array: "NDArray[Any]") -> dict[str, Any]:
        _fill(tower, rows, array)
        return {"templates": list(templates), "classes": list(classes)}

    what = f"vectors of {len(rows):,} prompts"
    found, _ = cache.stored(cache.folder(cache_dir), key, (len(rows), width), "float32", fill, what, say)
    return cache.as_tensor(found).view(len(texts), len(classes), width)


def _fill(tower: TextTower, rows: list[list[int]], array: "NDArray[Any]") -> None:
    from finesight.progress import Progress

    progress = Progress("prompts", len(rows), "sentences")
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))  # so that little is padded
    for start in range(0, len(order), AT_ONCE):
        places = order[start : start + AT_ONCE]
        array[places] = tower.vectors([rows[place] for place in places]).numpy()
        progress.update(start + len(places))
    progress.close()


def _refuse_twins(classes: Sequence[str], texts: list[list[str]], rows: list[list[int]]) -> None:
    """Classes with the same tokens cannot be told apart: "crane" and "Crane", where the tokenizer knows no case."""
    first: dict[tuple[int, ...], int] = {}
    for place, row in enumerate(rows[: len(classes)]):
        other = first.setdefault(tuple(row), place)
        if other != place:
            raise ModelError(
                f"classes {classes[other]!r} and {classes[place]!r}: their sentences are the same to the model "
                f"({texts[0][place]!r}). Rename one so that the difference is in its words."
            )


def ensemble(vectors: Tensor) -> Tensor:
    """[T, C, D] -> [C, D]: the mean of the unit vectors over the templates, made unit again."""
    return functional.normalize(functional.normalize(vectors, dim=-1).mean(0), dim=-1)
