"""The leaderboard of a benchmark: every student beside its teacher at the same steps, at full steps, and the floor."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, LogLocator, NullFormatter

from stepdistill.diffusion.sampler import steps_in_words
from stepdistill.evaluation.embedded.measurements import Row
from stepdistill.evaluation.pages.contact_sheets import Contestant, contact_sheets
from stepdistill.evaluation.pages.plots import CYCLE, FAINT, STYLE, to_svg
from stepdistill.evaluation.pages.report import embedded_sheet
from stepdistill.evaluation.pages.tables import read_pictures

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
"""Columns of the table."""
REAL = "real pictures"


@dataclass(frozen=True)
class Entry:
    """A finished run.

    Attributes:
        name: of the recipe.
        method: recipe name of the method.
        teacher: path or hub id of the teacher.
        rows: of its results.json.
        cost: its cost.json: network_passes, train_seconds, peak_memory_mib.
        run_dir: its folder, for the pictures; None for a page without them.
    """

    name: str
    method: str
    teacher: str
    rows: tuple[Row, ...]
    cost: Mapping[str, float]
    run_dir: str | None = None

    @property
    def students(self) -> tuple[Row, ...]:
        """The rows of what was trained, one for each number of steps it was measured at."""
        return tuple(row for row in self.rows if row.model == "student")

    @property
    def others(self) -> tuple[Row, ...]:
        """Teacher and floor rows."""
        return tuple(row for row in self.rows if row.model != "student")


def write_leaderboard(entries: Sequence[Entry], out: Path, *, title: str) -> None:
    """Write `leaderboard.json`, `leaderboard.md`, `leaderboard.html` and its pictures into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    groups = {
        teacher: [e for e in entries if e.teacher == teacher]
        for teacher in dict.fromkeys(e.teacher for e in entries)
    }
    document = {"schema": 1, "title": title, "entries": [asdict(entry) for entry in entries]}
    (out / "leaderboard.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    parts = [f"## {teacher}\n\n{summary(group)}\n\n{markdown(group)}" for teacher, group in groups.items()]
    (out / "leaderboard.md").write_text(f"# {title}\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = (files("stepdistill.evaluation.pages") / "templates/leaderboard.html.j2").read_text(
        encoding="utf-8"
    )
    sections = [
        {
            "teacher": teacher,
            "lines": lines(group),
            "figure": quality_figure(group),
            "sheets": [
                (steps_in_words(steps), embedded_sheet(path))
                for steps, path in write_sheets(group, out, teacher).items()
            ],
        }
        for teacher, group in groups.items()
    ]
    page = environment.from_string(source).render(title=title, titles=TITLES, sections=sections)
    (out / "leaderboard.html").write_text(page, encoding="utf-8")


def write_sheets(entries: Sequence[Entry], out: Path, teacher: str) -> dict[int, Path]:
    """Write what each drew as `TEACHER_Nstep.png` into `out`, a file for each number of steps; returns their paths."""
    drawn = [(entry, read_pictures(Path(entry.run_dir))) for entry in entries if entry.run_dir]
    contestants = [
        Contestant(entry.name, entry.students, pictures) for entry, pictures in drawn if pictures is not None
    ]
    stem, paths = re.sub(r"[^\w.-]+", "-", teacher).strip("-"), {}
    for steps, sheet in contact_sheets(contestants).items():
        paths[steps] = out / f"{stem}_{steps}step.png"
        sheet.save(paths[steps])
    return paths


def lines(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Cells of one teacher's table: floor, teacher by falling steps, then students by steps and distance."""
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


def reference_name(row: Row) -> str:
    """Name of a row that is no student's.

    >>> reference_name(Row("teacher", steps=2, guidance_scale=2.0, sampler="DDIM trailing"))
    'teacher, guidance 2, DDIM trailing'
    """
    if row.model == "floor":
        return REAL
    guidance = "" if row.guidance_scale is None else f", guidance {row.guidance_scale:g}"
    return f"{row.model}{guidance}" + (f", {row.sampler}" if row.sampler else "")


def precision_suffix(row: Row, entries: Sequence[Entry]) -> str:
    """The teacher's number type for its name, where the runs drew it in more than one: their distances differ."""
    kinds = {each.dtype for entry in entries for each in entry.others if each.model == "teacher"}
    return f", {row.dtype}" if row.model == "teacher" and len(kinds) > 1 else ""


def quality(row: Row) -> list[str]:
    """The measured cells of a row; empty where nothing was measured."""
    forms = (
        ("steps", "{:d}"),
        ("frechet_distance", "{:.2f}"),
        ("prompt_accuracy", "{:.1%}"),
        ("coverage", "{:.1%}"),
        ("clip_score", "{:.2f}"),
    )
    return ["" if getattr(row, key) is None else form.format(getattr(row, key)) for key, form in forms]


def markdown(entries: Sequence[Entry]) -> str:
    """The table as Markdown."""
    body = ["| " + " | ".join(line["cells"]) + " |" for line in lines(entries)]
    return "\n".join(["| " + " | ".join(TITLES) + " |", "|---|" + "---:|" * (len(TITLES) - 1), *body])


def summary(entries: Sequence[Entry]) -> str:
    """A line for each recipe and a column for each number of steps: distance, right prompts, coverage. As Markdown."""
    lines: dict[str, dict[int | None, Row]] = {}
    for entry in entries:
        for name, rows in ((entry.name, entry.students), ("", entry.others)):
            for row in rows:
                teacher = f"teacher, best stock sampler{precision_suffix(row, entries)}"
                title = name or (REAL if row.model == "floor" else teacher)
                cells = lines.setdefault(title, {})
                # Recipes may guide the teacher differently: the best of them stands here.
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
    return "\n".join(["| " + " | ".join(cells) + " |" for cells in table] + ["", note])


def short(row: Row) -> str:
    """Distance, right prompts and coverage in one cell.

    >>> short(Row("student", frechet_distance=14.52, prompt_accuracy=0.404, coverage=0.523))
    '14.5 / 40 % / 52 %'
    """
    forms = (("frechet_distance", "{:.1f}"), ("prompt_accuracy", "{:.0%}"), ("coverage", "{:.0%}"))
    values = ((form, getattr(row, key)) for key, form in forms)
    return " / ".join(
        "-" if value is None else form.format(value).replace("%", " %") for form, value in values
    )


def _distance(row: Row) -> float:
    return float("inf") if row.frechet_distance is None else row.frechet_distance


def quality_figure(entries: Sequence[Entry]) -> str:
    """Frechet distance over steps, a line for each recipe and one for the teacher, as SVG."""
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
            # Dashes tell lines of one colour apart: students where the colours come again, teachers of several number types.
            group, colours = (teachers, (FAINT,)) if name in teachers else (students, CYCLE)
            order = group.index(name)
            dashes = ("-", "--", ":")[order // len(colours) % 3]
            colour = colours[order % len(colours)]
            axes.plot(steps, values, dashes, color=colour, marker="o", markersize=4, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = sorted({steps for points in series.values() for steps in points})
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticklabels([str(tick) for tick in ticks])
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("steps")
        axes.set_ylabel("Frechet distance")
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.0))
        return to_svg(figure)
