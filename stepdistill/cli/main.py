"""The command line: parse, call one function, and turn wrong input into one line and exit code 2.

Commands import what they need inside, so that `--help`, `--version`, `methods` and `plan` start without torch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from stepdistill import __version__
from stepdistill.cli import evaluate as evaluate_command
from stepdistill.cli import tables
from stepdistill.errors import BoundBrokenError, ExportError, RunInterruptedError, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Distil a diffusers pipeline to 1-8 steps, export what stock diffusers and ComfyUI load, and measure it.",
)
console = Console()

RecipeFile = Annotated[str, typer.Argument(help="recipe, e.g. recipes/emoji_dmd2_demo.yaml", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="overrides: train.max_train_steps=100 ...", metavar="[KEY=VALUE]...")
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document and nothing else")]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        sys.stdout.write(f"stepdistill {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of the program itself."""


root.__doc__ = app.info.help  # typer shows the callback's docstring in place of the program's help


@app.command()
def distill(
    recipe: RecipeFile,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved recipe and its memory estimate, then exit")
    ] = False,
) -> None:
    """Run a recipe: train, export, evaluate, report. Run it again to resume.

    [dim]stepdistill distill recipes/emoji_dmd2_demo.yaml train.output_dir=runs/mine[/dim]
    """
    from stepdistill.training.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or ())
    if dry_run:
        from stepdistill.training.plan import memory_estimate

        sys.stdout.write(resolved.dump())
        tables.print_plan(memory_estimate(resolved))
        return
    from stepdistill.training.run import distill as run_recipe

    run_dir = run_recipe(resolved)
    written = [name for name in ("report.html", "results.json", "export") if (run_dir / name).exists()]
    console.print("done: " + ", ".join(f"{run_dir}/{name}" for name in written), highlight=False, soft_wrap=True)


@app.command()
def pairs(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Precompute the teacher's images of known noises for recipes with data.pairs. Run it again to resume."""
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
    source: Annotated[Path, typer.Argument(help="export folder, or run folder that contains one")],
    prompt: Annotated[list[str], typer.Option(help="prompt; repeatable")],
    out: Annotated[Path, typer.Option(help="folder for the PNG files")] = Path("samples"),
    seed: Annotated[int, typer.Option(help="seed of the first image; later images count up")] = 0,
    base: Annotated[
        str | None, typer.Option(help="base model of a LoRA; default: the one named in the export")
    ] = None,
) -> None:
    """Generate images with an exported student in stock diffusers."""
    from stepdistill.export.use import load_export, sample_images

    pipe, call = load_export(source, base=base)
    for path in sample_images(pipe, call, prompt, out=out, seed=seed):
        console.print(str(path), highlight=False)


app.command()(evaluate_command.evaluate)
app.command()(tables.compare)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="run folder")],
    overrides: Overrides = None,
    which: Annotated[Literal["last", "best"], typer.Option(help="checkpoint to export")] = "last",
) -> None:
    """Export a run's student again through the reload gate; choose formats with export.formats=..."""
    from stepdistill.data.prompts import load_prompts
    from stepdistill.training.run import export_student, restore

    distiller, recipe = restore(run, which=which, overrides=overrides or ())
    prompts = load_prompts(recipe.data.prompts, limit=recipe.data.num_prompts, seed=recipe.train.seed)
    results = json.loads((run / "results.json").read_text()) if (run / "results.json").exists() else None
    console.print(f"verified: {export_student(distiller, recipe, prompts, run, results)}", highlight=False)


@app.command()
def plan(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Estimate the memory of a recipe without reading weights."""
    from stepdistill.training.plan import memory_estimate
    from stepdistill.training.recipe import load_recipe

    estimate = memory_estimate(load_recipe(recipe, overrides or ()))
    if as_json:
        _print_json(estimate)
    else:
        tables.print_plan(estimate)


@app.command()
def bench(
    recipes: Annotated[
        list[str] | None, typer.Argument(help="recipes; default: every emoji recipe that ships", metavar="[RECIPE]...")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for runs and leaderboard; reuse it to resume")] = Path(
        "runs/bench"
    ),
    minutes: Annotated[float | None, typer.Option(help="training time per recipe; default: 20", min=0.05)] = None,
    n: Annotated[int | None, typer.Option(help="images per row; default: 2000", min=16)] = None,
    seed: Annotated[int | None, typer.Option(help="seed of every run; default: 0")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="recipes run in parallel, each on its share of the cores; default: 1, quick 2", min=1),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="few iterations and images unless given: a smoke test")
    ] = False,
) -> None:
    """Train recipes at one equal budget and compare the students: table, plot and page.

    [dim]stepdistill bench recipes/emoji_dmd2_demo.yaml recipes/emoji_lcm_4step.yaml --minutes 20[/dim]
    """
    from stepdistill.assets import resolve_path
    from stepdistill.bench import QUICK, BenchBudget, budget_with, run_bench

    chosen = recipes or [str(path) for path in sorted(resolve_path("recipes").glob("emoji_*.yaml"))]
    budget = budget_with(QUICK if quick else BenchBudget(), minutes=minutes, num_images=n, seed=seed, jobs=jobs)
    failed = run_bench(chosen, out, budget)
    console.print((out / "leaderboard.md").read_text(), highlight=False, soft_wrap=True)
    if failed:
        raise UserError(f"these recipes failed, their messages are above: {', '.join(failed)}")


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the methods: purpose, requirements, cost and status."""
    from stepdistill.distillers.catalogue import method_table

    rows = method_table()
    if as_json:
        _print_json(rows)
    else:
        tables.print_methods(rows)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions and devices, and warn of known problems."""
    from stepdistill.doctor import diagnose

    findings = diagnose()
    if as_json:
        _print_json(findings)
    else:
        tables.print_findings(findings)


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


def main() -> None:
    """Entry point of the console script.

    Exit codes: 0 done; 2 wrong input; 130 stopped by a signal, with a checkpoint; 1 a bug, an export that does not reload, or
    a broken bound of --assert.
    """
    # Set before their import: both warn about parts that are not used here.
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        app()
    except UserError as error:
        _fail(error, 2)
    except (ExportError, BoundBrokenError) as error:
        _fail(error, 1)
    except RunInterruptedError as error:
        _fail(error, 130)


def _fail(error: Exception, code: int) -> None:
    sys.stderr.write(f"stepdistill: {error}\n")
    sys.exit(code)
