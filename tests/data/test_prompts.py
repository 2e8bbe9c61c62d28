"""Prompt lists: order, limit, blank lines, and the scenes that the embedded captions are drawn from."""

from __future__ import annotations

from pathlib import Path

from stepdistill.data.emoji import EmojiWorld
from stepdistill.data.prompts import TRAINING_SCENES, emoji_prompts, load_prompts


def test_blank_lines_are_left_out_before_the_limit_counts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n  one \n\n   \ntwo\nthree\n")
    assert load_prompts(str(file)) == ["one", "two", "three"]
    assert load_prompts(str(file), limit=2) == ["one", "two"]


def test_embedded_captions_are_of_training_scenes() -> None:
    """Scenes of smaller numbers belong to the teachers' training."""
    world = EmojiWorld()
    expected = [world.describe(7, 20_000_000 + number)[1] for number in range(5)]
    assert TRAINING_SCENES == 20_000_000
    assert emoji_prompts(5, seed=7) == load_prompts("emoji", limit=5, seed=7) == expected
    assert load_prompts("emoji", limit=5, seed=8) != expected
