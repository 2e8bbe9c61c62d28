"""Pictures in a folder with a manifest, written block by block and by several processes, and consistent at any time.

A block writes its pictures first and then its part of the manifest, each by rename, so an interrupted run leaves a manifest
that names whole pictures only. `merge` joins the parts into one `manifest.jsonl`.
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
"""Both lossless; webp is smaller and slower."""
PICTURE_ENDINGS = (".png", ".webp", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class PictureRecord:
    """One line of the manifest."""

    index: int
    """Place in the order of all pictures."""
    prompt_index: int
    sample: int
    prompt: str
    id: str
    category: str | None
    seed: int | None
    """None for pictures from elsewhere."""
    file: str
    """Path relative to the manifest's folder, or an absolute path."""
    bytes: int
    digest: str
    """Hash of the file's content."""


class PictureStore:
    """Pictures below `folder/images`, their manifest in `folder/manifest.jsonl`."""

    def __init__(self, folder: Path, file_format: FileFormat = "png") -> None:
        self.folder, self.file_format = folder, file_format
        self.parts = folder / PARTS / "manifest"

    def records(self) -> dict[int, PictureRecord]:
        """All records by index, those included whose picture has been deleted."""
        files = [self.folder / MANIFEST, *sorted(self.parts.glob("*.jsonl"))]
        found = {record.index: record for file in files if file.exists() for record in read_manifest(file)}
        return dict(sorted(found.items()))

    def has_picture(self, record: PictureRecord) -> bool:
        """Whether the record's picture exists and is complete."""
        path = self.folder / record.file
        return path.is_file() and path.stat().st_size == record.bytes

    def add(self, pictures: Sequence[Image.Image], records: Sequence[dict[str, Any]]) -> None:
        """Write one block: the pictures, then their part of the manifest.

        Args:
            pictures: RGB pictures.
            records: the fields of `PictureRecord` except `file`, `bytes` and `digest`.
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
            lines.append(PictureRecord(**record, file=name, bytes=len(content), digest=content_digest(content)))
        first, last = lines[0].index, lines[-1].index
        write_manifest(self.parts / f"{first:06d}-{last:06d}.jsonl", lines)

    def merge(self) -> None:
        """Join the parts of the manifest, in order."""
        write_manifest(self.folder / MANIFEST, self.records().values())
        shutil.rmtree(self.parts, ignore_errors=True)

    def keep_first(self, count: int) -> None:
        """Delete the files of all pictures but the first `count`; their records stay."""
        for record in list(self.records().values())[count:]:
            (self.folder / record.file).unlink(missing_ok=True)

    def open(self, record: PictureRecord) -> Image.Image:
        """The RGB picture of a record.

        Raises:
            UserError: the file has been deleted.
        """
        path = self.folder / record.file
        if not path.is_file():
            raise UserError(f"the picture '{path}' is missing; draw it again, or score a folder that has it")
        with Image.open(path) as picture:
            return picture.convert("RGB")


def content_digest(content: bytes) -> str:
    """Hash of a file's content."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def read_manifest(path: Path) -> list[PictureRecord]:
    """The records of a manifest; unknown keys are ignored."""
    known = {field.name for field in fields(PictureRecord)}
    lines = path.read_text(encoding="utf-8").splitlines()
    return [PictureRecord(**{key: value for key, value in json.loads(line).items() if key in known}) for line in lines]


def write_manifest(path: Path, records: Iterable[PictureRecord]) -> None:
    """Write a manifest atomically."""
    text = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, by rename."""
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
        raise UserError(f"'{folder}' contains no pictures ({', '.join(PICTURE_ENDINGS)})")
    return files
