"""A small world of four colours, and a protocol on them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from stepdistill.evaluation.embedded.evaluator import CaptionSet, Evaluator, measured_in_batches
from stepdistill.evaluation.embedded.scorers import Answers, Verdict, border_colour
from stepdistill.evaluation.protocols import EMOJI
from stepdistill.metrics.networks.clip import ClipFeatures

COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [1.0, 1.0, 1.0]])


def disc_pictures(glyphs: list[int], backgrounds: list[int], seed: int = 0) -> torch.Tensor:
    """A grey square whose size is the glyph, on a coloured ground."""
    noise = torch.randn(len(glyphs), 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.02
    images = COLOURS[backgrounds][:, :, None, None].repeat(1, 1, 16, 16)
    for image, glyph in zip(images, glyphs, strict=True):
        image[:, 3 : 5 + 2 * glyph, 3 : 5 + 2 * glyph] = 0.5
    return (images + noise).clamp(0, 1)


class DiscJudge:
    """Counts grey pixels."""

    background_colours = COLOURS

    def __call__(self, images: torch.Tensor) -> Verdict:
        sides = ((images - 0.5).abs().amax(1) < 0.15).sum((1, 2)).float().sqrt()
        glyphs = ((sides - 2) / 2).round().long().clamp(0, 3)
        colours = border_colour(images)
        return Verdict(glyphs, colours, torch.cdist(colours, COLOURS).argmin(1))


@pytest.fixture(scope="session")
def discs() -> Callable[..., torch.Tensor]:
    return disc_pictures


@pytest.fixture(scope="session")
def evaluator(clip: ClipFeatures) -> Evaluator:
    """Twelve captions on four glyphs and four grounds; every caption allows two glyphs."""
    names = ["small", "large"]
    captions = [f"{names[i % 2]} on {'rgbw'[i % 4]}" for i in range(12)]
    answers = [Answers.uniform([0, 1] if i % 2 == 0 else [2, 3], [i % 4]) for i in range(12)]
    protocol = EMOJI.with_images(12)
    judge = DiscJudge()
    bare = Evaluator(protocol, clip, judge, CaptionSet(captions, answers), reference=None)  # type: ignore[arg-type]
    real = disc_pictures([(0, 2, 1, 3)[i % 4] for i in range(12)], [i % 4 for i in range(12)], seed=1)
    other = disc_pictures([(1, 3, 0, 2)[i % 4] for i in range(12)], [i % 4 for i in range(12)], seed=2)
    return Evaluator(
        protocol,
        clip,
        judge,
        CaptionSet(captions, answers),
        reference=measured_in_batches(bare, real, captions),
        floor=measured_in_batches(bare, other, captions),
    )
