"""Eyes by the name of their variant: what turns pictures into the columns that numbers are made of.

A protocol says which variant a metric's name stands for; `open_eye` makes it. Weights are looked for only then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from stepdistill.data.emoji import EmojiWorld
from stepdistill.errors import UserError
from stepdistill.metrics.emoji import answers_of, load_evaluator
from stepdistill.metrics.evaluator import Evaluator
from stepdistill.metrics.picture_store import PictureRecord
from stepdistill.metrics.protocols import EMOJI, Benchmark
from stepdistill.metrics.scorers import background_error, is_right
from stepdistill.metrics.scoring import Eye

Pictures = Sequence[Image.Image]


def levels(picture: Image.Image) -> Tensor:
    """One picture as an image (3, H, W) in [0, 1]."""
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return data.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 255


def one_size(pictures: Pictures, asked_by: str) -> Tensor:
    """Pictures of one size as images (B, 3, H, W) in [0, 1].

    Raises:
        UserError: they differ in size.
    """
    if len({picture.size for picture in pictures}) > 1:
        raise UserError(f"{asked_by} needs pictures of one size; resize them first")
    return torch.stack([levels(picture) for picture in pictures])


class PixelEye:
    """Mean brightness and contrast, 0 to 255: a cheap alarm for collapse and over-saturation."""

    name = "pixels"
    sees_prompts = False

    def record(self) -> dict[str, Any]:
        """The version of the columns."""
        return {"eye": self.name, "version": 1}

    def __call__(self, pictures: Pictures, records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """`brightness` is the mean of all levels, `contrast` their standard deviation."""
        del records
        images = [255 * levels(picture).double() for picture in pictures]
        return {
            "brightness": torch.stack([image.mean() for image in images]),
            "contrast": torch.stack([image.std(correction=0) for image in images]),
        }


class EmojiEye:
    """The eye and the judge of the embedded problem: features, CLIP score, and whether the caption is satisfied."""

    name = "emoji"
    sees_prompts = False

    def __init__(self, evaluator: Evaluator | None = None, world: EmojiWorld | None = None) -> None:
        self.world = world or EmojiWorld()
        self.evaluator = evaluator or load_evaluator(EMOJI, world=self.world, with_floor=False)

    def record(self) -> dict[str, Any]:
        """The feature network with the hash of its weights, and the judge."""
        return {"eye": self.name, "features": self.evaluator.features.name, "judge": EMOJI.judge}

    def __call__(self, pictures: Pictures, records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """Columns `features`, `clip`, `prompt_accuracy`, `background_error` and `glyph`."""
        captions = [record.prompt for record in records]
        answers = [answers_of(self.world.answers(caption)) for caption in captions]
        for caption, each in zip(captions, answers, strict=True):
            if not len(each.glyphs) or not len(each.backgrounds):
                raise UserError(f"'{caption}' is no emoji caption, so nothing is known to be right for it")
        measured = self.evaluator.measure(one_size(pictures, "the emoji eye"), captions)
        colours = self.evaluator.judge.background_colours
        rows = [slice(i, i + 1) for i in range(len(captions))]
        right = [
            is_right(measured.glyphs[row], measured.backgrounds[row], each)
            for row, each in zip(rows, answers, strict=True)
        ]
        errors = [
            background_error(measured.colours[row], colours, each)
            for row, each in zip(rows, answers, strict=True)
        ]
        return {
            "features": measured.features.float(),
            "clip": measured.clip_scores.float(),
            "prompt_accuracy": torch.cat(right).float(),
            "background_error": torch.cat(errors).float(),
            "glyph": measured.glyphs,
        }


class UserEye:
    """A user's own scorer: `package.module:function` of PIL pictures and prompts, one number a picture."""

    sees_prompts = False

    def __init__(self, name: str) -> None:
        self.name = name
        module, _, function = name.partition(":")
        try:
            self.score: Callable[[Pictures, list[str]], Any] = getattr(import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise UserError(f"the metric '{name}' cannot be imported: {error}; give package.module:function") from error

    def record(self) -> dict[str, Any]:
        """The name alone: a function has no version that could be read."""
        return {"eye": self.name}

    def __call__(self, pictures: Pictures, records: Sequence[PictureRecord]) -> Mapping[str, Tensor]:
        """The column `score`."""
        values = self.score(pictures, [record.prompt for record in records])
        return {"score": torch.as_tensor(values, dtype=torch.float32)}


EyeMaker = Callable[[Benchmark, torch.device], Eye]

EYES: dict[str, EyeMaker] = {
    "pixels": lambda protocol, device: PixelEye(),
    "emoji": lambda protocol, device: EmojiEye(),
}
"""Variants by name; a prefix before the first slash stands for a family."""


def open_eye(variant: str, protocol: Benchmark, device: torch.device) -> Eye:
    """The eye of a variant, its weights loaded.

    Raises:
        UserError: there is none of that name, or its weights are not to be had.
    """
    if ":" in variant:
        return UserEye(variant)
    maker = EYES.get(variant) or EYES.get(variant.split("/")[0])
    if maker is None:
        raise UserError(f"there is no metric variant '{variant}'; there are {', '.join(EYES)}")
    return maker(protocol, device)
