"""A folder of pictures with a manifest, filled block by block and by several processes, and complete at any time.

Each block of pictures writes its files first and then one part of the manifest, all by rename, so what a kill leaves behind is a
manifest that names whole pictures only. `merge` makes one `manifest.jsonl` of the parts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from stepdistill.errors import UserError

MANIFEST, PARTS = "manifest.jsonl", ".parts"
FileFormat = Literal["png", "webp"]
"""Both without loss; webp is smaller and slower."""
PICTURE_ENDINGS = (".png", ".webp", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class PictureRecord:
    """One line of the manifest."""

    index: int
    """Place in the order of all pictures: `prompt_index * samples_per_prompt + sample`."""
    prompt_index: int
    sample: int
    prompt: str
    id: str
    category: str | None
    seed: int | None
    """None for pictures that were not drawn here."""
    file: str
    """Path from the manifest's folder, or an absolute one."""
    bytes: int
    digest: str
    """Of the file's content."""


class PictureStore:
    """Pictures below `folder/images`, their manifest in `folder/manifest.jsonl`."""

    def __init__(self, folder: Path, file_format: FileFormat = "png") -> None:
        self.folder, self.file_format = folder, file_format
        self.parts = folder / PARTS / "manifest"

    def records(self) -> dict[int, PictureRecord]:
        """All records whose picture is there and whole, by index."""
        files = [self.folder / MANIFEST, *sorted(self.parts.glob("*.jsonl"))]
        found = {record.index: record for file in files if file.exists() for record in read_manifest(file)}
        return {index: record for index, record in sorted(found.items()) if self._is_whole(record)}

    def add(self, pictures: Sequence[Image.Image], records: Sequence[dict[str, Any]]) -> None:
        """Write one block: pictures, then their part of the manifest.

        Args:
            pictures: RGB.
            records: fields of `PictureRecord` but `file`, `bytes` and `digest`.
        """
        lines = []
        for picture, record in zip(pictures, records, strict=True):
            name = f"images/{record['index'] // 1000:03d}/{record['index']:06d}.{self.file_format}"
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(f".{os.getpid()}.partial")
            options: dict[str, Any] = {"lossless": True} if self.file_format == "webp" else {}
            picture.save(draft, format=self.file_format, **options)
            content = draft.read_bytes()
            os.replace(draft, path)
            lines.append(
                PictureRecord(**record, file=name, bytes=len(content), digest=content_digest(content))
            )
        first, last = lines[0].index, lines[-1].index
        write_manifest(self.parts / f"{first:06d}-{last:06d}.jsonl", lines)

    def merge(self) -> list[PictureRecord]:
        """Make one manifest of what is there, in order, and return it."""
        records = list(self.records().values())
        write_manifest(self.folder / MANIFEST, records)
        shutil.rmtree(self.parts, ignore_errors=True)
        return records

    def open(self, record: PictureRecord) -> Image.Image:
        """The picture of a record, RGB."""
        with Image.open(self.folder / record.file) as picture:
            return picture.convert("RGB")

    def _is_whole(self, record: PictureRecord) -> bool:
        path = self.folder / record.file
        return path.is_file() and path.stat().st_size == record.bytes


def content_digest(content: bytes) -> str:
    """Address of a file's content."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def read_manifest(path: Path) -> list[PictureRecord]:
    """The records of a manifest; keys of other versions are left out."""
    known = {field.name for field in fields(PictureRecord)}
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        PictureRecord(**{key: value for key, value in json.loads(line).items() if key in known})
        for line in lines
    ]


def write_manifest(path: Path, records: Iterable[PictureRecord]) -> None:
    """Write a manifest so that a reader sees all of it or the one before."""
    text = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a file under another name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def picture_files(folder: Path) -> list[Path]:
    """Picture files of a folder and its subfolders, sorted by path.

    Raises:
        UserError: there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_ENDINGS)
    if not files:
        raise UserError(f"there are no pictures ({', '.join(PICTURE_ENDINGS)}) in '{folder}'")
    return files
