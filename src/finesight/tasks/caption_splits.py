"""The splits of a captioning run: references as tokens, in batches, and what is to be said of what they lose."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finesight.data.caption_batches import CaptionBatches
from finesight.metrics import ptb
from finesight.metrics.bootstrap import total
from finesight.metrics.captions import CaptionStatistics
from finesight.models import tokenizers
from finesight.tasks import encoder_cache
from finesight.tasks.generation import room

if TYPE_CHECKING:
    from datasets import Dataset

    from finesight.tasks.captioning import Captioning


SIDES = {"left", "right", "leftward", "rightward", "left-sided", "right-sided"}


def objects(values: Sequence[Any]) -> NDArray[np.object_]:
    """Texts, or lists of them, as object [N], also where all lists are of one length."""
    found = np.empty(len(values), object)
    for row, value in enumerate(values):
        found[row] = value
    return found


def batches(task: "Captioning", dataset: "Dataset", split: str, hashes: list[str]) -> CaptionBatches:
    """The batches of a split: images, or what the frozen encoder made of them, with the tokens of the references."""
    config, train = task.config, split == "train"
    augment = config.augment if train and config.augment.active else None
    columns = {"image": task.pixels[split]}
    if encoder_cache.sound(config, task.model, augment):
        kept = encoder_cache.states(task, task.pixels[split], hashes, split)
        columns = columns if kept is None else {"states": kept}
    lists = task.references(split)
    return CaptionBatches(
        list(dataset["id"]),
        columns,
        tokens(task, [text for texts in lists for text in texts], split),
        bucketed=train,
        counts=[len(texts) for texts in lists],
        batch_size=config.train.batch_size if train else config.evaluation.batch_size,
        seed=config.seed,
        augment=augment,
        size=task.model.image_size,
        workers=config.train.workers if train else 0,
    )


def tokens(task: "Captioning", texts: list[str], split: str) -> list[list[int]]:
    """The tokens of references, each with the end where it was not cut; what is cut is noted for the report."""
    model, end = task.model, task.model.ends.end
    longest = min(task.config.model.longest, model.positions or task.config.model.longest)
    rows = tokenizers.encode(model.tokenizer, texts, end, longest)
    cut = sum(row[-1] != end for row in rows)
    if cut:
        lost = "is not learnt" if split == "train" else "does not count in the negative log-likelihood"
        note = (
            f"{split}: {cut:,} of {len(rows):,} captions have more than {longest} tokens; what is behind them {lost} "
            f"({'--model.longest' if longest == task.config.model.longest else 'the positions of the language model'})."
        )
        model.notes.append(note)
        if split == "train":
            task.say(note)
    return rows


def mirrored(task: "Captioning") -> list[str]:
    """A warning where training images are mirrored and their captions say left or right."""
    if not task.config.augment.flip:
        return []
    texts = [text for of_image in task.references("train") for text in of_image]
    sided = sum(not SIDES.isdisjoint(ptb.tokenize(text)) for text in texts)
    if not sided:
        return []
    note = (
        f"Training images are mirrored (augment.flip), and {sided:,} of {len(texts):,} training captions say left or "
        "right: of a mirrored image that is false. Leave augment.flip out where sides matter."
    )
    task.say(note)
    return [note]


def ceiling(task: "Captioning") -> list[str]:
    """What the scores can reach at most, where the tokenizer or `generation.max_tokens` cannot give all words back."""
    references = task.references("validation")
    true = [texts[0] for texts in references]
    model = task.model
    longest = room(model, task.config.generation)
    rows = tokenizers.encode(model.tokenizer, true, model.ends.end, longest)
    back = [tokenizers.decode(model.tokenizer, row) for row in rows]
    lost = sum(ptb.tokenize(one) != ptb.tokenize(other) for one, other in zip(true, back, strict=True))
    if not lost:
        return []
    metric = CaptionStatistics(meteor=False)
    best, reached = (
        float(metric.reduce(total(metric.statistics(texts, list(references))))["cider"]) for texts in (true, back)
    )
    return [
        f"{lost:,} of {len(true):,} validation captions do not come back word for word from the tokenizer, cut at "
        f"{longest} tokens: a model that wrote every one of them would reach CIDEr "
        f"{reached:.2f} there, and the captions themselves {best:.2f}. What is not written by the model, such as the "
        "nearest caption, loses nothing."
    ]
