"""The leaderboard of a benchmark: every student beside its teacher at the same steps, at full steps, and the floor."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter
from PIL import Image

from stepdistill.diffusion.sampler import steps_in_words
from stepdistill.evaluation.document import ResultRow
from stepdistill.evaluation.pages.html import render, sheet_url
from stepdistill.evaluation.pages.pictures import grid
from stepdistill.evaluation.pages.plots import CYCLE, FAINT, STYLE, steps_axis, to_svg
from stepdistill.evaluation.pages.tables import COLUMNS, cell, escaped, read_pictures

TITLES = (
    "Model",
    "Steps",
    "Frechet distance",
    "Prompt accuracy",
    "Coverage",
    "CLIP score",
    "Training passes",
    "Time",
    "Memory",
)
REAL, NUM_COLUMNS = "real pictures", 10


@dataclass(frozen=True)
class Entry:
    """A finished run.

    Attributes:
        name: the recipe's.
        method: the method's name in recipes.
        teacher: path or hub id of the teacher.
        rows: those of its results.json.
        cost: its cost.json: network_passes, train_seconds, peak_memory_mib.
        run_dir: its folder, for the pictures; None for no pictures.
    """

    name: str
    method: str
    teacher: str
    rows: tuple[ResultRow, ...]
    cost: Mapping[str, float]
    run_dir: str | None = None

    @property
    def students(self) -> tuple[ResultRow, ...]:
        """The student's rows, one for each number of steps."""
        return tuple(row for row in self.rows if row.model == "student")

    @property
    def others(self) -> tuple[ResultRow, ...]:
        """Teacher and floor rows."""
        return tuple(row for row in self.rows if row.model != "student")

    def distance(self, steps: int) -> float:
        """The student's Frechet distance at a number of steps; infinite if not measured."""
        return min((_distance(row) for row in self.students if row.steps == steps), default=float("inf"))


def write_leaderboard(entries: Sequence[Entry], out: Path, *, title: str) -> None:
    """Write `leaderboard.json`, `leaderboard.md`, `leaderboard.html` and its pictures into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.teacher, []).append(entry)
    document = {"schema": 1, "title": title, "entries": [asdict(entry) for entry in entries]}
    (out / "leaderboard.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    parts = [f"## {teacher}\n\n{summary(group)}\n\n{markdown(group)}" for teacher, group in groups.items()]
    (out / "leaderboard.md").write_text(f"# {title}\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
    sections = [
        {
            "teacher": teacher,
            "lines": lines(group),
            "figure": quality_figure(group),
            "sheets": [
                (steps_in_words(steps), sheet_url(path)) for steps, path in write_sheets(group, out, teacher).items()
            ],
        }
        for teacher, group in groups.items()
    ]
    page = render("leaderboard.html.j2", title=title, titles=TITLES, sections=sections)
    (out / "leaderboard.html").write_text(page, encoding="utf-8")


def write_sheets(entries: Sequence[Entry], out: Path, teacher: str) -> dict[int, Path]:
    """Write contact sheets `TEACHER_Nstep.png` into `out`; returns their paths by number of steps."""
    stem, paths = re.sub(r"[^\w.-]+", "-", teacher).strip("-"), {}
    for steps, sheet in contact_sheets(entries).items():
        paths[steps] = out / f"{stem}_{steps}step.png"
        sheet.save(paths[steps])
    return paths


def contact_sheets(entries: Sequence[Entry]) -> dict[int, Image.Image]:
    """One sheet per number of steps: teacher at full steps, teacher at these steps, students by distance.

    The teacher's pictures are those of the first run. Runs with other captions are left out.
    """
    drawn = [(each, found) for each in entries if each.run_dir and (found := read_pictures(Path(each.run_dir)))]
    if not drawn:
        return {}
    first = drawn[0][1]
    comparable = [(entry, found) for entry, found in drawn if found.captions == first.captions]
    numbers = {row.steps for entry, _ in comparable for row in entry.students if row.steps is not None}
    full, sheets = next((name for name in first.rows if name.startswith("teacher")), None), {}
    for steps in sorted(numbers):
        words = steps_in_words(steps)
        rows = {name: first.rows[name] for name in (full, f"teacher {words}") if name in first.rows}
        for entry, found in sorted(comparable, key=lambda pair: pair[0].distance(steps)):
            if f"student {words}" in found.rows:
                rows[entry.name] = found.rows[f"student {words}"]
        cut = {name: pictures[:NUM_COLUMNS] for name, pictures in rows.items()}
        sheets[steps] = grid(cut, first.captions[:NUM_COLUMNS], tile=80)
    return sheets


def lines(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Cells of one teacher's table: floor, teacher by descending steps, students by steps and distance."""
    references = {
        (row.model, row.steps, reference_name(row) + precision_suffix(row, entries)): row
        for entry in entries
        for row in entry.others
    }
    ordered = sorted(references.items(), key=lambda item: (item[0][0] != "floor", -(item[0][1] or 0)))
    table: list[dict[str, Any]] = [
        {"kind": row.model, "cells": [name, *quality(row), "", "", ""]} for (_, _, name), row in ordered
    ]
    trained = [(row, entry) for entry in entries for row in entry.students]
    for row, entry in sorted(trained, key=lambda pair: (pair[0].steps or 0, pair[0].frechet_distance or 0.0)):
        spent = [
            f"{entry.cost['network_passes'] / 1e3:.0f}k",
            f"{entry.cost['train_seconds'] / 60:.1f} min",
            f"{entry.cost['peak_memory_mib']:.0f} MiB",
        ]
        table.append({"kind": "student", "cells": [entry.name, *quality(row), *spent]})
    return table


def reference_name(row: ResultRow) -> str:
    """Name of a teacher's or the floor's row.

    >>> reference_name(ResultRow("teacher", steps=2, guidance_scale=2.0, sampler="DDIM trailing"))
    'teacher, guidance 2, DDIM trailing'
    """
    if row.model == "floor":
        return REAL
    guidance = "" if row.guidance_scale is None else f", guidance {row.guidance_scale:g}"
    return f"{row.model}{guidance}" + (f", {row.sampler}" if row.sampler else "")


def precision_suffix(row: ResultRow, entries: Sequence[Entry]) -> str:
    """The teacher's dtype, if runs drew it in several: their distances differ."""
    kinds = {each.dtype for entry in entries for each in entry.others if each.model == "teacher"}
    return f", {row.dtype}" if row.model == "teacher" and len(kinds) > 1 else ""


def quality(row: ResultRow) -> list[str]:
    """The measured cells of a row; empty if not measured."""
    keys = ("steps", "frechet_distance", "prompt_accuracy", "coverage", "clip_score")
    columns = {column.key: column for column in COLUMNS}
    return [cell(row, columns[key]) for key in keys]


def markdown(entries: Sequence[Entry]) -> str:
    """The table as Markdown."""
    body = ["| " + " | ".join(map(escaped, line["cells"])) + " |" for line in lines(entries)]
    return "\n".join(["| " + " | ".join(TITLES) + " |", "|---|" + "---:|" * (len(TITLES) - 1), *body])


def summary(entries: Sequence[Entry]) -> str:
    """Markdown table with a line per recipe and a column per number of steps: distance, prompt accuracy, coverage."""
    lines: dict[str, dict[int | None, ResultRow]] = {}
    for entry in entries:
        for name, rows in ((entry.name, entry.students), ("", entry.others)):
            for row in rows:
                teacher = f"teacher, best stock sampler{precision_suffix(row, entries)}"
                title = name or (REAL if row.model == "floor" else teacher)
                cells = lines.setdefault(title, {})
                # Recipes may use different guidance scales for the teacher: show the best.
                cells[row.steps] = min(cells.get(row.steps, row), row, key=_distance)
    numbers = sorted({steps for cells in lines.values() for steps in cells if steps is not None})
    best = {title: min(cells.values(), key=_distance) for title, cells in lines.items()}
    body = [
        [title, *("" if steps not in cells else short(cells[steps]) for steps in numbers)]
        for title, cells in sorted(lines.items(), key=lambda line: _distance(best[line[0]]))
        if title != REAL
    ]
    head = ["", *(steps_in_words(steps) for steps in numbers)]
    table = [head, ["---"] * len(head), *body]
    note = "Frechet distance / prompt accuracy / coverage."
    if REAL in lines:
        note += f" Real pictures: {short(lines[REAL][None])}."
    return "\n".join(["| " + " | ".join(map(escaped, cells)) + " |" for cells in table] + ["", note])


def short(row: ResultRow) -> str:
    """Distance, prompt accuracy and coverage in one cell.

    >>> short(ResultRow("student", frechet_distance=14.52, prompt_accuracy=0.404, coverage=0.523))
    '14.5 / 40 % / 52 %'
    """
    forms = (("frechet_distance", "{:.1f}"), ("prompt_accuracy", "{:.0%}"), ("coverage", "{:.0%}"))
    values = ((form, getattr(row, key)) for key, form in forms)
    return " / ".join("-" if value is None else form.format(value).replace("%", " %") for form, value in values)


def _distance(row: ResultRow) -> float:
    return float("inf") if row.frechet_distance is None else row.frechet_distance


def quality_figure(entries: Sequence[Entry]) -> str:
    """Frechet distance over steps as SVG, a curve per recipe and one for the teacher."""
    series: dict[str, dict[int, float]] = {}
    for entry in entries:
        own = [(entry.name, row) for row in entry.students]
        teacher = [(f"teacher{precision_suffix(row, entries)}", row) for row in entry.others]
        for name, row in [*own, *teacher]:
            if row.steps and row.frechet_distance is not None:
                points = series.setdefault(name, {})
                points[row.steps] = min(points.get(row.steps, row.frechet_distance), row.frechet_distance)
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    with rc_context(STYLE):
        axes = figure.add_subplot()
        teachers = [name for name in sorted(series) if name.startswith("teacher")]
        students = [name for name in sorted(series) if name not in teachers]
        for name in [*students, *teachers]:
            steps, values = zip(*sorted(series[name].items()), strict=True)
            # Dashes distinguish curves of one colour: students once the colours repeat, teachers of several dtypes.
            group, colours = (teachers, (FAINT,)) if name in teachers else (students, CYCLE)
            order = group.index(name)
            dashes = ("-", "--", ":")[order // len(colours) % 3]
            colour = colours[order % len(colours)]
            axes.plot(steps, values, dashes, color=colour, marker="o", markersize=4, label=name)
        axes.set_yscale("log")
        steps_axis(axes, (steps for points in series.values() for steps in points))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel("Frechet distance")
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.0))
        return to_svg(figure)
