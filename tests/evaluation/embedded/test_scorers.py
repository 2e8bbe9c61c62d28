"""Prompt accuracy, coverage and background error: arithmetic that is known exactly."""

from __future__ import annotations

import math

import torch

from stepdistill.evaluation.embedded.measurements import mean_coverage
from stepdistill.evaluation.embedded.scorers import Answers, coverage, expected_distinct, is_right


def test_expected_distinct_is_the_mean_over_draws() -> None:
    weights = torch.tensor([0.5, 0.3, 0.2])
    draws = torch.multinomial(
        weights.expand(20_000, 3), 4, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    mean = sum(len(set(row)) for row in draws.tolist()) / len(draws)
    assert math.isclose(expected_distinct(weights, 4), mean, rel_tol=0.01)


def test_coverage_of_true_draws_is_one() -> None:
    answers = Answers(torch.tensor([4, 7, 9]), torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0]))
    generator = torch.Generator().manual_seed(0)
    picks = torch.multinomial(answers.weights.expand(4000, 3), 6, replacement=True, generator=generator)
    values = [coverage(answers.glyphs[row], answers) for row in picks]
    assert math.isclose(sum(values) / len(values), 1.0, rel_tol=0.01)


def test_coverage_ignores_wrong_glyphs_and_counts_repeats_once() -> None:
    answers = Answers.uniform([1, 2, 3, 4], [0])
    assert coverage(torch.tensor([1, 1, 1, 1]), answers) == 1 / expected_distinct(answers.weights, 4)
    assert coverage(torch.tensor([8, 8, 8, 8]), answers) == 0.0


def test_mean_coverage_takes_the_seeds_of_each_caption_together(evaluator, discs) -> None:
    answers = [Answers.uniform([0, 1], [0]), Answers.uniform([2, 3], [0])]
    measured = evaluator.measure(discs([0, 1, 2, 2], [0] * 4), ["a"] * 4)
    singles = [coverage(measured.glyphs[:2], answers[0]), coverage(measured.glyphs[2:], answers[1])]
    assert math.isclose(mean_coverage(measured, answers, 2), sum(singles) / 2)
    assert mean_coverage(measured, [], 2) is None


def test_glyph_and_background_must_both_be_right() -> None:
    answers = Answers.uniform([1, 2], [0, 3])
    glyphs, grounds = torch.tensor([1, 2, 5, 1]), torch.tensor([0, 3, 0, 2])
    assert is_right(glyphs, grounds, answers).tolist() == [True, True, False, False]
