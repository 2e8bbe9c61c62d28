"""Rebuild eval_captions.parquet: 2,000 frozen evaluation captions with everything that satisfies them.

python assets/emoji/build_eval_captions.py
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stepdistill.data.emoji import EVALUATION_SEED, EmojiWorld

OUTPUT = Path(__file__).resolve().parent / "eval_captions.parquet"
COUNT = 2000


def main() -> None:
    """Describe the evaluation scenes and write their captions."""
    world = EmojiWorld()
    described = [world.describe(EVALUATION_SEED, index) for index in range(COUNT)]
    answers = [world.answers(caption) for _, caption in described]
    table = pa.table(
        {
            "index": pa.array(range(COUNT), pa.int32()),
            "caption": [caption for _, caption in described],
            "glyph": pa.array([placement.glyph for placement, _ in described], pa.int16()),
            "background": pa.array([placement.background for placement, _ in described], pa.int8()),
            "right_glyphs": pa.array([known.glyphs.tolist() for known in answers], pa.list_(pa.int16())),
            "right_backgrounds": pa.array([known.backgrounds.tolist() for known in answers], pa.list_(pa.int8())),
        }
    )
    pq.write_table(table, OUTPUT, compression="zstd")


if __name__ == "__main__":
    main()
