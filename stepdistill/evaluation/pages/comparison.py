"""Tables over scored runs: one column for each metric and address, so numbers of different protocols never stand in one column."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stepdistill.evaluation.document import Number, RunResults

TableStyle = Literal["markdown", "latex", "csv"]


@dataclass(frozen=True)
class NumberColumn:
    """A metric under one address."""

    name: str
    protocol: str
    """Hash: what sets apart columns of one name."""
    protocol_name: str
    variant: str
    title: str
    better: int

    def value(self, run: RunResults) -> Number | None:
        """The run's number of this very address, or None."""
        number = run.metrics.get(self.name)
        return number if number is not None and number.protocol == self.protocol else None

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return {1: "↑", -1: "↓"}.get(self.better, "")


@dataclass(frozen=True)
class CostColumn:
    """A cost, which no protocol changes; it compares on one device only, and so is never marked as best."""

    name: str
    title: str
    form: str
    field: str
    is_setting: bool = False
    """Settings stand before the numbers, costs after them."""

    def text(self, run: RunResults) -> str:
        """The value as shown; empty where it was not measured."""
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
    """The columns that some run has a number for, in the order in which they come."""
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
    return [
        column for column in COSTS if column.is_setting == settings and any(column.text(run) for run in runs)
    ]


def best_rank(column: NumberColumn, run: RunResults, runs: Sequence[RunResults]) -> int | None:
    """1 for the best number of a column and 2 for the second, of at least two; else None."""
    values = sorted(
        {
            number.value
            for each in runs
            if (number := column.value(each)) is not None and number.value is not None
        },
        key=lambda value: -column.better * value,
    )
    own = column.value(run)
    if column.better == 0 or len(values) < 2 or own is None or own.value is None:
        return None
    place = values.index(own.value) + 1
    return place if place <= 2 else None


def digits(value: float, error: float | None) -> int:
    """Decimals that a number is worth: two of its standard error, or four figures in all.

    >>> digits(19.3256, 0.12), digits(0.33213, 0.0004), digits(1234.5, None), digits(0.002, 0.0), digits(2.5, None)
    (2, 5, 0, 4, 3)
    """
    if error:
        return max(0, min(6, 1 - _exponent(error)))
    return max(0, min(4, 3 - max(_exponent(value), -1)))


def _exponent(value: float) -> int:
    """Power of ten of the first digit."""
    return int(f"{value:e}".split("e")[1])


def number_text(number: Number | None, sign: str = "±") -> str:
    """A number with its standard error; empty where it was not measured."""
    if number is None or number.value is None:
        return ""
    places = digits(number.value, number.standard_error)
    error = f" {sign} {number.standard_error:.{places}f}" if number.standard_error is not None else ""
    return f"{number.value:.{places}f}{error}"


def comparison_table(runs: Sequence[RunResults], style: TableStyle = "markdown") -> str:
    """Runs as rows: model, costs, then every metric under every address, the best bold and the second underlined.

    Below a Markdown or LaTeX table stands what each column was taken under. CSV has values and standard errors in full.
    """
    if style == "csv":
        return _csv(runs)
    return _markdown(runs) if style == "markdown" else _latex(runs)


def labels(columns: Sequence[NumberColumn]) -> list[str]:
    """Titles with arrows; where several columns share a metric, with the protocol and the start of its hash."""
    names = [column.name for column in columns]
    return [
        f"{column.title} {column.arrow}".strip()
        + (f" ({column.protocol_name} {column.protocol[:6]})" if names.count(column.name) > 1 else "")
        for column in columns
    ]


def _markdown(runs: Sequence[RunResults]) -> str:
    first, costs = (cost_columns(runs, settings=which) for which in (True, False))
    columns = number_columns(runs)
    lines = [["Model", *(each.title for each in first), *labels(columns), *(each.title for each in costs)]]
    marks = {None: "{}", 1: "**{}**", 2: "<u>{}</u>"}
    for run in runs:
        cells = [
            marks[best_rank(column, run, runs) if (text := number_text(column.value(run))) else None].format(
                text
            )
            for column in columns
        ]
        name = run.model.name.replace("|", "\\|")
        lines.append([name, *(each.text(run) for each in first), *cells, *(each.text(run) for each in costs)])
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    rule = "|---|" + "---:|" * (len(first) + len(columns) + len(costs))
    notes = [
        f"- {label}: {column.variant}, protocol {column.protocol_name} `{column.protocol}`"
        for label, column in zip(labels(columns), columns, strict=True)
    ]
    return "\n".join([head, rule, *body, "", "Numbers with standard errors. Taken under:", "", *notes]) + "\n"


def _latex(runs: Sequence[RunResults]) -> str:
    first, costs = (cost_columns(runs, settings=which) for which in (True, False))
    columns = number_columns(runs)
    marks = {None: "{}", 1: "\\textbf{{{}}}", 2: "\\underline{{{}}}"}
    titles = ["Model", *(each.title for each in first), *labels(columns), *(each.title for each in costs)]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{tabular}{l" + "r" * (len(titles) - 1) + "}",
        "\\toprule",
        " & ".join(_tex(title) for title in titles) + " \\\\",
        "\\midrule",
    ]
    for run in runs:
        cells = [
            marks[
                best_rank(column, run, runs) if (text := number_text(column.value(run), "$\\pm$")) else None
            ].format(text)
            for column in columns
        ]
        before, after = ([_tex(each.text(run)) for each in group] for group in (first, costs))
        lines.append(" & ".join([_tex(run.model.name), *before, *cells, *after]) + " \\\\")
    notes = [
        f"% {label}: {column.variant}, protocol {column.protocol_name} {column.protocol}"
        for label, column in zip(labels(columns), columns, strict=True)
    ]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", *notes]) + "\n"


def _csv(runs: Sequence[RunResults]) -> str:
    columns = number_columns(runs)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    keys = [f"{column.name}@{column.protocol}" for column in columns]
    writer.writerow(
        ["model", *(cost.name for cost in COSTS), *(each for key in keys for each in (key, f"{key} se"))]
    )
    for run in runs:
        costs = [getattr(run.model if cost.field == "model" else run.cost, cost.name) for cost in COSTS]
        numbers = [column.value(run) for column in columns]
        cells = [
            each
            for number in numbers
            for each in ((number.value, number.standard_error) if number else (None, None))
        ]
        writer.writerow([run.model.name, *costs, *cells])
    return buffer.getvalue()


def _tex(text: str) -> str:
    """Plain text for LaTeX.

    >>> _tex("FID ↓ (a_b 50%)")
    'FID $\\\\downarrow$ (a\\\\_b 50\\\\%)'
    """
    for character in "\\&%$#_{}":
        text = text.replace(character, f"\\{character}" if character != "\\" else "/")
    return text.replace("↑", "$\\uparrow$").replace("↓", "$\\downarrow$")
