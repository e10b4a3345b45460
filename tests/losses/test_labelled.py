"""CLIP's loss without false negatives: its closed form, its ends, and what it does that the plain one does not."""

import math

import pytest
import torch
from torch.nn import functional

from finesight.errors import ModelError
from finesight.losses import clip_loss
from finesight.losses.labelled import labelled_clip_loss
from tests.losses.test_contrastive import pairs


def test_without_other_true_pairs_it_is_clips() -> None:
    image, text = pairs()
    for true in (torch.eye(13, dtype=torch.bool), torch.zeros(13, 13, dtype=torch.bool)):
        torch.testing.assert_close(labelled_clip_loss(image, text, 9.0, true), clip_loss(image, text, 9.0))


def test_by_hand_where_the_sums_run_over_true_negatives_only() -> None:
    """Text 2 is also true of image 0, but text 0 is not true of image 2: both directions count for themselves."""
    image, text = pairs(4)
    true = torch.zeros(4, 4, dtype=torch.bool)
    true[0, 2] = True
    logits = (image @ text.T * 5).tolist()
    by_rows = [{0, 1, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}]
    by_columns = [{0, 1, 2, 3}, {0, 1, 2, 3}, {1, 2, 3}, {0, 1, 2, 3}]
    rows = [math.log(sum(math.exp(logits[i][j]) for j in kept)) - logits[i][i] for i, kept in enumerate(by_rows)]
    columns = [math.log(sum(math.exp(logits[i][j]) for i in kept)) - logits[j][j] for j, kept in enumerate(by_columns)]
    expected = (sum(rows) / 4 + sum(columns) / 4) / 2
    assert labelled_clip_loss(image, text, 5.0, true).item() == pytest.approx(expected, rel=1e-12)


def test_a_perfect_model_of_two_classes_costs_nothing_here_and_the_logarithm_of_the_class_there() -> None:
    labels = torch.arange(20) % 2
    features = functional.one_hot(labels).double()
    true = labels[:, None] == labels
    assert labelled_clip_loss(features, features, 100.0, true).item() == pytest.approx(0, abs=1e-12)
    assert clip_loss(features, features, 100.0).item() == pytest.approx(math.log(10), rel=1e-12)


def test_shapes_that_do_not_pair_are_refused() -> None:
    image, text = pairs(4)
    with pytest.raises(ModelError, match=r"true pairs \[4, 3\]"):
        labelled_clip_loss(image, text, 1.0, torch.zeros(4, 3, dtype=torch.bool))
