"""What counts as a picture of the store, and what a kill leaves in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stepdistill.errors import UserError
from stepdistill.evaluation import picture_store
from stepdistill.evaluation.picture_store import MANIFEST, FileFormat, PictureStore, picture_files, read_manifest


def record_of(index: int) -> dict[str, Any]:
    return {"index": index, "prompt_index": index, "sample": 0, "prompt": "a", "id": "0", "category": None, "seed": 1}


def noise(seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (9, 9, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("file_format", ["png", "webp"])
def test_pictures_are_kept_without_loss(tmp_path: Path, file_format: FileFormat) -> None:
    store = PictureStore(tmp_path, file_format)
    store.add([noise(0), noise(1)], [record_of(0), record_of(1234)])
    store.merge()
    records = list(store.records().values())
    assert [record.file for record in records] == [
        f"images/000/000000.{file_format}",
        f"images/001/001234.{file_format}",
    ]
    assert [store.open(record).tobytes() for record in records] == [noise(0).tobytes(), noise(1).tobytes()]


def test_blocks_that_end_in_any_order_are_one_manifest_in_order(tmp_path: Path) -> None:
    store = PictureStore(tmp_path)
    for index in (5, 0, 3):
        store.add([noise(index)], [record_of(index)])
    assert list(store.records()) == [0, 3, 5]
    store.merge()
    assert not (tmp_path / ".parts/manifest").exists()
    assert [record.index for record in read_manifest(tmp_path / MANIFEST)] == [0, 3, 5]
    assert list(store.records()) == [0, 3, 5]


def test_deleted_and_truncated_pictures_are_missing(tmp_path: Path) -> None:
    store = PictureStore(tmp_path)
    store.add([noise(0), noise(1), noise(2)], [record_of(0), record_of(1), record_of(2)])
    store.merge()
    whole = list(store.records().values())
    (tmp_path / whole[0].file).unlink()
    content = (tmp_path / whole[1].file).read_bytes()
    (tmp_path / whole[1].file).write_bytes(content[:-1])
    assert [store.has_picture(record) for record in whole] == [False, False, True]
    assert list(store.records()) == [0, 1, 2], "what was scored is still known"
    with pytest.raises(UserError, match="is missing"):
        store.open(whole[0])


def test_only_the_first_pictures_are_kept(tmp_path: Path) -> None:
    store = PictureStore(tmp_path)
    store.add([noise(0), noise(1)], [record_of(0), record_of(1)])
    store.merge()
    for _ in range(2):
        store.keep_first(1)
        assert [store.has_picture(record) for record in store.records().values()] == [True, False]


def test_keys_of_other_versions_are_left_out(tmp_path: Path) -> None:
    store = PictureStore(tmp_path)
    store.add([noise()], [record_of(0)])
    store.merge()
    manifest = tmp_path / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "later": 1}) + "\n")
    assert read_manifest(manifest)[0].index == 0


def test_a_kill_while_a_manifest_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PictureStore(tmp_path)
    store.add([noise()], [record_of(0)])
    store.merge()
    store.add([noise()], [record_of(1)])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(picture_store.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.merge()
    assert [record.index for record in read_manifest(tmp_path / MANIFEST)] == [0]


def test_files_are_found_whatever_their_case_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/1.png", "a.JPG", "b/0.webp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no picture")
    assert [path.relative_to(tmp_path).as_posix() for path in picture_files(tmp_path)] == [
        "a.JPG",
        "b/0.webp",
        "b/1.png",
    ]
    with pytest.raises(UserError, match="contains no pictures"):
        picture_files(tmp_path / "nowhere")
