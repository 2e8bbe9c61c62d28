"""`stepdistill evaluate`: parse, call, and print."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml

from stepdistill.cli_report import console, print_rows
from stepdistill.errors import UserError

if TYPE_CHECKING:
    from stepdistill.metrics.benchmark import BenchmarkOptions, Drawn
    from stepdistill.metrics.document import RunResults
    from stepdistill.metrics.gates import Bound
    from stepdistill.metrics.processes import Crew
    from stepdistill.metrics.prompt_sets import PromptSet
    from stepdistill.metrics.protocols import Benchmark

PIPELINE, PROTOCOL, HOW = "What draws", "What is measured", "How"


def evaluate(
    run: Annotated[
        Path | None, typer.Argument(help="a run folder; or give --pipeline, --images or --watch")
    ] = None,
    n: Annotated[int, typer.Option(help="images per row of a run folder", min=16)] = 2000,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON document on standard output, nothing else")
    ] = False,
    which: Annotated[Literal["last", "best"], typer.Option(help="which of the run's students")] = "last",
    pipeline: Annotated[
        str | None,
        typer.Option(help="folder or hub id of a diffusers pipeline, or an export", rich_help_panel=PIPELINE),
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option(help="a LoRA for it: file, folder, hub id or export", rich_help_panel=PIPELINE),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="a folder of pictures instead of a pipeline", rich_help_panel=PIPELINE)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="inference steps", min=1, rich_help_panel=PIPELINE)
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="guidance scale", rich_help_panel=PIPELINE)] = None,
    argument: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE for the pipeline's call, such as height=512; repeatable",
            rich_help_panel=PIPELINE,
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16", rich_help_panel=PIPELINE)] = "fp32",
    name: Annotated[str | None, typer.Option(help="name in tables", rich_help_panel=PIPELINE)] = None,
    kind: Annotated[
        Literal["student", "teacher"], typer.Option(help="what it is in reports", rich_help_panel=PIPELINE)
    ] = "student",
    watch: Annotated[
        Path | None,
        typer.Option(help="score every new checkpoint of this run folder", rich_help_panel=PIPELINE),
    ] = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="with --watch: score what is there and stop", rich_help_panel=PIPELINE),
    ] = False,
    interval: Annotated[
        float, typer.Option(help="with --watch: seconds between looks", min=0.1, rich_help_panel=PIPELINE)
    ] = 60.0,
    protocol: Annotated[
        str, typer.Option(help="its name, see docs/evaluation.md", rich_help_panel=PROTOCOL)
    ] = "emoji",
    prompts: Annotated[
        str | None,
        typer.Option(help="file of prompts instead of the protocol's own", rich_help_panel=PROTOCOL),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="of the prompts in that file", rich_help_panel=PROTOCOL)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="fewer prompts, from the start", min=1, rich_help_panel=PROTOCOL)
    ] = None,
    samples: Annotated[
        int, typer.Option(help="pictures of each prompt", min=1, rich_help_panel=PROTOCOL)
    ] = 1,
    metrics: Annotated[
        str | None,
        typer.Option(help="names with commas, NAME=VARIANT for another variant", rich_help_panel=PROTOCOL),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="statistics (.npz) or a folder of real pictures", rich_help_panel=PROTOCOL),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="folder of the teacher's pictures, such as its --out", rich_help_panel=PROTOCOL),
    ] = None,
    bounds: Annotated[
        list[str] | None,
        typer.Option("--assert", help="a bound such as 'fid<=20'; exit code 1 where it breaks; repeatable"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of this run; the same command again goes on there")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="pictures drawn at once", min=1, rich_help_panel=HOW)] = 8,
    file_format: Annotated[
        Literal["png", "webp"],
        typer.Option("--format", help="of the pictures, both lossless", rich_help_panel=HOW),
    ] = "png",
    latency_repeats: Annotated[
        int, typer.Option(help="timed calls; 0 measures no times", min=0, rich_help_panel=HOW)
    ] = 20,
) -> None:
    """Measure a run, any diffusers pipeline, or a folder of pictures.

    [dim]stepdistill evaluate runs/mine[/dim]

    [dim]stepdistill evaluate --pipeline assets/emoji-sd --steps 4 --guidance 2 --limit 500 --out runs/emoji-4[/dim]
    """
    from stepdistill.metrics.gates import Bound

    checks = [Bound.parse(text) for text in bounds or ()]
    given = [
        word
        for word, value in {"RUN": run, "--pipeline": pipeline, "--images": images, "--watch": watch}.items()
        if value
    ]
    if len(given) != 1:
        raise UserError(
            f"evaluate takes one of RUN, --pipeline, --images and --watch, not {' and '.join(given) or 'none'}"
        )
    if run is not None:
        _evaluate_run(run, n, which, checks, as_json=as_json)
        return
    from stepdistill.metrics.benchmark import BenchmarkOptions
    from stepdistill.metrics.processes import Crew
    from stepdistill.metrics.prompt_sets import load_prompt_set
    from stepdistill.metrics.protocols import protocol_named
    from stepdistill.metrics.sources import Source
    from stepdistill.metrics.timing import CostRules

    crew = Crew.join()
    chosen = replace(protocol_named(protocol), samples_per_prompt=samples)
    names = metrics.split(",") if metrics else None
    options = BenchmarkOptions(
        out or Path("runs/evaluate"), batch_size, file_format, reference, teacher, CostRules(repeats=latency_repeats),
        _progress if crew.is_first and not as_json else None,
    )  # fmt: skip
    if watch is not None:
        prompt_set = load_prompt_set(chosen, prompts, column=column, limit=limit)
        _watch(watch, chosen, prompt_set, names, options, checks, crew, is_once=once, interval=interval)
        return
    if out is None:
        raise UserError("--out FOLDER is needed: pictures, scores and results.json go there")
    if pipeline is not None:
        arguments = dict(_named_value(text) for text in argument or ())
        source = Source(pipeline, lora, steps, guidance, arguments, dtype, name, kind)
        prompt_set = load_prompt_set(chosen, prompts, column=column, limit=limit)
        drawn = _drawn(source, crew)
    else:
        drawn, prompt_set = _found(images, chosen, prompts, column, limit, name, kind)
    _score(drawn, chosen, prompt_set, names, options, checks, crew, as_json=as_json)


def _evaluate_run(
    run: Path, n: int, which: Literal["last", "best"], checks: Sequence[Bound], *, as_json: bool
) -> None:
    """Student, teacher and floor of a run on the embedded problem."""
    from stepdistill.metrics.gates import check_bounds
    from stepdistill.metrics.report import write_report
    from stepdistill.training.run import restore
    from stepdistill.training.scoring import evaluate_run

    distiller, recipe = restore(run, which=which)
    validation = recipe.validation.model_copy(update={"num_evaluated": n})
    results = evaluate_run(distiller, recipe.model_copy(update={"validation": validation}), run)
    write_report(run)
    if as_json:
        sys.stdout.write(json.dumps(results, indent=1) + "\n")
    else:
        print_rows(results["rows"])
    student = next(row for row in results["rows"] if row["model"] == "student")
    numbers = {key: value for key, value in student.items() if isinstance(value, (int, float))}
    check_bounds(checks, numbers)


def _watch(
    run_dir: Path,
    protocol: Benchmark,
    prompts: PromptSet,
    metrics: list[str] | None,
    options: BenchmarkOptions,
    checks: Sequence[Bound],
    crew: Crew,
    *,
    is_once: bool,
    interval: float,
) -> None:
    """Checkpoint after checkpoint; bounds are checked at the last one."""
    from stepdistill.metrics.gates import check_bounds
    from stepdistill.training.watch import WatchOptions, read_lines, watch_run

    def report(step: int, results: RunResults) -> None:
        if crew.is_first:
            values = ", ".join(f"{name} {number.value:.5g}" for name, number in results.metrics.items())
            console.print(f"step {step}: {values}", highlight=False, soft_wrap=True)

    lines = watch_run(
        WatchOptions(run_dir, protocol, prompts, metrics, options, interval=interval, is_once=is_once), report
    )
    if crew.is_first:
        console.print(f"done: {lines}", highlight=False, soft_wrap=True)
        check_bounds(checks, read_lines(lines.parent)[-1]["metrics"])


def _drawn(source: Any, crew: Crew) -> Drawn:
    from stepdistill.metrics.benchmark import Drawn
    from stepdistill.metrics.sources import open_source

    generation, record = open_source(source, crew.device)
    return Drawn(record, generation)


def _found(
    images: Path | None,
    protocol: Benchmark,
    prompts: str | None,
    column: str | None,
    limit: int | None,
    name: str | None,
    kind: str,
) -> tuple[Drawn, PromptSet | None]:
    """A folder of pictures, and its prompts where they are named or where the folder's manifest does not say them."""
    from stepdistill.metrics.benchmark import Drawn
    from stepdistill.metrics.document import ModelRecord
    from stepdistill.metrics.picture_store import MANIFEST
    from stepdistill.metrics.prompt_sets import load_prompt_set

    if images is None or not images.is_dir():
        raise UserError(f"--images: there is no folder '{images}'")
    drawn = Drawn(ModelRecord(name=name or images.name, source=str(images), kind=kind), folder=images)
    if prompts is None and (images / MANIFEST).is_file():
        return drawn, None
    if prompts is None and protocol.prompts is None:
        return drawn, None
    return drawn, load_prompt_set(protocol, prompts, column=column, limit=limit)


def _score(
    drawn: Drawn,
    protocol: Benchmark,
    prompts: PromptSet | None,
    metrics: list[str] | None,
    options: BenchmarkOptions,
    checks: Sequence[Bound],
    crew: Crew,
    *,
    as_json: bool,
) -> None:
    from stepdistill.metrics.benchmark import run_benchmark
    from stepdistill.metrics.comparison import comparison_table
    from stepdistill.metrics.gates import check_bounds

    results = run_benchmark(drawn, protocol, prompts, metrics, options, crew)
    if not crew.is_first:
        return
    if as_json:
        sys.stdout.write((options.out / "results.json").read_text(encoding="utf-8"))
    else:
        sys.stdout.write(comparison_table([results]))
    costs = {
        key: value for key, value in results.cost.model_dump().items() if isinstance(value, (int, float))
    }
    check_bounds(checks, costs | {key: number.value for key, number in results.metrics.items()})


def _named_value(text: str) -> tuple[str, Any]:
    """`height=512` to a name and a value; values are YAML, so lists work too."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise UserError(f"--argument '{text}' is not NAME=VALUE")
    return name, yaml.safe_load(value)


def _progress(stage: str, done: int, total: int) -> None:
    if done == total or done % 10 == 0:
        sys.stderr.write(f"{stage}: block {done} of {total}\n")
