"""Exact measures of the embedded problem: arithmetic that is known exactly."""

from __future__ import annotations

import math

import numpy as np
import torch

from stepdistill.data.captions import AnswerSet
from stepdistill.evaluation.columns import Columns
from stepdistill.evaluation.embedded.measures import (
    Verdict,
    allowed_backgrounds,
    background_error,
    background_imbalance,
    coverage,
    is_right,
)
from stepdistill.evaluation.reductions import imbalance


def answers(looks: list[int], backgrounds: list[int], law: list[float] | None = None) -> AnswerSet:
    """Right looks, by default all equally likely, and right backgrounds."""
    probabilities = np.full(len(looks), 1 / len(looks)) if law is None else np.array(law)
    return AnswerSet(np.array(looks), np.array(backgrounds), np.array(looks), probabilities)


def test_coverage_of_true_draws_is_one() -> None:
    right = answers([4, 7, 9], [0], [0.5, 0.3, 0.2])
    picks = torch.multinomial(
        torch.from_numpy(right.probabilities).expand(4000, 3), 6, replacement=True,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    values = [coverage(torch.from_numpy(right.looks)[row], right) for row in picks]
    assert math.isclose(sum(values) / len(values), 1.0, rel_tol=0.01)


def test_coverage_ignores_wrong_glyphs_and_counts_repeats_once() -> None:
    right = answers([1, 2, 3, 4], [0])
    assert math.isclose(coverage(torch.tensor([1, 1, 1, 1]), right), 1 / (4 * (1 - 0.75**4)))
    assert coverage(torch.tensor([8, 8, 8, 8]), right) == 0.0


def test_glyph_and_background_must_both_be_right() -> None:
    verdict = Verdict(torch.tensor([1, 2, 5, 1]), torch.zeros(4, 3), torch.tensor([0, 3, 0, 2]))
    assert is_right(verdict, [answers([1, 2], [0, 3])] * 4).tolist() == [True, True, False, False]


def test_background_error_is_to_the_nearest_allowed_background() -> None:
    named = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    colours = torch.tensor([[0.0, 0.0, 0.6], [0.0, 0.0, 0.6]])
    errors = background_error(colours, named, [answers([0], [0, 1]), answers([0], [1])])
    assert torch.allclose(errors, torch.tensor([51.0, 255 * 2.4 / 3]))


def test_shares_of_backgrounds_are_a_number_of_their_own() -> None:
    """Right pictures all on one background: only the imbalance shows it; captions that name theirs do not count."""
    allowed = allowed_backgrounds([answers([0], [0, 1])] * 4 + [answers([0], [0])], 2)
    even, uneven = torch.tensor([0, 1, 0, 1, 0]), torch.zeros(5, dtype=torch.long)
    assert (background_imbalance(even, allowed), background_imbalance(uneven, allowed)) == (0.0, 0.5)
    assert background_imbalance(uneven[4:], allowed[4:]) is None
    columns = Columns({"background": uneven, "allowed_backgrounds": allowed}, torch.arange(5), (None,) * 5)
    assert imbalance(columns, "background_imbalance", None)["background_imbalance"].whole.value == 0.5
