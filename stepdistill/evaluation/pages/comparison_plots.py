"""Plots over scored folders: quality against steps, latency and diversity. Numbers of different hashes never share a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stepdistill.diffusion.sampler import steps_in_words
from stepdistill.evaluation.document import Number, RunResults
from stepdistill.evaluation.pages.comparison import NumberColumn, number_columns
from stepdistill.evaluation.pages.plots import CYCLE, FAINT, STYLE, steps_axis, to_svg

DIVERSITY = ("lpips_diversity", "vendi", "cosine_diversity", "recall")
"""Numbers for the diversity axis, in order of preference."""
HEADLINES = ("fid", "frechet_distance", "clip", "hps", "imagereward", "prompt_accuracy")
"""Numbers plotted against latency and diversity too; others are plotted against steps alone."""
Point = tuple[float, Number, RunResults]


def figures(runs: Sequence[RunResults]) -> dict[str, str]:
    """All plots as SVG, by file name."""
    found: dict[str, str] = {}
    columns = [column for column in number_columns(runs) if column.better]
    device = next((run.cost.device for run in runs if run.cost.latency_s is not None), None)
    axes = {"steps": _steps, "latency": _latency_on(device)}
    for column in columns:
        for name, x in axes.items():
            if name == "latency" and column.name not in HEADLINES:
                continue
            points = _points(runs, column, x)
            if len({point[0] for point in points}) > 1:
                found[f"{column.name}-{column.protocol}-{name}"] = quality_figure(column, points, name)
        other = _diversity_column(columns, column)
        if other is not None:
            points = _points(runs, column, lambda run, other=other: _value(other, run))
            if len(points) > 1:
                found[f"{column.name}-{column.protocol}-diversity"] = quality_figure(column, points, other.title)
    return found


def quality_figure(column: NumberColumn, points: Sequence[Point], x_name: str) -> str:
    """A metric over one axis with standard errors; models whose names agree up to the first comma share a line."""
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    with rc_context(STYLE):
        axes = figure.add_subplot()
        lines: dict[str, list[Point]] = {}
        for point in points:
            lines.setdefault(point[2].model.name.split(",")[0], []).append(point)
        for order, (name, line) in enumerate(lines.items()):
            line.sort(key=lambda point: point[0])
            colour = FAINT if line[0][2].model.kind == "teacher" else CYCLE[order % len(CYCLE)]
            axes.errorbar(
                [x for x, _, _ in line],
                [number.value or 0.0 for _, number, _ in line],
                yerr=[number.standard_error or 0.0 for _, number, _ in line],
                color=colour,
                linestyle="-" if x_name in ("steps", "latency") else "",
                marker="o",
                markersize=4,
                capsize=2,
                label=name,
            )
            if x_name != "steps":
                _name_points(axes, line)
        if x_name == "steps":
            steps_axis(axes, (x for x, _, _ in points))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_xlabel("latency of one picture, s" if x_name == "latency" else x_name)
        axes.set_ylabel(f"{column.title} {column.arrow}")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if len(lines) > 1:
            axes.legend(fontsize=8)
        return to_svg(figure)


def _name_points(axes: Any, line: Sequence[Point]) -> None:
    for x, number, run in line:
        text = steps_in_words(run.model.steps) if run.model.steps else ""
        axes.annotate(text, (x, number.value), textcoords="offset points", xytext=(4, 4), fontsize=7, color=FAINT)


def _points(runs: Sequence[RunResults], column: NumberColumn, x: Callable[[RunResults], float | None]) -> list[Point]:
    found = [(x(run), column.value(run), run) for run in runs]
    return [
        (place, number, run)
        for place, number, run in found
        if place is not None and number is not None and number.value is not None
    ]


def _steps(run: RunResults) -> float | None:
    return None if run.model.steps is None else float(run.model.steps)


def _latency_on(device: str | None) -> Callable[[RunResults], float | None]:
    """Latency on this device: times of different devices are not comparable."""
    return lambda run: run.cost.latency_s if run.cost.device == device else None


def _value(column: NumberColumn, run: RunResults) -> float | None:
    number = column.value(run)
    return None if number is None else number.value


def _diversity_column(columns: Sequence[NumberColumn], own: NumberColumn) -> NumberColumn | None:
    names = [column.name for column in columns]
    chosen = next((name for name in DIVERSITY if name in names), None)
    if chosen is None or own.name not in HEADLINES:
        return None
    return columns[names.index(chosen)]
