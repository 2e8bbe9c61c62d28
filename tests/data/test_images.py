"""Images come in parts, whatever they are kept in; the autoencoder takes them in parts too."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import stepdistill as sd
from stepdistill.data import images as images_module
from stepdistill.data.images import load_images
from stepdistill.data.source import encode_images
from stepdistill.denoisers import pipeline as pipeline_module
from stepdistill.denoisers.pipeline import PipelineDenoiser
from stepdistill.errors import UserError
from stepdistill.testing import tiny_pipeline

COLOURS = ["red", "green", "blue", "white", "black"]
RED = torch.tensor([1.0, 0.0, 0.0])


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 20), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(params=["folder", "parquet"])
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(images_module, "CHUNK_SIZE", 2)
    if request.param == "parquet":
        table = {"image": [{"bytes": png(each)} for each in COLOURS], "caption": COLOURS, "more": COLOURS}
        pq.write_table(pa.table(table), tmp_path / "images.parquet")
        return str(tmp_path / "images.parquet")
    for number, colour in enumerate(COLOURS):
        (tmp_path / f"{number}.png").write_bytes(png(colour))
        (tmp_path / f"{number}.txt").write_text(f"{colour}\n")
    return str(tmp_path)


def test_images_come_in_parts_and_in_order(source: str) -> None:
    parts = list(load_images(source, size=(8, 6)))
    assert [tuple(pixels.shape) for pixels, _ in parts] == [(2, 3, 8, 6), (2, 3, 8, 6), (1, 3, 8, 6)]
    assert [caption for _, captions in parts for caption in captions] == COLOURS
    torch.testing.assert_close(parts[0][0][0].mean((1, 2)), RED)
    assert [len(captions) for _, captions in load_images(source, size=(8, 6), limit=3)] == [2, 1]


def test_scenes_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "CHUNK_SIZE", 2)
    parts = list(load_images("emoji", size=(64, 64), limit=3))
    assert [len(captions) for _, captions in parts] == [2, 1]
    assert parts[1][0].shape == (1, 3, 64, 64)


def test_what_is_missing_is_said_before_anything_is_encoded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no images"):
        load_images(str(tmp_path), size=(8, 8))
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png("red"))
    (tmp_path / "0.txt").write_text("red")
    with pytest.raises(UserError, match=r"1\.png' has no caption; put it in '1\.txt'"):
        load_images(str(tmp_path), size=(8, 8))
    pq.write_table(pa.table({"picture": [png("red")], "caption": ["red"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="needs rows with a column 'image'"):
        next(load_images(str(tmp_path / "x.parquet"), size=(8, 8)))


def test_latents_do_not_depend_on_the_parts(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = sd.load_teacher(tiny_pipeline("sd"))
    assert isinstance(teacher, PipelineDenoiser)
    sizes: list[int] = []
    for name in ("encode", "decode"):
        whole = getattr(teacher.vae, name)
        monkeypatch.setattr(
            teacher.vae, name, lambda x, whole=whole, **options: sizes.append(len(x)) or whole(x, **options)
        )
    monkeypatch.setattr(images_module, "CHUNK_SIZE", 64)
    at_once = encode_images(teacher, source, None, 0)
    pictures = teacher.decode(at_once["latents"])
    assert sizes == [5, 5]
    sizes.clear()
    monkeypatch.setattr(images_module, "CHUNK_SIZE", 3)
    monkeypatch.setattr(pipeline_module, "VAE_BATCH_PIXELS", 2 * 16 * 16)
    in_parts = encode_images(teacher, source, None, 0)
    torch.testing.assert_close(teacher.decode(at_once["latents"]), pictures)
    assert sizes == [2, 1, 2, 2, 2, 1]
    assert at_once.keys() == in_parts.keys()
    for name, tensor in at_once.items():
        torch.testing.assert_close(in_parts[name], tensor)
