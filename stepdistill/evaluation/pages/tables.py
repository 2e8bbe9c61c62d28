"""Tables of the rows of `results.json`, and the pictures of each row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from stepdistill.evaluation.document import ResultRow
from stepdistill.evaluation.pages.pictures import fitted
from stepdistill.evaluation.picture_store import write_text

COMPARISON = "samples/comparison"


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    key: str
    title: str
    form: str
    is_better: int = 0
    """1 higher is better, -1 lower is better, 0 neither."""


COLUMNS = (
    Column("steps", "Steps", "{:d}"),
    Column("nfe", "NFE", "{:g}"),
    Column("guidance_scale", "Guidance", "{:g}"),
    Column("frechet_distance", "Frechet distance", "{:.2f}", -1),
    Column("frechet_distance_to_teacher", "to the teacher", "{:.2f}", -1),
    Column("kid", "KID", "{:.4f}", -1),
    Column("clip_score", "CLIP score", "{:.2f}", 1),
    Column("prompt_accuracy", "Prompt accuracy", "{:.1%}", 1),
    Column("coverage", "Coverage", "{:.1%}", 1),
    Column("background_error", "Background error", "{:.1f}", -1),
    Column("background_imbalance", "Background imbalance", "{:.1%}", -1),
    Column("latency_s", "Latency, s", "{:.3f}", -1),
    Column("n", "Images", "{:d}"),
)


def write_pictures(rows: Mapping[str, Sequence[Image.Image]], captions: Sequence[str], run_dir: Path) -> None:
    """Write the pictures of each row, drawn from the same noise, below `samples/comparison`."""
    folder = run_dir / COMPARISON
    folder.mkdir(parents=True, exist_ok=True)
    for number, pictures in enumerate(rows.values()):
        _strip(pictures).save(folder / f"row_{number}.png")
    write_text(folder / "index.json", json.dumps({"rows": list(rows), "captions": list(captions)}, indent=1) + "\n")


@dataclass(frozen=True)
class DrawnRows:
    """Pictures of a run's rows, drawn from the same noise.

    Attributes:
        captions: one for each column.
        rows: pictures by row name.
    """

    captions: tuple[str, ...]
    rows: dict[str, tuple[Image.Image, ...]]


def read_pictures(run_dir: Path) -> DrawnRows | None:
    """Read what `write_pictures` wrote; None if it wrote nothing."""
    folder = run_dir / COMPARISON
    if not (folder / "index.json").exists():
        return None
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    rows = {name: _pictures(folder / f"row_{number}.png") for number, name in enumerate(index["rows"])}
    return DrawnRows(tuple(index["captions"]), rows)


def escaped(text: str) -> str:
    """Text for a cell of a Markdown table.

    >>> escaped("a|b <c>")
    'a\\\\|b &lt;c>'
    """
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def present_columns(rows: Sequence[ResultRow]) -> list[Column]:
    """The columns that at least one row has a value for."""
    return [column for column in COLUMNS if any(getattr(row, column.key) is not None for row in rows)]


def cell(row: ResultRow, column: Column) -> str:
    """A formatted value; empty if it was not measured."""
    value = getattr(row, column.key)
    return "" if value is None else column.form.format(value)


def _strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Square pictures side by side."""
    side = max(max(picture.size) for picture in pictures)
    sheet = Image.new("RGB", (side * len(pictures), side))
    for i, picture in enumerate(pictures):
        sheet.paste(fitted(picture, side), (i * side, 0))
    return sheet


def headlines(rows: Sequence[ResultRow], *, steps: int | None = None) -> list[dict[str, str]]:
    """The headline figures: distances side by side, evaluations saved, accuracy and coverage kept.

    For a student measured at several numbers of steps: the row at `steps`, or else the first.
    """
    students = sorted((row for row in rows if row.model == "student"), key=lambda row: row.steps != steps)
    student = next(iter(students), None)
    teachers = sorted((row for row in rows if row.model == "teacher"), key=lambda row: row.steps or 0)
    if student is None or not teachers:
        return []
    full = teachers[-1]
    few = next((row for row in teachers[:-1] if row.steps == student.steps), None)
    tiles = []
    if student.frechet_distance is not None:
        others = [("teacher, same steps", few), (f"teacher, {full.steps} steps", full)]
        text = ", ".join(f"{name}: {row.frechet_distance:.2f}" for name, row in others if row and row.frechet_distance)
        tiles.append({"value": f"{student.frechet_distance:.2f}", "title": "Frechet distance", "note": text})
    if student.nfe and full.nfe:
        note = f"{student.nfe:g} network evaluations instead of {full.nfe:g}"
        tiles.append({"value": f"{full.nfe / student.nfe:.0f}x", "title": "fewer evaluations", "note": note})
    for key, title in (("prompt_accuracy", "prompt accuracy"), ("coverage", "coverage")):
        ours, theirs = getattr(student, key), getattr(full, key)
        if ours is not None and theirs:
            note = f"{ours / theirs:.0%} of the teacher's {theirs:.1%}"
            tiles.append({"value": f"{ours:.1%}", "title": title, "note": note})
    return tiles


def _pictures(strip: Path) -> tuple[Image.Image, ...]:
    """The square pictures of a strip."""
    with Image.open(strip) as sheet:
        side = sheet.height
        return tuple(sheet.crop((x, 0, x + side, side)) for x in range(0, sheet.width, side))
