"""Rebuild glyphs.parquet: every emoji of Noto Color Emoji at 64 px with transparency, with its Unicode names.

    python assets/emoji/build_glyphs.py

Sources (Debian packages `fonts-noto-color-emoji` and `unicode-data`): the font `NotoColorEmoji.ttf`, whose bitmaps are
drawn with Pillow at their native size (109 px per em, 136x128 px), and Unicode's `emoji-test.txt` for names, groups and
subgroups. Sequences that the font has no single glyph for (two glyphs would be drawn side by side) are left out.
"""

from __future__ import annotations

import argparse
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont, features

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_TEST = Path("/usr/share/unicode/emoji/emoji-test.txt")
OUTPUT = Path(__file__).resolve().parent / "glyphs.parquet"
BITMAP_SIZE = 109
GLYPH_WIDTH, GLYPH_HEIGHT = 136, 128
PIXELS = 64
SAME_LOOK = 5.0
"""Root mean square difference (of 255, over 32x32 premultiplied RGBA) below which two drawings count as the same."""
ENTRY = re.compile(r"^(?P<codes>[0-9A-F ]+?)\s*; fully-qualified\s+# \S+ E\d+\.\d+ (?P<name>.+)$")


@dataclass(frozen=True)
class Emoji:
    """One fully-qualified line of emoji-test.txt."""

    text: str
    name: str
    group: str
    subgroup: str


def read_emoji(path: Path) -> list[Emoji]:
    """The fully-qualified emoji of emoji-test.txt, in its order."""
    found, group, subgroup = [], "", ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif match := ENTRY.match(line):
            text = "".join(chr(int(code, 16)) for code in match["codes"].split())
            found.append(Emoji(text, match["name"], group, subgroup))
    return found


def draw(emoji: Emoji, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The glyph at 64 px on a transparent ground, or None where the font has no single drawing of it."""
    width = font.getlength(emoji.text)
    if not 0 < width <= GLYPH_WIDTH + 4:
        return None
    canvas = Image.new("RGBA", (GLYPH_WIDTH, GLYPH_WIDTH))
    box = ImageDraw.Draw(canvas).textbbox((0, 0), emoji.text, font=font, embedded_color=True)
    top = (GLYPH_WIDTH - GLYPH_HEIGHT) // 2 - box[1]
    ImageDraw.Draw(canvas).text((0, top), emoji.text, font=font, embedded_color=True)
    if canvas.getextrema()[3][1] == 0:
        return None
    # Premultiplied while shrinking, so that no dark fringe appears at the edges.
    return canvas.convert("RGBa").resize((PIXELS, PIXELS), Image.Resampling.LANCZOS).convert("RGBA")


def encode(image: Image.Image, quality: int) -> bytes:
    """The picture as WebP, alpha lossless; quality 100 is near-lossless."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=quality, alpha_quality=100, method=6)
    return buffer.getvalue()


def looks(images: list[Image.Image]) -> list[int]:
    """A number per glyph, equal for glyphs whose drawings are the same or mirrored (some flags, left and right arrows)."""
    small = [
        np.asarray(image.convert("RGBa").resize((32, 32), Image.Resampling.BOX), dtype=np.float64) for image in images
    ]
    stacked = np.stack(small)
    flat, mirrored = (array.reshape(len(images), -1) for array in (stacked, stacked[:, :, ::-1]))
    squares = (flat**2).mean(1)
    distance = squares[:, None] + squares[None] - 2 * np.maximum(flat @ flat.T, flat @ mirrored.T) / flat.shape[1]
    same = np.tril(distance < SAME_LOOK**2)
    np.fill_diagonal(same, val=True)
    number = list(range(len(images)))
    for row, first in enumerate(same.argmax(1)):
        number[row] = number[int(first)]
    return number


def main() -> None:
    """Draw all glyphs and write the parquet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--emoji-test", type=Path, default=EMOJI_TEST)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--quality", type=int, default=88)
    arguments = parser.parse_args()
    if not features.check("raqm"):
        raise SystemExit(
            "Pillow was built without raqm, which joins emoji sequences: install a Pillow wheel that has it"
        )
    font = ImageFont.truetype(str(arguments.font), BITMAP_SIZE, layout_engine=ImageFont.Layout.RAQM)
    emoji = read_emoji(arguments.emoji_test)
    pairs = [(entry, image) for entry in emoji if (image := draw(entry, font)) is not None]
    table = pa.table(
        {
            "name": [entry.name for entry, _ in pairs],
            "group": [entry.group for entry, _ in pairs],
            "subgroup": [entry.subgroup for entry, _ in pairs],
            "look": looks([image for _, image in pairs]),
            "image": [encode(image, arguments.quality) for _, image in pairs],
        }
    )
    pq.write_table(table, arguments.output, compression="zstd")
    print(f"{len(pairs)} of {len(emoji)} emoji, {arguments.output.stat().st_size / 2**20:.1f} MiB")  # noqa: T201


if __name__ == "__main__":
    main()
