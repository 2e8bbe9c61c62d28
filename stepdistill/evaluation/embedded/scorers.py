"""Scores of single images against their captions: CLIP score, and exact measures where the right answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stepdistill.typing import Images


@dataclass(frozen=True)
class Answers:
    """What is right for one caption: glyphs with their probability given the caption, and background colours."""

    glyphs: Tensor
    """Ids of the right glyphs (G,)."""
    weights: Tensor
    """p(glyph | caption) (G,), sums to 1."""
    backgrounds: Tensor
    """Ids of the right backgrounds (K,)."""

    @classmethod
    def uniform(cls, glyphs: list[int], backgrounds: list[int]) -> Answers:
        """Every right glyph equally likely."""
        return cls(
            torch.tensor(glyphs), torch.full((len(glyphs),), 1 / len(glyphs)), torch.tensor(backgrounds)
        )


@dataclass(frozen=True)
class Verdict:
    """What a judge sees in a batch of images."""

    glyphs: Tensor
    """Id of the nearest glyph (B,)."""
    colours: Tensor
    """Background colour in [0, 1] (B, 3)."""
    backgrounds: Tensor
    """Id of the nearest named background (B,)."""


class Judge(Protocol):
    """Tells what pictures show."""

    @property
    def background_colours(self) -> Tensor:
        """The named backgrounds in [0, 1] (K, 3)."""
        ...

    def __call__(self, images: Images) -> Verdict:
        """Judge images (B, 3, H, W) in [0, 1]."""
        ...


def border_colour(images: Images, width: int = 2) -> Tensor:
    """Median colour of the outermost `width` pixels (B, 3): a picture that touches the border does not move it.

    >>> border_colour(torch.full((1, 3, 8, 8), 0.5))
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    inner = torch.zeros(images.shape[-2:], dtype=torch.bool)
    inner[width:-width, width:-width] = True
    return images.float()[..., ~inner].median(dim=-1).values


def is_right(glyphs: Tensor, backgrounds: Tensor, answers: Answers) -> Tensor:
    """Whether glyph and background both satisfy the caption (B,).

    >>> is_right(torch.tensor([3, 4, 3]), torch.tensor([0, 0, 1]), Answers.uniform([3, 5], [0]))
    tensor([ True, False, False])
    """
    return torch.isin(glyphs, answers.glyphs) & torch.isin(backgrounds, answers.backgrounds)


def background_error(colours: Tensor, background_colours: Tensor, answers: Answers) -> Tensor:
    """Mean absolute difference over RGB, in levels of 255, to the nearest background the caption allows (B,).

    >>> table = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    >>> background_error(torch.tensor([[0.0, 0.0, 0.6]]), table, Answers.uniform([0], [0, 1]))
    tensor([51.])
    """
    allowed = background_colours[answers.backgrounds]
    return 255 * (colours[:, None] - allowed).abs().mean(-1).min(1).values


def background_imbalance(backgrounds: Tensor, answers: Sequence[Answers]) -> float | None:
    """How far the shares of the backgrounds are from even, over the captions that leave the background free.

    The total variation distance in [0, 1]: the part of the pictures that would have to change their background. A student that
    draws each caption well and always on white has 1 - 1/K, and no measure of single pictures sees it. None where no
    caption leaves it free. Chance alone makes about 0.05 of 500 captions and nine backgrounds; the floor row tells.

    >>> free = Answers.uniform([0], [0, 1])
    >>> background_imbalance(torch.tensor([0, 0, 0, 1]), [free] * 4), background_imbalance(torch.tensor([0, 1]), [free] * 2)
    (0.25, 0.0)
    """
    kinds = 1 + int(torch.cat([backgrounds, *(one.backgrounds for one in answers)]).max())
    drawn, expected = torch.zeros(kinds, dtype=torch.float64), torch.zeros(kinds, dtype=torch.float64)
    free = [i for i, one in enumerate(answers) if len(one.backgrounds) > 1]
    for i in free:
        drawn[backgrounds[i]] += 1 / len(free)
        expected[answers[i].backgrounds] += 1 / len(answers[i].backgrounds) / len(free)
    return float((drawn - expected).abs().sum() / 2) if free else None


def expected_distinct(weights: Tensor, num_draws: int) -> float:
    """Expected number of distinct outcomes in independent draws: `sum_g 1 - (1 - p_g)^S`.

    >>> expected_distinct(torch.tensor([0.5, 0.5]), 2)
    1.5
    """
    return float((1 - (1 - weights.double()) ** num_draws).sum())


def coverage(glyphs: Tensor, answers: Answers) -> float:
    """Distinct right glyphs over S images of one caption, relative to what S true draws are expected to show.

    1 is as varied as the data; a collapsed generator gives `1 / expected`, a wrong one 0. Single captions exceed 1 by chance.

    >>> coverage(torch.tensor([3, 3, 9, 5]), Answers.uniform([3, 5], [0])), coverage(torch.tensor([9]), Answers.uniform([3], [0]))
    (1.0666666666666667, 0.0)
    """
    right = glyphs[torch.isin(glyphs, answers.glyphs)].unique()
    return len(right) / expected_distinct(answers.weights, len(glyphs))
