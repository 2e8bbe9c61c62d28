"""`stepdistill evaluate`: parse, call, and print."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from stepdistill.cli import options
from stepdistill.cli.tables import console, print_rows
from stepdistill.errors import UserError

if TYPE_CHECKING:
    from stepdistill.evaluation.benchmark import BenchmarkOptions, Drawn
    from stepdistill.evaluation.document import RunResults
    from stepdistill.evaluation.gates import Bound
    from stepdistill.evaluation.picture_store import FileFormat
    from stepdistill.evaluation.processes import Crew
    from stepdistill.evaluation.prompt_sets import PromptSet
    from stepdistill.evaluation.protocols import Benchmark


def evaluate(
    run: options.Run = None,
    n: options.N = 2000,
    as_json: options.AsJson = False,
    which: options.Which = "last",
    pipeline: options.Pipeline = None,
    lora: options.Lora = None,
    images: options.Images = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    argument: options.Argument = None,
    dtype: options.Dtype = "fp32",
    name: options.Name = None,
    kind: options.Kind = "student",
    watch: options.Watch = None,
    once: options.Once = False,
    interval: options.Interval = 60.0,
    protocol: options.Protocol = "emoji",
    prompts: options.Prompts = None,
    column: options.Column = None,
    limit: options.Limit = None,
    samples: options.Samples = 1,
    seed: options.Seed = None,
    metrics: options.Metrics = None,
    reference: options.Reference = None,
    teacher: options.Teacher = None,
    bounds: options.Bounds = None,
    out: options.Out = None,
    batch_size: options.BatchSize = 8,
    file_format: options.FileFormat = "png",
    latency_repeats: options.LatencyRepeats = 20,
) -> None:
    """Measure a run, any diffusers pipeline, or a folder of pictures.

    [dim]stepdistill evaluate runs/mine[/dim]

    [dim]stepdistill evaluate --pipeline assets/emoji-sd --steps 4 --guidance 2 --limit 500 --out runs/emoji-4[/dim]
    """
    checks = _checked(bounds, {"RUN": run, "--pipeline": pipeline, "--images": images, "--watch": watch})
    if run is not None:
        return _evaluate_run(run, n, which, seed, checks, as_json=as_json)
    from stepdistill.evaluation.sources import Source

    arguments = dict(_named_value(text) for text in argument or ())
    drawer = Source(pipeline or "", lora, steps, guidance, arguments, dtype, name, kind)
    prompt_file = _PromptFile(prompts, column, limit)
    job = _job(
        protocol, samples, seed, metrics, checks, out, batch_size, file_format, reference, teacher, latency_repeats,
        is_quiet=as_json,
    )  # fmt: skip
    if watch is not None:
        return _watch(watch, job, prompt_file, is_once=once, interval=interval)
    if out is None:
        raise UserError("--out FOLDER is needed: pictures, scores and results.json go there")
    if pipeline is not None:
        prompt_set = prompt_file.load(job.protocol)
        return _score(_drawn(drawer, job.crew), prompt_set, job, as_json=as_json)
    return _score(*_found(images, job.protocol, prompt_file, name, kind), job, as_json=as_json)


@dataclass(frozen=True)
class _PromptFile:
    """Where the user says the prompts are."""

    source: str | None
    column: str | None
    limit: int | None

    def load(self, protocol: Benchmark) -> PromptSet:
        from stepdistill.evaluation.prompt_sets import load_prompt_set

        return load_prompt_set(protocol, self.source, column=self.column, limit=self.limit)


@dataclass(frozen=True)
class _Job:
    """What is measured and how, whatever draws."""

    protocol: Benchmark
    metrics: list[str] | None
    checks: Sequence[Bound]
    options: BenchmarkOptions
    crew: Crew


def _checked(bounds: list[str] | None, sources: dict[str, Any]) -> list[Bound]:
    """The bounds, once exactly one source is named."""
    from stepdistill.evaluation.gates import Bound

    given = [word for word, value in sources.items() if value]
    if len(given) != 1:
        raise UserError(
            f"evaluate takes one of RUN, --pipeline, --images and --watch, not {' and '.join(given) or 'none'}"
        )
    return [Bound.parse(text) for text in bounds or ()]


def _job(
    protocol: str,
    samples: int,
    seed: int | None,
    metrics: str | None,
    checks: Sequence[Bound],
    out: Path | None,
    batch_size: int,
    file_format: FileFormat,
    reference: str | None,
    teacher: Path | None,
    latency_repeats: int,
    *,
    is_quiet: bool,
) -> _Job:
    from stepdistill.evaluation.benchmark import BenchmarkOptions
    from stepdistill.evaluation.processes import Crew
    from stepdistill.evaluation.protocols import protocol_named
    from stepdistill.evaluation.timing import CostRules

    crew = Crew.join()
    chosen = protocol_named(protocol)
    chosen = replace(chosen, samples_per_prompt=samples, seed=chosen.seed if seed is None else seed)
    progress = _progress if crew.is_first and not is_quiet else None
    rules = CostRules(repeats=latency_repeats)
    how = BenchmarkOptions(
        out or Path("runs/evaluate"), batch_size, file_format, reference, teacher, rules, progress
    )
    return _Job(chosen, metrics.split(",") if metrics else None, checks, how, crew)


def _evaluate_run(
    run: Path,
    n: int,
    which: Literal["last", "best"],
    seed: int | None,
    checks: Sequence[Bound],
    *,
    as_json: bool,
) -> None:
    """Student, teacher and floor of a run on the embedded problem."""
    from stepdistill.evaluation.gates import check_bounds
    from stepdistill.evaluation.pages.report import write_report
    from stepdistill.evaluation.protocols import EMOJI
    from stepdistill.training.run import restore
    from stepdistill.training.scoring import evaluate_run

    distiller, recipe = restore(run, which=which)
    validation = recipe.validation.model_copy(update={"num_evaluated": n})
    protocol = EMOJI if seed is None else replace(EMOJI, seed=seed)
    results = evaluate_run(
        distiller, recipe.model_copy(update={"validation": validation}), run, protocol=protocol
    )
    write_report(run)
    if as_json:
        sys.stdout.write(json.dumps(results, indent=1) + "\n")
    else:
        print_rows(results["rows"])
    student = next(row for row in results["rows"] if row["model"] == "student")
    numbers = {key: value for key, value in student.items() if isinstance(value, (int, float))}
    check_bounds(checks, numbers)


def _watch(run_dir: Path, job: _Job, prompts: _PromptFile, *, is_once: bool, interval: float) -> None:
    """Checkpoint after checkpoint; bounds are checked at the last one."""
    from stepdistill.evaluation.gates import check_bounds
    from stepdistill.training.watch import WatchOptions, read_lines, watch_run

    def report(step: int, results: RunResults) -> None:
        if job.crew.is_first:
            values = ", ".join(f"{name} {number.value:.5g}" for name, number in results.metrics.items())
            console.print(f"step {step}: {values}", highlight=False, soft_wrap=True)

    watched = WatchOptions(
        run_dir, job.protocol, prompts.load(job.protocol), job.metrics, job.options, interval, is_once
    )
    lines = watch_run(watched, report)
    if job.crew.is_first:
        console.print(f"done: {lines}", highlight=False, soft_wrap=True)
        check_bounds(job.checks, read_lines(lines.parent)[-1]["metrics"])


def _drawn(source: Any, crew: Crew) -> Drawn:
    from stepdistill.evaluation.benchmark import Drawn
    from stepdistill.evaluation.sources import open_source

    generation, record = open_source(source, crew.device)
    return Drawn(record, generation)


def _found(
    images: Path | None, protocol: Benchmark, prompts: _PromptFile, name: str | None, kind: str
) -> tuple[Drawn, PromptSet | None]:
    """A folder of pictures, and its prompts where they are named or where the folder's manifest does not say them."""
    from stepdistill.evaluation.benchmark import Drawn
    from stepdistill.evaluation.document import ModelRecord
    from stepdistill.evaluation.picture_store import MANIFEST

    if images is None or not images.is_dir():
        raise UserError(f"--images: there is no folder '{images}'")
    drawn = Drawn(ModelRecord(name=name or images.name, source=str(images), kind=kind), folder=images)
    if prompts.source is None and ((images / MANIFEST).is_file() or protocol.prompts is None):
        return drawn, None
    return drawn, prompts.load(protocol)


def _score(drawn: Drawn, prompts: PromptSet | None, job: _Job, *, as_json: bool) -> None:
    from stepdistill.evaluation.benchmark import run_benchmark
    from stepdistill.evaluation.gates import check_bounds
    from stepdistill.evaluation.pages.comparison import comparison_table

    results = run_benchmark(drawn, job.protocol, prompts, job.metrics, job.options, job.crew)
    if not job.crew.is_first:
        return
    if as_json:
        sys.stdout.write((job.options.out / "results.json").read_text(encoding="utf-8"))
    else:
        sys.stdout.write(comparison_table([results]))
    costs = {
        key: value for key, value in results.cost.model_dump().items() if isinstance(value, (int, float))
    }
    check_bounds(job.checks, costs | {key: number.value for key, number in results.metrics.items()})


def _named_value(text: str) -> tuple[str, Any]:
    """`height=512` to a name and a value; values are YAML, so lists work too."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise UserError(f"--argument '{text}' is not NAME=VALUE")
    return name, yaml.safe_load(value)


def _progress(stage: str, done: int, total: int) -> None:
    if done == total or done % 10 == 0:
        sys.stderr.write(f"{stage}: block {done} of {total}\n")
