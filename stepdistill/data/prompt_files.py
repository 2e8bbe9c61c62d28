"""Read prompt files of common formats as rows of dictionaries."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow import ArrowInvalid

from stepdistill.errors import UserError

COLUMNS = ("prompt", "caption", "text")
"""Accepted names of the prompt column, case-insensitive, in order of preference."""


def read_rows(path: Path, *, asked_by: str) -> list[dict[str, Any]]:
    """Read the rows of a .txt, .csv, .tsv, .json, .jsonl or .parquet file; plain strings become column `prompt`.

    A .json file is a list of strings or objects, an object of them by id (MJHQ-30K), or COCO captions.

    Args:
        path: the file.
        asked_by: the option that named the file, used as the prefix of messages.

    Raises:
        UserError: the file is missing, unreadable or of an unknown format.
    """
    if path.suffix not in READERS:
        raise UserError(f"{asked_by}: '{path}' is not a {', '.join(READERS)} file")
    if not path.is_file():
        raise UserError(f"{asked_by}: there is no file '{path}'")
    try:
        rows = READERS[path.suffix](path)
    except json.JSONDecodeError as error:
        raise UserError(f"{asked_by}: '{path}' is not valid JSON: {error}") from error
    except (ArrowInvalid, OSError) as error:
        kind = path.suffix.removeprefix(".")
        raise UserError(f"{asked_by}: '{path}' is not a readable {kind} file; recreate it or use .txt") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{asked_by}: '{path}' is not UTF-8 text; convert it to UTF-8") from error
    return [row if isinstance(row, dict) else {"prompt": row} for row in rows]


def prompt_column(names: Sequence[str], path: Path, column: str | None = None) -> str:
    """Return the prompt column: the given one, or the first of `COLUMNS` that exists.

    Raises:
        UserError: there is no such column.
    """
    if column is not None:
        if column not in names:
            raise UserError(f"'{path}' has no column '{column}'; it has {', '.join(names)}")
        return column
    by_lower = {name.lower(): name for name in names}
    for name in COLUMNS:
        if name in by_lower:
            return by_lower[name]
    raise UserError(f"'{path}' has the columns {list(names)}; name one of them {', '.join(COLUMNS)}")


def prompt_texts(rows: Sequence[Mapping[str, Any]], path: Path, column: str | None = None) -> list[str]:
    """Return the stripped prompt of each row, including empty ones."""
    return [str(row[prompt_column(list(row), path, column)] or "").strip() for row in rows]


def _read_delimited(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def _read_json(path: Path) -> list[Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, list):
        return content
    if "annotations" in content:
        return _coco_captions(content["annotations"])
    rows = ((key, {"prompt": value} if isinstance(value, str) else value) for key, value in content.items())
    return [{"id": key, **row} for key, row in rows]


def _coco_captions(annotations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the lowest-id caption of each image, in a fixed pseudo-random order of images."""
    first: dict[int, Mapping[str, Any]] = {}
    for row in annotations:
        kept = first.setdefault(row["image_id"], row)
        if row["id"] < kept["id"]:
            first[row["image_id"]] = row

    def place(image: int) -> str:
        return hashlib.blake2b(str(image).encode(), digest_size=8).hexdigest()

    return [{"id": str(image), "prompt": first[image]["caption"]} for image in sorted(first, key=place)]


def _read_jsonl(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"line {number} of '{path}' is not valid JSON ({error.msg})") from error
    return rows


READERS: dict[str, Callable[[Path], list[Any]]] = {
    ".txt": lambda path: path.read_text(encoding="utf-8").splitlines(),
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": lambda path: pq.read_table(path).to_pylist(),
}
