"""Training curves as matplotlib figures in SVG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from stepdistill.evaluation.catalogue import shown

INK, FAINT, GRID, ACCENT = "#1c1e26", "#626878", "#e6e8ee", "#3b5bdb"
NAMED_COLOURS = {"student": ACCENT, "teacher": FAINT, "fake": "#e8590c", "real": "#2b8a3e"}
CYCLE = (ACCENT, "#e8590c", "#2b8a3e", "#9c36b5", "#0c8599", "#c92a2a")
STYLE: Any = {
    "svg.fonttype": "path",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
}
MAX_POINTS = 400
PART = re.compile(r"_(student|teacher|real|fake|t\d*\.\d+)$")
"""Suffix that distinguishes the lines of one panel: a network, or the lower edge of a noise bucket."""

Curve = tuple[list[float], list[float]]


@dataclass
class Panel:
    """One plot: a title and its curves."""

    title: str
    curves: dict[str, Curve] = field(default_factory=dict)


def panels(records: Sequence[Mapping[str, float]]) -> dict[str, list[Panel]]:
    """Every logged number as a curve: sections by prefix, panels by name, related curves in one panel.

    >>> rows = [{"step": 1, "time": 0.5, "loss/dm": 3.0, "health/latent_std_student": 1.0, "health/latent_std_teacher": 0.9}]
    >>> {section: [(p.title, sorted(p.curves)) for p in each] for section, each in panels(rows).items()}
    {'loss': [('dm', ['dm'])], 'health': [('latent_std', ['student', 'teacher'])]}
    """
    sections: dict[str, dict[str, Panel]] = {}
    for record in records:
        for name, value in record.items():
            if name in ("step", "time") or not _is_number(value):
                continue
            section, _, title = name.rpartition("/")
            part = PART.search(title)
            line = part.group(1) if part else title
            title = PART.sub("", title)
            panel = sections.setdefault(section or "run", {}).setdefault(title, Panel(title))
            steps, values = panel.curves.setdefault(line, ([], []))
            steps.append(float(record["step"]))
            values.append(float(value))
    return {section: list(each.values()) for section, each in sections.items()}


def is_empty(panel: Panel) -> bool:
    """Whether every value of the panel is zero."""
    return not any(any(values) for _, values in panel.curves.values())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def thinned(curve: Curve, limit: int = MAX_POINTS) -> Curve:
    """Average neighbouring points so that at most `limit` remain.

    >>> thinned(([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 7.0]), limit=2)
    ([0.5, 2.5], [2.0, 6.0])
    """
    steps, values = curve
    width = math.ceil(len(steps) / limit)
    groups = range(0, len(steps), max(width, 1))
    means = [[sum(part) / len(part) for part in (each[i : i + width] for i in groups)] for each in (steps, values)]
    return means[0], means[1]


def smoothed(values: Sequence[float], reach: int) -> list[float]:
    """Centred moving average over `reach` neighbours on either side, fewer at the ends.

    >>> smoothed([0.0, 3.0, 6.0, 0.0], reach=1)
    [1.5, 3.0, 3.0, 3.0]
    """
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def draw_panel(panel: Panel) -> str:
    """A panel as SVG; long curves are drawn thin with their moving average."""
    figure = Figure(figsize=(4.2, 2.5), layout="constrained")
    with rc_context(STYLE):
        axes = figure.add_subplot()
        for order, (name, curve) in enumerate(sorted(panel.curves.items())):
            steps, values = thinned(curve)
            colour = _colour(name, order, len(panel.curves))
            is_long = len(steps) > 60
            if is_long:
                axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
            marker = "o" if len(steps) < 20 else None
            line = smoothed(values, len(values) // 40) if is_long else values
            axes.plot(steps, line, color=colour, linewidth=1.6, marker=marker, markersize=3.5, label=name)
        if _spans_decades([value for _, values in panel.curves.values() for value in values]):
            axes.set_yscale("log")
        else:  # a fixed number of ticks: the automatic one changes after the layout has reserved room for the labels
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        if len(panel.curves) > 1:
            place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
            axes.legend(**place, ncols=5, fontsize=8, handlelength=1.2, columnspacing=1.2)
        return to_svg(figure)


def _colour(name: str, order: int, total: int) -> str | tuple[float, ...]:
    if re.fullmatch(r"t\d*\.\d+", name):
        return colormaps["viridis"](0.9 * order / max(total - 1, 1))
    return NAMED_COLOURS.get(name, CYCLE[order % len(CYCLE)])


def _spans_decades(values: Sequence[float]) -> bool:
    """Whether the values are positive and span decades, a few extremes aside."""
    ranked = sorted(values)
    low, high = ranked[len(ranked) // 20], ranked[-1 - len(ranked) // 20]
    return ranked[0] > 0 and high / low > 50


def training_figure(lines: Sequence[Mapping[str, Any]]) -> str:
    """Each metric over training, with its standard error, as SVG.

    Args:
        lines: with `step`, `metrics` by name and `standard_errors` by name.
    """
    names = list(dict.fromkeys(name for line in lines for name in line["metrics"]))
    columns = min(len(names), 3) or 1
    rows = math.ceil(len(names) / columns) or 1
    figure = Figure(figsize=(3.6 * columns, 2.5 * rows), layout="constrained")
    with rc_context(STYLE):
        for place, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, place + 1)
            points = [
                (line["step"], line["metrics"][name], line.get("standard_errors", {}).get(name) or 0.0)
                for line in lines
                if line["metrics"].get(name) is not None
            ]
            steps, values, errors = zip(*points, strict=True) if points else ((), (), ())
            axes.errorbar(
                steps, values, yerr=errors, color=ACCENT, marker="o", markersize=3.5, linewidth=1.6, capsize=2
            )
            axes.set_title(shown(name)[0], loc="left", fontsize=9)
            axes.set_xlabel("training step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5))
        return to_svg(figure)


def steps_axis(axes: Any, steps: Iterable[float]) -> None:
    """A logarithmic axis of sampling steps with a tick for each."""
    ticks = sorted(set(steps))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick:g}" for tick in ticks])
    axes.set_xlabel("steps")


def to_svg(figure: Figure) -> str:
    """The figure as SVG with a transparent background."""
    buffer = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
