"""Everything a protocol needs in memory: captions, right answers, the eye, and real pictures measured by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from stepdistill.evaluation.embedded.measurements import (
    Measurements,
    Row,
    caption_scores,
    distances,
    mean_coverage,
)
from stepdistill.evaluation.embedded.scorers import Answers, Judge
from stepdistill.evaluation.generation import as_bytes, batches
from stepdistill.evaluation.protocols import Protocol
from stepdistill.metrics.networks.clip import ClipFeatures, ImageFeatures
from stepdistill.metrics.scorers.clip_score import clip_score
from stepdistill.typing import Images


@dataclass(frozen=True)
class CaptionSet:
    """Captions and what is right for each."""

    captions: list[str]
    answers: list[Answers]

    def __len__(self) -> int:
        return len(self.captions)

    def first(self, n: int) -> CaptionSet:
        """The first n captions, in order; again from the start when there are fewer."""
        order = [i % len(self) for i in range(n)]
        return self.at(order)

    def at(self, order: Sequence[int]) -> CaptionSet:
        """Captions by number."""
        return CaptionSet([self.captions[i] for i in order], [self.answers[i] for i in order])

    def repeated(self, times: int) -> CaptionSet:
        """Each caption `times` times in turn."""
        return self.at([i for i in range(len(self)) for _ in range(times)])


@dataclass(frozen=True)
class Evaluator:
    """A protocol, loaded. `load_evaluator` makes one; tests and users with their own data build it directly."""

    protocol: Protocol
    features: ClipFeatures
    judge: Judge
    prompts: CaptionSet
    """The captions that are generated for, `protocol.num_images` of them."""
    reference: Measurements
    """Real pictures, as many."""
    floor: Measurements | None = None
    """Other real pictures of the same captions: what a perfect generator would score."""
    floor_variety: Measurements | None = None
    """Real pictures of `coverage_prompts`, `coverage_seeds` of each."""

    def measure(self, images: Images, captions: Sequence[str], *, text: Tensor | None = None) -> Measurements:
        """Features and scores of images (B, 3, H, W) in [0, 1] for their captions."""
        seen = self.features.images(images)
        text = self.features.texts(captions) if text is None else text
        verdict = self.judge(images)
        return Measurements(
            features=chosen(seen, self.protocol.frechet_features).cpu(),
            clip_scores=clip_score(seen.embedding, text).cpu(),
            glyphs=verdict.glyphs,
            backgrounds=verdict.backgrounds,
            colours=verdict.colours,
            pictures=as_bytes(images.cpu()[:16]),
        )

    def coverage_prompts(self) -> tuple[CaptionSet, list[int]]:
        """The captions that leave enough room for variety, and their numbers."""
        room = [
            i
            for i, one in enumerate(self.prompts.answers)
            if len(one.glyphs) >= self.protocol.coverage_min_glyphs
        ]
        seen: dict[str, int] = {}
        for i in room:
            seen.setdefault(self.prompts.captions[i], i)
        chosen = list(seen.values())[: self.protocol.coverage_captions]
        return self.prompts.at(chosen), chosen

    def scores(self, measured: Measurements) -> dict[str, Any]:
        """Every measure of a row that needs one picture per caption."""
        colours = self.judge.background_colours
        return distances(measured, self.reference) | caption_scores(measured, self.prompts.answers, colours)

    def coverage(self, measured: Measurements) -> float | None:
        """Mean coverage of `coverage_seeds` pictures for each of `coverage_prompts`."""
        return mean_coverage(measured, self.coverage_prompts()[0].answers, self.protocol.coverage_seeds)

    def floor_row(self) -> Row:
        """Real pictures against real pictures: the distance that chance alone makes at this count."""
        if self.floor is None:
            raise ValueError("this evaluator holds no second set of real pictures")
        variety = None if self.floor_variety is None else self.coverage(self.floor_variety)
        return Row(
            model="floor", name="floor", n=len(self.floor), coverage=variety, **self.scores(self.floor)
        )


def chosen(seen: ImageFeatures, which: Literal["pooled", "embedding"]) -> Tensor:
    """One of the two views of an image."""
    return seen.pooled if which == "pooled" else seen.embedding


def measured_in_batches(
    evaluator: Evaluator, images: Images, captions: Sequence[str], size: int = 250
) -> Measurements:
    """Measurements of many images without holding all activations at once."""
    parts = [
        evaluator.measure(images[rows], captions[rows.start : rows.stop])
        for rows in batches(len(images), size)
    ]
    return Measurements.cat(parts)
