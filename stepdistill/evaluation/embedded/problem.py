"""The embedded problem: frozen captions, their right answers, and real scenes drawn from the true law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepdistill.assets import cache_folder
from stepdistill.data.cache import cached, fingerprint
from stepdistill.data.captions import AnswerSet
from stepdistill.data.emoji import EVALUATION_SEED, EmojiWorld, Placement
from stepdistill.errors import UserError
from stepdistill.evaluation.drawing import Assignment, Painter
from stepdistill.evaluation.generation import batches
from stepdistill.evaluation.prompt_sets import PromptSet
from stepdistill.metrics.networks.base import FeatureNetwork
from stepdistill.typing import Images

FLOOR_SEED = 90_001
"""Seed of the floor's scenes; the next seed draws its pictures for coverage."""
COVERAGE_CAPTIONS, COVERAGE_SAMPLES, COVERAGE_MIN_LOOKS = 32, 16, 8
"""Coverage takes this many pictures of each of the first captions with at least this many right looks."""


@cache
def emoji_world() -> EmojiWorld:
    """The embedded scenes, loaded once."""
    return EmojiWorld()


def answers_of(captions: Sequence[str], world: EmojiWorld) -> list[AnswerSet]:
    """The right looks and backgrounds of each caption.

    Raises:
        UserError: a prompt is not an emoji caption.
    """
    answers = [world.answers(caption) for caption in captions]
    for caption, each in zip(captions, answers, strict=True):
        if not len(each.looks) or not len(each.backgrounds):
            raise UserError(
                f"'{caption}' is not an emoji caption; the emoji protocol scores no other prompts, choose another --protocol"
            )
    return answers


def coverage_assignment(prompts: PromptSet, seed: int, world: EmojiWorld) -> Assignment | None:
    """Several pictures of each of the first captions that allow many looks; None if there is no such caption."""
    numbers: dict[str, int] = {}
    for number, answers in enumerate(answers_of(prompts.prompts, world)):
        if len(answers.looks) >= COVERAGE_MIN_LOOKS:
            numbers.setdefault(prompts.prompts[number], number)
    chosen = tuple(numbers.values())[:COVERAGE_CAPTIONS]
    if not chosen:
        return None
    captions = PromptSet.of([prompts.prompts[number] for number in chosen])
    return Assignment(captions, seed, COVERAGE_SAMPLES, first_sample=1, numbers=chosen)


def floor_painter(world: EmojiWorld, seed: int = FLOOR_SEED) -> Painter:
    """Draws each caption from the true law of scenes given the caption: what a perfect generator would draw."""

    def paint(records: Sequence[Mapping[str, Any]]) -> Images:
        answers = answers_of([record["prompt"] for record in records], world)
        return world.draw(
            [
                true_placement(world, each, seed + (record["sample"] > 0), record["index"])
                for each, record in zip(answers, records, strict=True)
            ]
        )

    return paint


def true_placement(world: EmojiWorld, answers: AnswerSet, seed: int, index: int) -> Placement:
    """One draw of the scene given its caption's answers."""
    rng = np.random.default_rng((seed, index, 1))
    look = rng.choice(answers.looks, p=answers.probabilities / answers.probabilities.sum())
    glyph = rng.choice(np.flatnonzero(np.asarray(world.looks) == look))
    background = rng.choice(answers.backgrounds)
    return replace(world.describe(seed, index)[0], glyph=int(glyph), background=int(background))


def scene_features(network: FeatureNetwork, world: EmojiWorld, count: int) -> Tensor:
    """Features (count, d) of the scenes the evaluation captions were drawn from, kept in the user's cache."""

    def compute() -> dict[str, Tensor]:
        images, _ = world.scenes(EVALUATION_SEED, range(count))
        return {"features": torch.cat([network(images[rows]) for rows in batches(count, 250)])}

    # A few scenes identify the law of all of them.
    law = fingerprint([("scenes", world.scenes(EVALUATION_SEED, range(4))[0])])
    return cached(cache_folder("real"), {"scenes": law, "count": count, **network.protocol()}, compute)["features"]
