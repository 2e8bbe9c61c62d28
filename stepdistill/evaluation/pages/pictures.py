"""Labelled grids of pictures: one row per model, one column per caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stepdistill.metrics.preprocess import to_pictures

INK, FAINT, PAPER = (28, 30, 38), (98, 104, 120), (255, 255, 255)
GAP, MARGIN = 6, 12


def grid(
    rows: Mapping[str, Tensor | Sequence[Image.Image]], captions: Sequence[str] = (), *, tile: int = 96
) -> Image.Image:
    """One labelled row per entry, captions under the columns.

    Args:
        rows: label to images (B, 3, H, W) in [0, 1] or uint8, or to PIL pictures.
        captions: one per column, wrapped to at most four lines.
        tile: side of a picture; smaller images are enlarged, larger ones keep their size up to twice the tile.
    """
    pictures = {label: _pictures(images) for label, images in rows.items()}
    columns = max((len(row) for row in pictures.values()), default=0)
    if columns == 0:
        raise ValueError("a grid needs at least one picture")
    side = min(max(tile, *(max(picture.size) for row in pictures.values() for picture in row)), 2 * tile)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    labels = {label: wrapped(label, font, 150) for label in pictures}
    left = MARGIN + max(font.getlength(line) for lines in labels.values() for line in lines or [""]) + 2 * GAP
    texts = [wrapped(caption, small, side)[:4] for caption in captions[:columns]]
    foot = 16 * max((len(lines) for lines in texts), default=0) + (GAP if texts else 0)
    width = round(left) + columns * (side + GAP) - GAP + MARGIN
    height = MARGIN + len(pictures) * (side + GAP) - GAP + foot + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for y, (label, row) in enumerate(pictures.items()):
        top = MARGIN + y * (side + GAP)
        middle = top + side / 2 - 9.5 * len(labels[label])
        pen.multiline_text((MARGIN, middle), "\n".join(labels[label]), fill=INK, font=font)
        for x, picture in enumerate(row):
            sheet.paste(fitted(picture, side), (round(left) + x * (side + GAP), top))
    for x, lines in enumerate(texts):
        place = (left + x * (side + GAP) + side / 2, height - MARGIN - foot + GAP)
        pen.multiline_text(place, "\n".join(lines), fill=FAINT, font=small, anchor="ma", align="center")
    return sheet


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """The picture scaled to fit a square, centred."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    resample = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(picture.convert("RGB").resize(size, resample), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """Break a text into lines of at most this width; a longer word gets its own line."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    return lines


def _pictures(images: Tensor | Sequence[Image.Image]) -> list[Image.Image]:
    if not isinstance(images, Tensor):
        return list(images)
    images = images.detach().float() / (1 if images.is_floating_point() else 255)
    return to_pictures(images)
