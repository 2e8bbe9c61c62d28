"""Captioned images for methods that train on data."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
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
CHUNK_SIZE = 64  # images in memory while a set is read


def load_images(
    source: str, *, size: tuple[int, int], limit: int | None = None, seed: int = 0
) -> Iterator[tuple[Images, list[str]]]:
    """Yield chunks of images, cropped to `size` = (height, width), with their captions.

    Args:
        source: `emoji`, a folder of images each with a .txt caption, or a parquet file.
        limit: maximum number of images.
        seed: seed of the embedded scenes.

    Raises:
        UserError: the source has no usable images.
    """
    if source == "emoji":
        first, world = 2 * TRAINING_SCENES, EmojiWorld()
        scenes = range(first, first + (limit or 8192))
        return (world.scenes(seed, scenes[i : i + CHUNK_SIZE]) for i in range(0, len(scenes), CHUNK_SIZE))
    path = Path(source).expanduser()
    if path.is_dir():
        return _chunks(_from_folder(captioned_files(path, limit)), size)
    if path.suffix == ".parquet" and path.is_file():
        return _chunks(_from_parquet(path, limit), size)
    raise UserError(f"data.images: '{source}' is neither 'emoji', nor a folder, nor a .parquet file")


def _chunks(pairs: Iterable[tuple[Image.Image, str]], size: tuple[int, int]) -> Iterator[tuple[Images, list[str]]]:
    remaining = iter(pairs)
    while part := list(islice(remaining, CHUNK_SIZE)):
        yield torch.stack([center_crop(image, size) for image, _ in part]), [caption for _, caption in part]


def center_crop(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """Resize to cover (height, width) and center-crop; returns (3, height, width) in [0, 1]."""
    height, width = size
    fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(fitted, dtype=np.float32) / 255.0
    return torch.from_numpy(pixels).permute(2, 0, 1)


def captioned_files(path: Path, limit: int | None) -> list[Path]:
    """Return the image files below a folder, sorted.

    Raises:
        UserError: there are none, or one has no caption.
    """
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)[:limit]
    if not files:
        raise UserError(f"data.images: '{path}' has no images ({', '.join(sorted(SUFFIXES))})")
    for file in files:
        if not file.with_suffix(".txt").is_file():
            text = file.with_suffix(".txt").name
            raise UserError(f"data.images: '{file}' has no caption; put it in '{text}' beside the image")
    return files


def _from_folder(files: Sequence[Path]) -> Iterator[tuple[Image.Image, str]]:
    for file in files:
        try:
            yield Image.open(file).convert("RGB"), file.with_suffix(".txt").read_text().strip()
        except UnidentifiedImageError as error:
            raise UserError(f"data.images: '{file}' is not a readable image; delete it or save it again") from error


def _from_parquet(path: Path, limit: int | None) -> Iterator[tuple[Image.Image, str]]:
    try:
        file = pq.ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise UserError(
            f"data.images: '{path}' is not a readable parquet file; write it again or use a folder"
        ) from error
    names = file.schema_arrow.names
    caption = next((name for name in COLUMNS if name in names), None)
    if caption is None or "image" not in names or not file.metadata.num_rows:
        raise UserError(
            f"data.images: '{path}' needs rows with a column 'image' and one of {', '.join(COLUMNS)}; it has {names}"
        )
    rows = (
        row
        for batch in file.iter_batches(batch_size=CHUNK_SIZE, columns=["image", caption])
        for row in batch.to_pylist()
    )
    for row in islice(rows, limit):
        cell = row["image"]
        encoded = cell["bytes"] if isinstance(cell, dict) else cell
        yield Image.open(io.BytesIO(encoded)).convert("RGB"), str(row[caption])
