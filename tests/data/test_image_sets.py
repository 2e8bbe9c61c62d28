"""Which images of a set are read, in which order, and how they are cropped."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stepdistill.data import images
from stepdistill.data.images import center_crop, load_images
from stepdistill.data.prompts import TRAINING_SCENES


def save(path: Path, caption: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)
    path.with_suffix(".txt").write_text(caption)


def captions(source: str, limit: int | None = None) -> list[str]:
    return [text for _, texts in load_images(source, size=(4, 4), limit=limit) for text in texts]


def test_files_are_found_in_subfolders_whatever_their_case_and_read_by_name(tmp_path: Path) -> None:
    save(tmp_path / "b/2.PNG", "three\n")
    save(tmp_path / "b/1.jpeg", "  two ")
    save(tmp_path / "a.png", "one\n\n")
    (tmp_path / "notes.md").write_text("no image")
    assert captions(str(tmp_path)) == ["one", "two", "three"]
    assert captions(str(tmp_path), limit=2) == ["one", "two"]


def test_a_parquet_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    rows = {"image": [stream.getvalue()] * 3, "caption": ["a", "b", "c"]}
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    assert captions(str(tmp_path / "x.parquet"), limit=2) == ["a", "b"]
    assert captions(str(tmp_path / "x.parquet")) == ["a", "b", "c"]


def test_the_centre_is_kept_and_nothing_is_stretched() -> None:
    """Left, middle and right third red, green, blue: of a square crop only the middle is left."""
    image = Image.new("RGB", (36, 12))
    for number, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        image.paste(colour, (12 * number, 0, 12 * number + 12, 12))
    cropped = center_crop(image, (12, 12))
    assert torch.equal(cropped, torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(3, 12, 12))
    wide = center_crop(image, (4, 12))
    assert wide.shape == (3, 4, 12)
    assert wide.mean((1, 2)).tolist() == pytest.approx([1 / 3] * 3, abs=0.01), "all three thirds are in it"


def test_embedded_images_are_scenes_that_no_teacher_and_no_prompt_has(monkeypatch: pytest.MonkeyPatch) -> None:
    class World:
        def scenes(self, seed: int, numbers: range) -> tuple[int, range]:
            return seed, numbers

    monkeypatch.setattr(images, "EmojiWorld", World)
    found = list(load_images("emoji", size=(64, 64), limit=100, seed=5))
    first = 2 * TRAINING_SCENES
    assert found == [(5, range(first, first + 64)), (5, range(first + 64, first + 100))]
    assert sum(len(numbers) for _, numbers in load_images("emoji", size=(64, 64))) == 8192
