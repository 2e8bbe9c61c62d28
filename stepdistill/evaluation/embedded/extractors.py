"""The embedded problem's columns: CLIP features and scores, and whether each caption is satisfied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from stepdistill.data.emoji import SCENE_SIZE, EmojiWorld
from stepdistill.errors import UserError
from stepdistill.evaluation.embedded.glyph_judge import GlyphJudge
from stepdistill.evaluation.embedded.measures import allowed_backgrounds, background_error, coverage, is_right
from stepdistill.evaluation.embedded.problem import answers_of, emoji_world
from stepdistill.evaluation.picture_store import PictureRecord
from stepdistill.metrics.networks.clip import ClipFeatures, emoji_clip
from stepdistill.metrics.preprocess import of_pictures
from stepdistill.metrics.scorers.clip_score import clip_score

JUDGE = "shapes-1"
"""Version of the judge."""


class EmojiExtractor:
    """Features, CLIP score, and the judge's verdict against the caption's right answers."""

    name, is_per_prompt = "emoji-clip", False

    def __init__(self, network: ClipFeatures | None = None, world: EmojiWorld | None = None) -> None:
        self.network, self.world = network or emoji_clip(), world or emoji_world()
        self.judge = GlyphJudge(self.world)

    def record(self) -> dict[str, Any]:
        """The feature network, with the hash of its weights, and the judge."""
        return {"extractor": self.name, "features": self.network.name, "judge": JUDGE}

    def __call__(self, pictures: Sequence[Image.Image], records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """`features`, `clip`, `prompt_accuracy`, `background_error`, `background` and `allowed_backgrounds`."""
        captions = [record.prompt for record in records]
        answers, images = answers_of(captions, self.world), scenes_of(pictures)
        seen, verdict = self.network.images(images), self.judge(images)
        colours = self.judge.background_colours
        return {
            "features": seen.embedding.cpu(),
            "clip": clip_score(seen.embedding, self.network.texts(captions)).cpu(),
            "prompt_accuracy": is_right(verdict, answers).float(),
            "background_error": background_error(verdict.colours, colours, answers),
            "background": verdict.backgrounds,
            "allowed_backgrounds": allowed_backgrounds(answers, len(colours)).to(torch.uint8),
        }


class CoverageExtractor:
    """Coverage of each caption by its pictures, which share a row."""

    name, is_per_prompt = "emoji-coverage", True

    def __init__(self, world: EmojiWorld | None = None) -> None:
        self.world = world or emoji_world()
        self.judge = GlyphJudge(self.world)

    def record(self) -> dict[str, Any]:
        """The judge."""
        return {"extractor": self.name, "judge": JUDGE}

    def __call__(self, pictures: Sequence[Image.Image], records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """`caption_coverage`, one row per prompt."""
        captions = list(dict.fromkeys(record.prompt for record in records))
        groups = self.judge(scenes_of(pictures)).glyphs.view(len(captions), -1)
        found = zip(groups, answers_of(captions, self.world), strict=True)
        values = [coverage(glyphs, answers) for glyphs, answers in found]
        return {"caption_coverage": torch.tensor(values, dtype=torch.float64)}


def scenes_of(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures as images (B, 3, H, W) in [0, 1].

    Raises:
        UserError: they do not have the size of emoji scenes.
    """
    size = (SCENE_SIZE, SCENE_SIZE)
    wrong = next((picture.size for picture in pictures if picture.size != size), None)
    if wrong is not None:
        raise UserError(
            f"the emoji protocol scores pictures of {SCENE_SIZE} x {SCENE_SIZE} pixels, not {wrong[0]} x {wrong[1]}; "
            "choose another --protocol"
        )
    return of_pictures(pictures).float() / 255
