"""Compare scored folders: tables, plots, grids, and one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from stepdistill.evaluation.document import RunResults
from stepdistill.evaluation.pages.comparison import (
    TableStyle,
    best_rank,
    comparison_table,
    cost_columns,
    number_columns,
    number_text,
)
from stepdistill.evaluation.pages.comparison_plots import figures
from stepdistill.evaluation.pages.galleries import (
    ScoredRun,
    comparable_runs,
    extremes_grid,
    same_noise_grid,
    seeds_grid,
)
from stepdistill.evaluation.pages.html import picture_url, render, svg_url
from stepdistill.evaluation.picture_store import write_text

PAGE = "comparison.html"
MOST_PAIRS, PICTURE_SIDE = 12, 384
EXTREMES = ("imagereward", "hps", "pickscore", "clip", "psnr")
"""Scores that rank best and worst pictures, in order of preference."""


def write_comparison(runs: Sequence[ScoredRun], out: Path, *, title: str = "Comparison") -> Path:
    """Write `table.md`, `table.tex`, `table.csv`, `plots/*.svg`, `grids/*.png` and the page; returns the page's path."""
    documents = [run.results for run in runs]
    styles: dict[str, TableStyle] = {"md": "markdown", "tex": "latex", "csv": "csv"}
    for suffix, style in styles.items():
        write_text(out / f"table.{suffix}", comparison_table(documents, style))
    plots = figures(documents)
    for name, svg in plots.items():
        write_text(out / "plots" / f"{name}.svg", svg)
    sheets = grids(runs)
    for name, sheet in sheets.items():
        (out / "grids").mkdir(parents=True, exist_ok=True)
        sheet.save(out / "grids" / f"{name}.png")
    write_text(out / PAGE, page(runs, plots, sheets, title))
    return out / PAGE


def grids(runs: Sequence[ScoredRun]) -> dict[str, Image.Image]:
    """Grids of the runs' pictures, by file name."""
    found = {"same_noise": same_noise_grid(runs), "seeds": seeds_grid(runs)}
    for number, run in enumerate(runs):
        metric = next((name for name in EXTREMES if run.scores(name) is not None), None)
        if metric is not None:
            found[f"extremes_{number}"] = extremes_grid(run, metric)
    return {name: sheet for name, sheet in found.items() if sheet is not None}


def page(runs: Sequence[ScoredRun], plots: dict[str, str], sheets: dict[str, Image.Image], title: str) -> str:
    """The HTML page: sortable table, slider, plots and grids."""
    documents = [run.results for run in runs]
    shown = comparable_runs(runs)
    titles = {"same_noise": "One noise, every model", "seeds": "Seeds of one prompt"}
    return render(
        "comparison.html.j2",
        title=title,
        groups=column_groups(documents),
        heads=heads(documents),
        rows=[table_row(run, documents) for run in documents],
        models=[run.name for run in shown],
        start=slider_start(shown),
        pairs=slider_pictures(shown),
        plots=[svg_url(svg) for svg in plots.values()],
        sheets=[
            (titles.get(name) or f"Best and worst of {_run_of(name, runs)}", picture_url(sheet, "webp", quality=90))
            for name, sheet in sheets.items()
        ],
        versions=documents[0].versions if documents else {},
    )


def column_groups(runs: Sequence[RunResults]) -> list[dict[str, Any]]:
    """Groups of columns: settings, each protocol, costs."""
    groups = [{"name": "", "hash": "", "count": 1 + len(cost_columns(runs, settings=True))}]
    for column in number_columns(runs):
        if groups[-1]["hash"] == column.protocol:
            groups[-1]["count"] += 1
        else:
            groups.append({"name": column.protocol_name, "hash": column.protocol, "count": 1})
    costs = len(cost_columns(runs, settings=False))
    return groups + ([{"name": "cost", "hash": "", "count": costs}] if costs else [])


def heads(runs: Sequence[RunResults]) -> list[dict[str, str]]:
    """Column headers with their tooltips."""
    first, costs = (
        [{"text": each.title, "note": ""} for each in cost_columns(runs, settings=which)] for which in (True, False)
    )
    numbers = [
        {
            "text": f"{column.title} {column.arrow}".strip(),
            "note": f"{column.variant}, {column.protocol_name} {column.protocol}",
        }
        for column in number_columns(runs)
    ]
    return [*first, *numbers, *costs]


def table_row(run: RunResults, runs: Sequence[RunResults]) -> dict[str, Any]:
    """Cells with their sort keys."""
    first, costs = (
        [
            {"text": (text := each.text(run)), "value": _sortable(text), "rank": None}
            for each in cost_columns(runs, settings=which)
        ]
        for which in (True, False)
    )
    numbers = []
    for column in number_columns(runs):
        number = column.value(run)
        value = "" if number is None or number.value is None else repr(number.value)
        numbers.append({"text": number_text(number), "value": value, "rank": best_rank(column, run, runs)})
    return {"name": run.model.name, "kind": run.model.kind, "cells": [*first, *numbers, *costs]}


def slider_start(runs: Sequence[ScoredRun]) -> tuple[int, int]:
    """Models shown first: the first teacher on the left, the last student on the right."""
    kinds = [run.results.model.kind for run in runs]
    left = kinds.index("teacher") if "teacher" in kinds else 0
    others = [number for number, kind in enumerate(kinds) if number != left]
    students = [number for number in others if kinds[number] == "student"]
    return left, (students or others or [left])[-1]


def slider_pictures(runs: Sequence[ScoredRun]) -> list[dict[str, Any]]:
    """For each of the first prompts, every model's picture from the same noise."""
    if len(runs) < 2:
        return []
    numbers = [i for i, record in enumerate(runs[0].records) if record.sample == 0][:MOST_PAIRS]
    return [
        {
            "prompt": runs[0].records[i].prompt,
            "pictures": [_picture(picture) for run in runs if (picture := run.picture(run.records[i])) is not None],
        }
        for i in numbers
    ]


def _run_of(name: str, runs: Sequence[ScoredRun]) -> str:
    return runs[int(name.rpartition("_")[2])].name


def _sortable(text: str) -> str:
    try:
        return repr(float(text))
    except ValueError:
        return text


def _picture(picture: Image.Image) -> str:
    """A picture, reduced if it is large."""
    scale = min(PICTURE_SIDE / max(picture.size), 1.0)
    size = (round(picture.width * scale), round(picture.height * scale))
    small = picture if scale == 1 else picture.resize(size, Image.Resampling.LANCZOS)
    return picture_url(small, "webp", quality=90)
