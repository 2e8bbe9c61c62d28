"""Recognise the glyph in a picture by comparing shapes, without a learned network.

The background is the colour of the border. The difference from it is cropped to its own extent, which removes position and
scale, and compared with the same crop of every glyph and its mirror image on that background.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from stepdistill.assets import cache_folder
from stepdistill.data.cache import cached, fingerprint
from stepdistill.data.emoji import EmojiWorld, Placement
from stepdistill.evaluation.embedded.measures import Verdict, border_colour
from stepdistill.evaluation.generation import batches
from stepdistill.metrics.preprocess import quantise
from stepdistill.typing import Images

CUT_SIZE = 12
TAIL = 0.03
"""Share of the shape's mass left outside its extent on each side, so that stray pixels do not move the crop."""
THRESHOLDS = (0.06, 0.16)
"""Differences from the background that count as background, and as shape in full."""


@dataclass
class GlyphJudge:
    """Nearest glyph and nearest named background; wrong on fewer than one in a hundred real scenes."""

    world: EmojiWorld
    _templates: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def background_colours(self) -> Tensor:
        """The named backgrounds in [0, 1] (K, 3)."""
        return self.world.background_colors

    def __call__(self, images: Images) -> Verdict:
        """Judge images (B, 3, H, W) in [0, 1]."""
        images = quantise(images).cpu()
        colours = border_colour(images)
        backgrounds = torch.cdist(colours, self.background_colours).argmin(1)
        cuts, looks = cut_out(images, colours), torch.tensor(self.world.looks).repeat(2)
        glyphs = torch.zeros(len(images), dtype=torch.long)
        for background in backgrounds.unique().tolist():
            rows = backgrounds == background
            glyphs[rows] = looks[torch.cdist(cuts[rows], self.templates(background)).argmin(1)]
        return Verdict(glyphs, colours, backgrounds)

    def templates(self, background: int) -> Tensor:
        """Crops of all glyphs on a background, then of their mirror images (2 glyphs, d)."""
        if background not in self._templates:
            key = {"what": "templates", "size": CUT_SIZE, "tail": TAIL, "thresholds": THRESHOLDS}
            key |= {"background": background, "glyphs": fingerprint([("glyphs", self.world.glyphs)])}
            stored = cached(cache_folder("judge"), key, lambda: {"cuts": self._draw(background).half()})
            self._templates[background] = stored["cuts"].float()
        return self._templates[background]

    def _draw(self, background: int) -> Tensor:
        parts = []
        for rows in batches(len(self.world), 256):
            numbers = range(rows.start, rows.stop)
            placed = [Placement(glyph, background, flip=False, scale=0.88, x=0.0, y=0.0) for glyph in numbers]
            images = self.world.draw(placed)
            parts.append(cut_out(images, self.background_colours[[background]].expand(len(images), 3)))
        cuts = torch.cat(parts)
        mirrored = cuts.unflatten(1, (3, CUT_SIZE, CUT_SIZE)).flip(-1).flatten(1)
        return torch.cat([cuts, mirrored])


def cut_out(images: Images, colours: Tensor) -> Tensor:
    """The difference from a background colour (B, 3), cropped to its extent and resized (B, d)."""
    difference = images - colours[:, :, None, None]
    lo, hi = THRESHOLDS
    mass = F.avg_pool2d(difference, 3, stride=1, padding=1).abs().amax(1)
    mass = ((mass - lo) / (hi - lo)).clamp(0, 1)
    (top, bottom), (left, right) = extent(mass.sum(2)), extent(mass.sum(1))
    height, width = images.shape[-2:]
    side = (1.1 * torch.maximum(bottom - top, right - left)).clamp_min(8)
    affine = torch.zeros(len(images), 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = side / width, side / height
    affine[:, 0, 2], affine[:, 1, 2] = (left + right) / width - 1, (top + bottom) / height - 1
    grid = F.affine_grid(affine, [len(images), 3, 2 * CUT_SIZE, 2 * CUT_SIZE], align_corners=False)
    return F.avg_pool2d(F.grid_sample(difference, grid, align_corners=False), 2).flatten(1)


def extent(mass: Tensor) -> tuple[Tensor, Tensor]:
    """The positions that leave `TAIL` of the mass outside on either side; one profile per row (B, n).

    >>> lower, upper = extent(torch.tensor([[0.0, 1.0, 1.0, 0.0]])); lower.round(decimals=2), upper.round(decimals=2)
    (tensor([1.0600]), tensor([2.9400]))
    """
    total = mass.sum(1, keepdim=True)
    flat = torch.full_like(mass, 1 / mass.shape[1])
    cumulative = F.pad(torch.where(total > 0, mass / total.clamp_min(1e-6), flat).cumsum(1), (1, 0))

    def position(share: float) -> Tensor:
        cell = (cumulative < share).sum(1, keepdim=True).clamp(1, mass.shape[1])
        before, after = cumulative.gather(1, cell - 1), cumulative.gather(1, cell)
        return (cell - 1 + (share - before) / (after - before).clamp_min(1e-9))[:, 0]

    return position(TAIL), position(1 - TAIL)
