"""Prompt lists from files, and the embedded emoji captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from pyarrow import ArrowInvalid

from stepdistill.data.emoji import EmojiWorld
from stepdistill.errors import UserError

TRAINING_SCENES = 20_000_000
"""First scene number of the captions used for distilling; other numbers than the teachers and the evaluation have seen."""

COLUMNS = ("prompt", "caption", "text")


def load_prompts(source: str, *, limit: int | None = None, seed: int = 0) -> list[str]:
    """The prompts of `emoji`, a .txt, .jsonl or .parquet file, in order.

    Raises:
        UserError: the file is missing, empty or unreadable, or has no column of prompts.
    """
    if source == "emoji":
        return emoji_prompts(limit or 8192, seed=seed)
    file = Path(source).expanduser()
    readers: dict[str, Callable[[Path], list[str]]] = {
        ".txt": lambda path: path.read_text().splitlines(),
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    if file.suffix not in readers:
        raise UserError(f"data.prompts: '{source}' is neither 'emoji' nor a .txt, .jsonl or .parquet file")
    if not file.is_file():
        raise UserError(f"data.prompts: there is no file '{source}'")
    prompts = [line.strip() for line in readers[file.suffix](file) if line.strip()]
    if not prompts:
        raise UserError(f"data.prompts: '{source}' holds no prompt; put one on each line")
    return prompts[:limit]


def emoji_prompts(count: int, *, seed: int = 0) -> list[str]:
    """Captions of embedded scenes that no evaluation caption was drawn from."""
    world = EmojiWorld()
    return [world.describe(seed, TRAINING_SCENES + index)[1] for index in range(count)]


def _read_jsonl(path: Path) -> list[str]:
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"data.prompts: line {number} of '{path}' is not valid JSON ({error.msg})"
            ) from error
        rows.append(row if isinstance(row, str) else row[_column(list(row), path)])
    return rows


def _read_parquet(path: Path) -> list[str]:
    try:
        table = pq.read_table(path)
    except (ArrowInvalid, OSError) as error:
        raise UserError(
            f"data.prompts: '{path}' is not a readable parquet file; write it again or use .txt"
        ) from error
    return table.column(_column(table.column_names, path)).to_pylist()


def _column(names: list[str], path: Path) -> str:
    for name in COLUMNS:
        if name in names:
            return name
    raise UserError(f"'{path}' has the columns {names}; one of {', '.join(COLUMNS)} is needed")
