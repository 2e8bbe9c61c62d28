"""The embedded text-to-image problem: emoji scenes rendered on the fly, with partial captions.

A scene is a glyph, possibly mirrored, slightly shifted and scaled, on one of the named backgrounds; it is a pure
function of (seed, index). `EmojiWorld.answers` returns the exact set of scenes that a caption describes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from stepdistill.assets import asset_path
from stepdistill.data.captions import BACKGROUNDS, AnswerSet, CaptionGrammar
from stepdistill.typing import Images

SCENE_SIZE = 64
SCALE_RANGE = (0.8, 0.96)

EVALUATION_SEED = 777_000
"""Seed of the evaluation scenes. Training uses small seeds, so the two never share a scene."""


@dataclass(frozen=True)
class Placement:
    """The random parameters of a scene other than its caption."""

    glyph: int
    background: int
    flip: bool
    scale: float
    x: float
    y: float


class EmojiWorld:
    """All emoji scenes.

    Args:
        parquet: glyph table; default: the embedded one.
    """

    def __init__(self, parquet: Path | str | None = None) -> None:
        table = pq.read_table(parquet or asset_path("emoji/glyphs.parquet"))
        self.names: list[str] = table["name"].to_pylist()
        self.subgroups: list[str] = table["subgroup"].to_pylist()
        self.looks: list[int] = table["look"].to_pylist()
        self._encoded: list[bytes] = table["image"].to_pylist()
        self.grammar = CaptionGrammar(self.names, self.subgroups, self.looks)
        self.backgrounds = list(BACKGROUNDS)
        self.background_colors = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32) / 255

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def glyphs(self) -> Tensor:
        """All glyphs as RGBA bytes with premultiplied alpha, (n, 4, 64, 64)."""
        pictures = (Image.open(io.BytesIO(data)).convert("RGBA").convert("RGBa") for data in self._encoded)
        return (
            torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()
        )

    def describe(self, seed: int, index: int) -> tuple[Placement, str]:
        """Return placement and caption of scene (seed, index) without rendering it."""
        rng = np.random.default_rng((seed, index))
        glyph, background = int(rng.integers(len(self))), int(rng.integers(len(self.backgrounds)))
        scale = float(rng.uniform(*SCALE_RANGE))
        reach = 1 - scale  # the glyph box stays inside the picture, in units of half its width
        x, y = (float(value) for value in rng.uniform(-reach, reach, size=2))
        placement = Placement(glyph, background, bool(rng.random() < 0.5), scale, x, y)
        return placement, self.grammar.caption(glyph, background, rng)

    def draw(self, placements: Sequence[Placement]) -> Images:
        """Render scenes: resample the glyphs bilinearly and composite them over their backgrounds."""
        scale = torch.tensor([p.scale for p in placements])
        mirror = torch.tensor([-1.0 if p.flip else 1.0 for p in placements])
        offset = torch.tensor([(p.x, p.y) for p in placements])
        # The affine map takes output to input coordinates: x_in = mirror (x_out - x) / scale, y_in = (y_out - y) / scale.
        affine = torch.zeros(len(placements), 2, 3)
        affine[:, 0, 0], affine[:, 1, 1] = mirror / scale, 1 / scale
        affine[:, 0, 2], affine[:, 1, 2] = -offset[:, 0] * mirror / scale, -offset[:, 1] / scale
        glyphs = self.glyphs[[p.glyph for p in placements]].float() / 255
        grid = F.affine_grid(affine, [len(placements), 4, SCENE_SIZE, SCENE_SIZE], align_corners=False)
        layer = F.grid_sample(glyphs, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        ground = self.background_colors[[p.background for p in placements]][:, :, None, None]
        return (layer[:, :3] + (1 - layer[:, 3:]) * ground).clamp_(0, 1)

    def scenes(self, seed: int, indices: Iterable[int]) -> tuple[Images, list[str]]:
        """Render scenes: pictures in [0, 1], (n, 3, 64, 64), and captions."""
        described = [self.describe(seed, index) for index in indices]
        chunks = [described[start : start + 256] for start in range(0, len(described), 256)]
        images = [self.draw([placement for placement, _ in chunk]) for chunk in chunks]
        pictures = torch.cat(images) if images else torch.zeros(0, 3, SCENE_SIZE, SCENE_SIZE)
        return pictures, [caption for _, caption in described]

    def answers(self, caption: str) -> AnswerSet:
        """The exact set of glyphs and backgrounds that satisfy a caption, with the true conditional law."""
        return self.grammar.answers(caption)
