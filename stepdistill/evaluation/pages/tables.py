"""results.json, and tables of its rows."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from stepdistill.evaluation.embedded.measurements import Results, Row
from stepdistill.evaluation.pages.pictures import fitted
from stepdistill.metrics.preprocess import to_pictures

RESULTS_NAME, COMPARISON = "results.json", "samples/comparison"


@dataclass(frozen=True)
class Column:
    """One column of the table of results."""

    key: str
    title: str
    form: str
    is_better: int = 0
    """1: higher is better, -1: lower is better, 0: no ranking."""


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


def write_results(results: Results, run_dir: Path) -> Path:
    """Write `results.json` and, under `samples/comparison`, the pictures of each row on the same noise."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / RESULTS_NAME
    draft = run_dir / f".{RESULTS_NAME}.partial"
    draft.write_text(json.dumps(results.to_json(), indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)
    if results.pictures:
        folder = run_dir / COMPARISON
        folder.mkdir(parents=True, exist_ok=True)
        for number, images in enumerate(results.pictures.values()):
            pictures = to_pictures(images.float() / 255)
            _strip(pictures).save(folder / f"row_{number}.png")
        index = {"rows": list(results.pictures), "captions": results.captions}
        (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class DrawnRows:
    """Pictures that the rows of a run drew, on the same noise.

    Attributes:
        captions: one for each column.
        rows: name of a row to its pictures.
    """

    captions: tuple[str, ...]
    rows: dict[str, tuple[Image.Image, ...]]


def read_pictures(run_dir: Path) -> DrawnRows | None:
    """What `write_results` put under `samples/comparison`; None where there is nothing."""
    folder = run_dir / COMPARISON
    if not (folder / "index.json").exists():
        return None
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    rows = {name: _pictures(folder / f"row_{number}.png") for number, name in enumerate(index["rows"])}
    return DrawnRows(tuple(index["captions"]), rows)


def read_rows(path: Path) -> list[Row]:
    """The rows of a `results.json`."""
    return [Row.read(record) for record in json.loads(path.read_text(encoding="utf-8"))["rows"]]


def table(rows: Sequence[Row], *, style: str = "markdown") -> str:
    """Rows as a Markdown or CSV table; columns that no row has are left out, missing values are empty.

    >>> print(table([Row("student", steps=4, frechet_distance=3.25), Row("floor", frechet_distance=1.0)]))
    | Model | Steps | Frechet distance |
    |---|---:|---:|
    | student | 4 | 3.25 |
    | floor |  | 1.00 |
    """
    columns = present_columns(rows)
    lines = [["Model", *(column.title for column in columns)]]
    lines += [[row.name or row.model, *(cell(row, column) for column in columns)] for row in rows]
    if style == "csv":
        return "\n".join(",".join(f'"{text}"' if "," in text else text for text in line) for line in lines)
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|---|" + "---:|" * len(columns), *body])


def present_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that at least one row has a value for."""
    return [column for column in COLUMNS if any(getattr(row, column.key) is not None for row in rows)]


def cell(row: Row, column: Column) -> str:
    """A value as shown; empty when it was not measured."""
    value = getattr(row, column.key)
    return "" if value is None else column.form.format(value)


def _strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Square pictures side by side in one file."""
    side = max(max(picture.size) for picture in pictures)
    sheet = Image.new("RGB", (side * len(pictures), side))
    for i, picture in enumerate(pictures):
        sheet.paste(fitted(picture, side), (i * side, 0))
    return sheet


def headlines(rows: Sequence[Row], *, steps: int | None = None) -> list[dict[str, str]]:
    """The few figures that tell the result: distances side by side, evaluations saved, accuracy and variety kept.

    Of a student that was measured at several numbers of steps, the row at `steps`; the first where there is none.
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
        text = ", ".join(
            f"{name}: {row.frechet_distance:.2f}" for name, row in others if row and row.frechet_distance
        )
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
    """The square pictures of such a file."""
    with Image.open(strip) as sheet:
        side = sheet.height
        return tuple(sheet.crop((x, 0, x + side, side)) for x in range(0, sheet.width, side))
