"""The command line: parses, calls one function, and turns wrong input into one line and exit code 2."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from stepdistill.cli import evaluate as evaluate_command
from stepdistill.cli import tables
from stepdistill.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Distil a diffusers pipeline to 1-8 steps, export what stock diffusers and ComfyUI load, and measure it.",
)
console = Console()

RecipeFile = Annotated[
    str, typer.Argument(help="a recipe, such as recipes/emoji_dmd2_demo.yaml", metavar="RECIPE")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="changes to it: train.max_train_steps=100 ...", metavar="[KEY=VALUE]..."),
]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on standard output, nothing else")]


@app.command()
def distill(
    recipe: RecipeFile,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved recipe and its memory, then stop")
    ] = False,
) -> None:
    """Run a recipe: train, export, measure, report. The same command again goes on where it stopped.

    [dim]stepdistill distill recipes/emoji_dmd2_demo.yaml train.output_dir=runs/mine[/dim]
    """
    from stepdistill.training.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or ())
    if dry_run:
        from stepdistill.training.plan import memory_estimate

        sys.stdout.write(resolved.dump())
        _print_plan(memory_estimate(resolved))
        return
    from stepdistill.training.run import distill as run_recipe

    run_dir = run_recipe(resolved)
    made = [name for name in ("report.html", "results.json", "export") if (run_dir / name).exists()]
    console.print("done: " + ", ".join(f"{run_dir}/{name}" for name in made), highlight=False, soft_wrap=True)


@app.command()
def pairs(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Compute the teacher's images of given noises ahead of training, for recipes with data.pairs.

    The same command again goes on where it stopped.
    """
    from rich.progress import track

    from stepdistill.training.recipe import load_recipe
    from stepdistill.training.run import precompute_pairs

    resolved = load_recipe(recipe, overrides or ())
    count = precompute_pairs(
        resolved, lambda shards: track(shards, "pairs", console=Console(stderr=True), transient=True)
    )
    console.print(f"done: {count} pairs in {resolved.data.cache_dir}", highlight=False, soft_wrap=True)


@app.command()
def pretrain(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Train one of the embedded models (autoencoder, CLIP, teachers) from a recipe in recipes/pretrain/."""
    from stepdistill.pretraining.run import pretrain as run_pretraining

    run_pretraining(recipe, overrides or ())


@app.command()
def sample(
    source: Annotated[Path, typer.Argument(help="an export folder, or the run folder that holds one")],
    prompt: Annotated[list[str], typer.Option(help="what to draw; may be given several times")],
    out: Annotated[Path, typer.Option(help="where the PNG files go")] = Path("samples"),
    seed: Annotated[int, typer.Option(help="of the first image; the next ones count up")] = 0,
    base: Annotated[
        str | None, typer.Option(help="the base model of a LoRA; default: what the export names")
    ] = None,
) -> None:
    """Draw prompts with an exported student in stock diffusers."""
    from stepdistill.export.use import load_export, sample_images

    pipe, call = load_export(source, base=base)
    for path in sample_images(pipe, call, prompt, out=out, seed=seed):
        console.print(str(path), highlight=False)


app.command()(evaluate_command.evaluate)
app.command()(tables.compare)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    overrides: Overrides = None,
    which: Annotated[Literal["last", "best"], typer.Option(help="which of the run's students")] = "last",
) -> None:
    """Export a run's student again, through the reload gate; in other formats with export.formats=..."""
    from stepdistill.data.prompts import load_prompts
    from stepdistill.training.run import export_student, restore

    distiller, recipe = restore(run, which=which, overrides=overrides or ())
    prompts = load_prompts(recipe.data.prompts, limit=recipe.data.num_prompts, seed=recipe.train.seed)
    results = json.loads((run / "results.json").read_text()) if (run / "results.json").exists() else None
    console.print(f"verified: {export_student(distiller, recipe, prompts, run, results)}", highlight=False)


@app.command()
def plan(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Estimate the memory of a recipe from configurations alone; nothing is downloaded but those."""
    from stepdistill.training.plan import memory_estimate
    from stepdistill.training.recipe import load_recipe

    estimate = memory_estimate(load_recipe(recipe, overrides or ()))
    if as_json:
        _print_json(estimate)
    else:
        _print_plan(estimate)


@app.command()
def bench(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(help="recipes; default: all emoji recipes that ship", metavar="[RECIPE]..."),
    ] = None,
    out: Annotated[Path, typer.Option(help="where runs and leaderboard go; rerunning goes on there")] = Path(
        "runs/bench"
    ),
    minutes: Annotated[
        float | None, typer.Option(help="of training for each recipe; default: 20", min=0.05)
    ] = None,
    n: Annotated[int | None, typer.Option(help="images per row; default: 2000", min=16)] = None,
    seed: Annotated[int | None, typer.Option(help="of every run; default: 0")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="recipes at once, each on its share of the cores; default: 1, quick 2", min=1),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="a few iterations each and few images, unless given: shows that it runs",
        ),
    ] = False,
) -> None:
    """Train recipes at one equal budget and compare what comes out: table, plot and page.

    [dim]stepdistill bench recipes/emoji_dmd2_demo.yaml recipes/emoji_lcm_4step.yaml --minutes 20[/dim]
    """
    from stepdistill.assets import resolve_path
    from stepdistill.bench import QUICK, BenchBudget, budget_with, run_bench

    chosen = recipes or [str(path) for path in sorted(resolve_path("recipes").glob("emoji_*.yaml"))]
    budget = budget_with(
        QUICK if quick else BenchBudget(), minutes=minutes, num_images=n, seed=seed, jobs=jobs
    )
    failed = run_bench(chosen, out, budget)
    console.print((out / "leaderboard.md").read_text(), highlight=False, soft_wrap=True)
    if failed:
        raise UserError(f"these recipes failed, their messages are above: {', '.join(failed)}")


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the methods: paper, what they need, how far they are proved."""
    from stepdistill.distillers.catalogue import method_table

    rows = method_table()
    if as_json:
        _print_json(rows)
        return
    tables.print_table(rows)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions and devices, and warn of known traps."""
    from stepdistill.doctor import diagnose

    findings = diagnose()
    if as_json:
        _print_json(findings)
        return
    for name, version in findings["packages"].items():
        console.print(f"{name:18} {version or '-'}", highlight=False)
    console.print(
        f"{'cpu':18} {findings['cpu']['cores']} cores, {findings['cpu']['capability']}", highlight=False
    )
    for device in findings["devices"]:
        console.print(f"{'device':18} {device['name']}, {device['memory_gib']} GiB", highlight=False)
    for warning in findings["warnings"]:
        console.print(f"[yellow]warning[/yellow] {warning}", highlight=False)


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def _print_plan(estimate: dict[str, Any]) -> None:
    table = Table("part", "GiB", title=f"{estimate['model']}, roles {estimate['roles']}")
    for name, gib in estimate["gib"].items():
        table.add_row(name, f"{gib:.2f}")
    table.add_row("total", f"{estimate['total_gib']:.2f}", style="bold")
    console.print(table)
    console.print(f"not included: {estimate['not_included']}", highlight=False)


def main() -> None:
    """Entry point of the console script.

    Exit codes: 0 done, 2 wrong input, 130 stopped by a signal with a checkpoint written, 1 a bug, an export that does not
    reload, or a bound of --assert that does not hold.
    """
    # Before their import: they warn of parts that nothing here uses.
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    from stepdistill.evaluation.gates import BoundBrokenError
    from stepdistill.export import ExportError
    from stepdistill.training.interrupt import RunInterruptedError

    try:
        app()
    except UserError as error:
        sys.stderr.write(f"stepdistill: {error}\n")
        sys.exit(2)
    except (ExportError, BoundBrokenError) as error:
        sys.stderr.write(f"stepdistill: {error}\n")
        sys.exit(1)
    except RunInterruptedError as error:
        sys.stderr.write(f"stepdistill: {error}\n")
        sys.exit(130)
