"""Real images with captions, for the methods that use data."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from pyarrow import ArrowInvalid

from stepdistill.data.emoji import EmojiWorld
from stepdistill.data.prompt_files import COLUMNS
from stepdistill.data.prompts import TRAINING_SCENES
from stepdistill.errors import UserError
from stepdistill.typing import Images

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def load_images(
    source: str, *, size: tuple[int, int], limit: int | None = None, seed: int = 0
) -> tuple[Images, list[str]]:
    """Images of `emoji`, of a folder (each with a .txt beside it) or of a parquet file, cropped to (height, width).

    Raises:
        UserError: nothing usable is there.
    """
    if source == "emoji":
        first = 2 * TRAINING_SCENES
        return EmojiWorld().scenes(seed, range(first, first + (limit or 8192)))
    path = Path(source).expanduser()
    if path.is_dir():
        pairs = _from_folder(path, limit)
    elif path.suffix == ".parquet" and path.is_file():
        pairs = _from_parquet(path, limit)
    else:
        raise UserError(f"data.images: '{source}' is neither 'emoji', nor a folder, nor a .parquet file")
    if not pairs:
        raise UserError(f"data.images: '{source}' holds no image ({', '.join(sorted(SUFFIXES))})")
    images = torch.stack([center_crop(image, size) for image, _ in pairs])
    return images, [caption for _, caption in pairs]


def center_crop(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """Cover (height, width) and crop the centre; values in [0, 1], shape (3, height, width)."""
    height, width = size
    fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(fitted, dtype=np.float32) / 255.0
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _from_folder(path: Path, limit: int | None) -> list[tuple[Image.Image, str]]:
    pairs = []
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    for file in files[:limit]:
        text = file.with_suffix(".txt")
        if not text.is_file():
            raise UserError(f"data.images: '{file}' has no caption; write it into '{text.name}' beside it")
        try:
            pairs.append((Image.open(file).convert("RGB"), text.read_text().strip()))
        except UnidentifiedImageError as error:
            raise UserError(
                f"data.images: '{file}' is not a readable image; delete it or save it again"
            ) from error
    return pairs


def _from_parquet(path: Path, limit: int | None) -> list[tuple[Image.Image, str]]:
    try:
        rows = pq.read_table(path).slice(0, limit).to_pylist()
    except (ArrowInvalid, OSError) as error:
        raise UserError(
            f"data.images: '{path}' is not a readable parquet file; write it again or use a folder"
        ) from error
    pairs = []
    for row in rows:
        caption = next((row[name] for name in COLUMNS if name in row), None)
        cell = row.get("image")
        if caption is None or cell is None:
            raise UserError(
                f"'{path}' needs a column 'image' and one of {', '.join(COLUMNS)}; it has {list(row)}"
            )
        encoded = cell["bytes"] if isinstance(cell, dict) else cell
        pairs.append((Image.open(io.BytesIO(encoded)).convert("RGB"), str(caption)))
    return pairs
