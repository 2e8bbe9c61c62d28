"""Exact measures of the embedded problem, where the right answers of a caption are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stepdistill.data.captions import AnswerSet
from stepdistill.typing import Images


@dataclass(frozen=True)
class Verdict:
    """The judge's findings on a batch of images."""

    glyphs: Tensor
    """Id of the nearest glyph (B,)."""
    colours: Tensor
    """Background colour in [0, 1] (B, 3)."""
    backgrounds: Tensor
    """Id of the nearest named background (B,)."""


def border_colour(images: Images, width: int = 2) -> Tensor:
    """Median colour of the outermost `width` pixels (B, 3): a picture that touches the border does not move it.

    >>> border_colour(torch.full((1, 3, 8, 8), 0.5))
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    inner = torch.zeros(images.shape[-2:], dtype=torch.bool)
    inner[width:-width, width:-width] = True
    return images.float()[..., ~inner].median(dim=-1).values


def is_right(verdict: Verdict, answers: list[AnswerSet]) -> Tensor:
    """Whether glyph and background both satisfy the caption (B,)."""
    found = zip(verdict.glyphs.tolist(), verdict.backgrounds.tolist(), answers, strict=True)
    return torch.tensor([glyph in each.looks and ground in each.backgrounds for glyph, ground, each in found])


def background_error(colours: Tensor, named: Tensor, answers: list[AnswerSet]) -> Tensor:
    """Mean absolute difference over RGB, in levels of 255, to the nearest background the caption allows (B,).

    Args:
        colours: background colours in [0, 1] (B, 3).
        named: colours of the named backgrounds in [0, 1] (K, 3).
        answers: of each picture's caption.
    """
    errors = 255 * (colours[:, None] - named).abs().mean(-1)
    return errors.masked_fill(~allowed_backgrounds(answers, len(named)), torch.inf).min(1).values


def allowed_backgrounds(answers: list[AnswerSet], count: int) -> Tensor:
    """Which of `count` backgrounds each caption allows (B, count)."""
    allowed = torch.zeros(len(answers), count, dtype=torch.bool)
    for row, each in zip(allowed, answers, strict=True):
        row[torch.from_numpy(each.backgrounds)] = True
    return allowed


def background_imbalance(backgrounds: Tensor, allowed: Tensor) -> float | None:
    """Total variation distance of the backgrounds' shares from even, over the captions that leave the background free.

    In [0, 1]: the share of pictures that would have to change their background. A student that draws each caption well, always
    on white, has 1 - 1/K, and no measure of single pictures shows it. None if no caption leaves it free. Chance
    alone gives about 0.05 for 500 captions and nine backgrounds; see the floor row.

    Args:
        backgrounds: nearest named background of each picture (B,).
        allowed: backgrounds each caption allows (B, K).

    >>> free = torch.ones(4, 2)
    >>> background_imbalance(torch.tensor([0, 0, 0, 1]), free), background_imbalance(torch.tensor([0, 1, 1, 0]), free)
    (0.25, 0.0)
    """
    free = allowed.sum(1) > 1
    if not free.any():
        return None
    drawn = torch.bincount(backgrounds[free], minlength=allowed.shape[1]).double() / free.sum()
    expected = (allowed[free] / allowed[free].sum(1, keepdim=True).double()).mean(0)
    return float((drawn - expected).abs().sum() / 2)


def coverage(glyphs: Tensor, answers: AnswerSet) -> float:
    """Distinct right looks over S pictures of one caption, relative to the number expected of S true draws.

    1 is as varied as the data; a collapsed generator gives `1 / expected`, a wrong one 0. Single captions exceed 1 by chance.

    >>> two = AnswerSet(*(np.array(each) for each in ([3, 5], [0], [3, 5], [0.5, 0.5])))
    >>> round(coverage(torch.tensor([3, 3, 9, 5]), two), 4), coverage(torch.tensor([9]), two)
    (1.0667, 0.0)
    """
    right = np.intersect1d(glyphs.numpy(), answers.looks)
    return len(right) / answers.expected_distinct(len(glyphs))
