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
    runs: Annotated[list[Path], typer.Argument(help="folders of scored runs (--out of evaluate)")],
    out: Annotated[Path, typer.Option(help="where tables, plots, grids and the page go")] = Path(
        "runs/comparison"
    ),
    title: Annotated[str, typer.Option(help="of the page")] = "Comparison",
) -> None:
    """Set scored runs side by side: tables (Markdown, LaTeX, CSV), plots, grids and one self-contained page.

    [dim]stepdistill compare runs/teacher-50 runs/student-4 --out runs/comparison[/dim]
    """
    from stepdistill.evaluation.pages.comparison_page import write_comparison
    from stepdistill.evaluation.pages.galleries import ScoredRun

    page = write_comparison([ScoredRun.open(path) for path in runs], out, title=title)
    sys.stdout.write((out / "table.md").read_text(encoding="utf-8"))
    Console(stderr=True).print(f"done: {page}", highlight=False, soft_wrap=True)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The rows of an embedded problem's results.json."""
    columns = ("name", "steps", "nfe", "frechet_distance", "frechet_distance_to_teacher", "kid", "clip_score",
               "prompt_accuracy", "coverage", "latency_s", "n")  # fmt: skip
    print_table([{column: row.get(column) for column in columns} for row in rows])


def print_table(rows: list[dict[str, Any]]) -> None:
    """Dictionaries of the same keys as a table on the terminal."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(
            *(f"{value:.4g}" if isinstance(value, float) else str(value or "-") for value in row.values())
        )
    console.print(table)
