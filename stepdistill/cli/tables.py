"""`stepdistill compare`, and tables on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

console = Console()


def compare(
    runs: Annotated[list[Path], typer.Argument(help="output folders of evaluate")],
    out: Annotated[Path, typer.Option(help="folder for tables, plots, grids and the page")] = Path("runs/comparison"),
    title: Annotated[str, typer.Option(help="title of the page")] = "Comparison",
) -> None:
    """Compare evaluated models: tables (Markdown, LaTeX, CSV), plots, grids and one self-contained page.

    [dim]stepdistill compare runs/teacher-50 runs/student-4 --out runs/comparison[/dim]
    """
    from stepdistill.evaluation.pages.comparison_page import write_comparison
    from stepdistill.evaluation.pages.galleries import ScoredRun

    page = write_comparison([ScoredRun.open(path) for path in runs], out, title=title)
    sys.stdout.write((out / "table.md").read_text(encoding="utf-8"))
    Console(stderr=True).print(f"done: {page}", highlight=False, soft_wrap=True)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print the rows of a run's results.json."""
    columns = ("name", "steps", "nfe", "frechet_distance", "frechet_distance_to_teacher", "kid", "clip_score",
               "prompt_accuracy", "coverage", "latency_s", "n")  # fmt: skip
    print_table([{column: row.get(column) for column in columns} for row in rows])


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print dictionaries with the same keys as a table."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value or "-") for value in row.values()))
    console.print(table)


def print_methods(rows: list[dict[str, Any]]) -> None:
    """Print the list of methods, readable at 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("purpose", max_width=34)
    table.add_column("needs", max_width=14)
    table.add_column("steps", justify="right")
    table.add_column("passes", justify="right")
    table.add_column("status", no_wrap=True)
    for row in rows:
        needs = ", ".join(row["requires"])
        table.add_row(row["name"], row["summary"], needs, str(row["steps"]), f"{row['passes']:g}", row["status"])
    console.print(table)
    console.print(
        "steps: default number of student steps. passes: network passes per sample and\n"
        "iteration at the default options. verified: a recipe is measured. Papers: --json.",
        highlight=False,
    )


def print_plan(estimate: dict[str, Any]) -> None:
    """Print a memory estimate."""
    table = Table("part", "GiB", title=f"{estimate['model']}, roles {estimate['roles']}")
    for name, gib in estimate["gib"].items():
        table.add_row(name, f"{gib:.2f}")
    table.add_row("total", f"{estimate['total_gib']:.2f}", style="bold")
    console.print(table)
    console.print(f"not included: {estimate['not_included']}", highlight=False)


def print_findings(findings: dict[str, Any]) -> None:
    """Print what `stepdistill doctor` found."""
    for name, version in findings["packages"].items():
        console.print(f"{name:18} {version or '-'}", highlight=False)
    cpu = findings["cpu"]
    console.print(f"{'cpu':18} {cpu['cores']} cores, {cpu['capability']}", highlight=False)
    for device in findings["devices"]:
        console.print(f"{'device':18} {device['name']}, {device['memory_gib']} GiB", highlight=False)
    for warning in findings["warnings"]:
        console.print(f"[yellow]warning[/yellow] {warning}", highlight=False)
