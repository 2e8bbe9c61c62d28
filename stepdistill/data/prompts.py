"""Training prompts from files or from the embedded emoji captions."""

from __future__ import annotations

from pathlib import Path

from stepdistill.data.emoji import EmojiWorld
from stepdistill.data.prompt_files import READERS, prompt_texts, read_rows
from stepdistill.errors import UserError

TRAINING_SCENES = 20_000_000
"""First scene index of the distillation captions, disjoint from those of the teachers and the evaluation."""


def load_prompts(source: str, *, limit: int | None = None, seed: int = 0) -> list[str]:
    """Load the prompts of `emoji`, or of a file in any format of `read_rows`.

    Raises:
        UserError: the file is missing, empty or unreadable, or has no prompt column.
    """
    if source == "emoji":
        return emoji_prompts(limit or 8192, seed=seed)
    file = Path(source).expanduser()
    if file.suffix not in READERS:
        raise UserError(f"data.prompts: '{source}' is neither 'emoji' nor a {', '.join(READERS)} file")
    texts = prompt_texts(read_rows(file, asked_by="data.prompts"), file)
    prompts = [text for text in texts if text]
    if not prompts:
        raise UserError(f"data.prompts: '{source}' has no prompts; put one on each line")
    return prompts[:limit]


def emoji_prompts(count: int, *, seed: int = 0) -> list[str]:
    """Return captions of embedded scenes that the evaluation does not use."""
    world = EmojiWorld()
    return [world.describe(seed, TRAINING_SCENES + index)[1] for index in range(count)]
