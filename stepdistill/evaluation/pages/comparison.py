"""Tables over scored folders: one column per metric and hash, so that numbers of different protocols never share a column."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stepdistill.evaluation.document import Number, RunResults
from stepdistill.evaluation.pages.tables import escaped

TableStyle = Literal["markdown", "latex", "csv"]
Marks = Mapping[int | None, str]
"""Formats of the best, the second and any other number."""


@dataclass(frozen=True)
class NumberColumn:
    """A metric under one hash."""

    name: str
    protocol: str
    """Hash that distinguishes columns of one name."""
    protocol_name: str
    variant: str
    title: str
    better: int

    def value(self, run: RunResults) -> Number | None:
        """The run's number under this hash, or None."""
        number = run.metrics.get(self.name)
        return number if number is not None and number.protocol == self.protocol else None

    @property
    def arrow(self) -> str:
        """Direction of improvement."""
        return {1: "↑", -1: "↓"}.get(self.better, "")


@dataclass(frozen=True)
class CostColumn:
    """A setting or cost. Costs are comparable on one device only, so none is marked as best."""

    name: str
    title: str
    form: str
    field: str
    is_setting: bool = False
    """Settings come before the numbers, costs after."""

    def text(self, run: RunResults) -> str:
        """The formatted value; empty if not measured."""
        value = getattr(run.model if self.field == "model" else run.cost, self.name)
        return "" if value is None else self.form.format(value)


COSTS = (
    CostColumn("steps", "Steps", "{:d}", "model", is_setting=True),
    CostColumn("nfe", "NFE", "{:g}", "cost", is_setting=True),
    CostColumn("guidance_scale", "Guidance", "{:g}", "model", is_setting=True),
    CostColumn("latency_s", "Latency, s", "{:.3g}", "cost"),
    CostColumn("latency_network_s", "Network alone, s", "{:.3g}", "cost"),
    CostColumn("images_per_s", "Images/s", "{:.3g}", "cost"),
    CostColumn("peak_memory_mib", "Memory, MiB", "{:.0f}", "cost"),
    CostColumn("device", "Device", "{}", "cost"),
)


def number_columns(runs: Sequence[RunResults]) -> list[NumberColumn]:
    """The columns that some run has a number for, in order of appearance."""
    found: dict[tuple[str, str], NumberColumn] = {}
    for run in runs:
        for name, number in run.metrics.items():
            column = NumberColumn(
                name, number.protocol, number.protocol_name, number.variant, number.title, number.better
            )
            found.setdefault((name, number.protocol), column)
    names = list(dict.fromkeys(name for name, _ in found))
    return sorted(found.values(), key=lambda column: names.index(column.name))


def cost_columns(runs: Sequence[RunResults], *, settings: bool) -> list[CostColumn]:
    """The settings, or the costs, that some run has a value for."""
    return [column for column in COSTS if column.is_setting == settings and any(column.text(run) for run in runs)]


def best_rank(column: NumberColumn, run: RunResults, runs: Sequence[RunResults]) -> int | None:
    """1 for the best number of a column, 2 for the second; None otherwise, and in columns with one number."""
    values = sorted(
        {number.value for each in runs if (number := column.value(each)) is not None and number.value is not None},
        key=lambda value: -column.better * value,
    )
    own = column.value(run)
    if column.better == 0 or len(values) < 2 or own is None or own.value is None:
        return None
    place = values.index(own.value) + 1
    return place if place <= 2 else None


def digits(value: float, error: float | None) -> int:
    """Decimals to show: two digits of the standard error, or four digits in all.

    >>> digits(19.3256, 0.12), digits(0.33213, 0.0004), digits(1234.5, None), digits(0.002, 0.0), digits(2.5, None)
    (2, 5, 0, 4, 3)
    """
    if error:
        return max(0, min(6, 1 - _exponent(error)))
    return max(0, min(4, 3 - max(_exponent(value), -1)))


def _exponent(value: float) -> int:
    """Decimal exponent."""
    return int(f"{value:e}".split("e")[1])


def number_text(number: Number | None, sign: str = "±") -> str:
    """A number with its standard error; empty if not measured."""
    if number is None or number.value is None:
        return ""
    places = digits(number.value, number.standard_error)
    error = f" {sign} {number.standard_error:.{places}f}" if number.standard_error is not None else ""
    return f"{number.value:.{places}f}{error}"


def comparison_table(runs: Sequence[RunResults], style: TableStyle = "markdown") -> str:
    """Runs as rows: model, settings, every metric under every hash (best bold, second underlined), costs.

    Notes below a Markdown or LaTeX table give each column's protocol. CSV has values and standard errors in full precision.
    """
    if style == "csv":
        return _csv(runs)
    return _markdown(runs) if style == "markdown" else _latex(runs)


def labels(columns: Sequence[NumberColumn]) -> list[str]:
    """Titles with arrows, and with protocol and hash if several columns share a metric."""
    names = [column.name for column in columns]
    return [
        f"{column.title} {column.arrow}".strip()
        + (f" ({column.protocol_name} {column.protocol[:6]})" if names.count(column.name) > 1 else "")
        for column in columns
    ]


def _rows(runs: Sequence[RunResults], text: Callable[[str], str], marks: Marks, sign: str) -> list[list[str]]:
    """The header and a row per run, as cells."""
    first, costs = (cost_columns(runs, settings=which) for which in (True, False))
    columns = number_columns(runs)
    titles = ["Model", *(each.title for each in first), *labels(columns), *(each.title for each in costs)]
    rows = [[text(title) for title in titles]]
    for run in runs:
        numbers = [
            marks[best_rank(column, run, runs) if value else None].format(value)
            for column in columns
            for value in [number_text(column.value(run), sign)]
        ]
        before, after = ([text(each.text(run)) for each in group] for group in (first, costs))
        rows.append([text(run.model.name), *before, *numbers, *after])
    return rows


def _notes(runs: Sequence[RunResults], mark: str) -> list[str]:
    columns = number_columns(runs)
    return [
        f"{label}: {column.variant}, protocol {column.protocol_name} {mark}{column.protocol}{mark}"
        for label, column in zip(labels(columns), columns, strict=True)
    ]


def _markdown(runs: Sequence[RunResults]) -> str:
    rows = _rows(runs, escaped, {None: "{}", 1: "**{}**", 2: "<u>{}</u>"}, "±")
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    notes = ["", "Numbers with standard errors. Protocols:", "", *(f"- {note}" for note in _notes(runs, "`"))]
    return "\n".join([head, "|---|" + "---:|" * (len(rows[0]) - 1), *body, *notes]) + "\n"


def _latex(runs: Sequence[RunResults]) -> str:
    rows = _rows(runs, _tex, {None: "{}", 1: "\\textbf{{{}}}", 2: "\\underline{{{}}}"}, "$\\pm$")
    head, *body = [" & ".join(row) + " \\\\" for row in rows]
    begin = "\\begin{tabular}{l" + "r" * (len(rows[0]) - 1) + "}"
    lines = ["% needs \\usepackage{booktabs}", begin, "\\toprule", head, "\\midrule", *body, "\\bottomrule"]
    return "\n".join([*lines, "\\end{tabular}", *(f"% {note}" for note in _notes(runs, ""))]) + "\n"


def _csv(runs: Sequence[RunResults]) -> str:
    columns = number_columns(runs)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    keys = [f"{column.name}@{column.protocol}" for column in columns]
    writer.writerow(["model", *(cost.name for cost in COSTS), *(each for key in keys for each in (key, f"{key} se"))])
    for run in runs:
        costs = [getattr(run.model if cost.field == "model" else run.cost, cost.name) for cost in COSTS]
        numbers = [column.value(run) for column in columns]
        cells = [
            each for number in numbers for each in ((number.value, number.standard_error) if number else (None, None))
        ]
        writer.writerow([run.model.name, *costs, *cells])
    return buffer.getvalue()


def _tex(text: str) -> str:
    """Escape text for LaTeX.

    >>> _tex("FID ↓ (a_b 50%)")
    'FID $\\\\downarrow$ (a\\\\_b 50\\\\%)'
    """
    for character in "\\&%$#_{}":
        text = text.replace(character, f"\\{character}" if character != "\\" else "/")
    return text.replace("↑", "$\\uparrow$").replace("↓", "$\\downarrow$")
