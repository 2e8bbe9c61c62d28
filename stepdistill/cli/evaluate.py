"""`stepdistill evaluate`: parse the options, evaluate, and print."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from stepdistill.cli import options
from stepdistill.cli.tables import console, print_rows
from stepdistill.errors import UserError

if TYPE_CHECKING:
    from stepdistill.evaluation.application import EvaluationOptions
    from stepdistill.evaluation.document import RunResults
    from stepdistill.evaluation.gates import Bound
    from stepdistill.evaluation.processes import ProcessGroup
    from stepdistill.evaluation.prompt_sets import PromptSet
    from stepdistill.evaluation.protocols import Protocol
    from stepdistill.evaluation.rows import RunEvaluation
    from stepdistill.evaluation.sources import Drawn
    from stepdistill.evaluation.timing import CostRules
    from stepdistill.training.recipe import Recipe


def evaluate(
    run: options.Run = None,
    n: options.N = None,
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
    protocol: options.Protocol = None,
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
    batch_size: options.BatchSize = None,
    file_format: options.FileFormat = "png",
    latency_repeats: options.LatencyRepeats = None,
) -> None:
    """Evaluate a run, any diffusers pipeline, or a folder of pictures.

    [dim]stepdistill evaluate runs/mine[/dim]

    [dim]stepdistill evaluate --pipeline assets/emoji-sd --steps 4 --guidance 2 --limit 500 --out runs/emoji-4[/dim]
    """
    sources = {"RUN": run, "--pipeline": pipeline, "--images": images, "--watch": watch}
    asked = _Asked(protocol, prompts, column, n if limit is None else limit, samples, seed)
    job = _job(asked, metrics, _checked(bounds, sources), as_json=as_json)
    how = replace(job.options, batch_size=batch_size, file_format=file_format, reference=reference, teacher=teacher)
    job = replace(job, options=replace(how, out=out or Path("."), cost=_cost(latency_repeats, of_run=run is not None)))
    if run is not None:
        return _evaluate_run(run, job, which)
    if watch is not None:
        return _watch(watch, job, is_once=once, interval=interval)
    if out is None:
        raise UserError("--out FOLDER is required: pictures, scores and results.json are written there")
    if pipeline is None:
        return _evaluate_images(images, job, name, kind)
    arguments = dict(_named_value(text) for text in argument or ())
    return _evaluate_pipeline(job, pipeline, lora, steps, guidance, arguments, dtype, name, kind)


@dataclass(frozen=True)
class _Asked:
    """The protocol and prompts given on the command line."""

    protocol: str | None
    prompts: str | None
    column: str | None
    limit: int | None
    samples: int
    seed: int | None

    def protocol_for(self, default: str | None) -> Protocol:
        """The protocol named, or else the default.

        Raises:
            UserError: there is neither.
        """
        from stepdistill.evaluation.protocols import PROTOCOLS, protocol_named

        name = self.protocol or default
        if name is None:
            raise UserError(
                f"--protocol NAME is required, as only the embedded teachers have a default; known: {', '.join(PROTOCOLS)}"
            )
        chosen = protocol_named(name)
        return replace(chosen, samples_per_prompt=self.samples, seed=chosen.seed if self.seed is None else self.seed)

    def load(self, protocol: Protocol, default: str | None = None) -> PromptSet:
        """The prompts of the protocol, from the file given or else the default."""
        from stepdistill.evaluation.prompt_sets import load_prompt_set

        return load_prompt_set(protocol, self.prompts or default, column=self.column, limit=self.limit)


@dataclass(frozen=True)
class _Job:
    """What is measured and how, whatever draws the pictures."""

    asked: _Asked
    metrics: list[str] | None
    checks: Sequence[Bound]
    options: EvaluationOptions
    group: ProcessGroup
    as_json: bool


def _checked(bounds: list[str] | None, sources: dict[str, Any]) -> list[Bound]:
    """The bounds, once exactly one source is given."""
    from stepdistill.evaluation.gates import Bound

    given = [word for word, value in sources.items() if value]
    if len(given) != 1:
        raise UserError(
            f"evaluate takes one of RUN, --pipeline, --images and --watch, not {' and '.join(given) or 'none'}"
        )
    return [Bound.parse(text) for text in bounds or ()]


def _job(asked: _Asked, metrics: str | None, checks: Sequence[Bound], *, as_json: bool) -> _Job:
    from stepdistill.evaluation.application import EvaluationOptions
    from stepdistill.evaluation.processes import ProcessGroup

    group = ProcessGroup.join()
    options = EvaluationOptions(Path("."), progress=_progress if group.is_main and not as_json else None)
    return _Job(asked, metrics.split(",") if metrics else None, checks, options, group, as_json)


def _cost(repeats: int | None, *, of_run: bool) -> CostRules:
    from stepdistill.evaluation.timing import RUN_COST, CostRules

    rules = RUN_COST if of_run else CostRules()
    return rules if repeats is None else replace(rules, repeats=repeats)


def _evaluate_run(run: Path, job: _Job, which: Literal["last", "best"]) -> None:
    """Students, teacher and floor of a run, under the protocol of its recipe."""
    from stepdistill.evaluation.pages.report import write_report
    from stepdistill.training.evaluation import evaluate_run, run_metrics
    from stepdistill.training.run import restore

    distiller, recipe = restore(run, which=which)
    evaluation = _run_evaluation(run, recipe, job)
    if job.metrics is None:
        evaluation = replace(evaluation, metrics=run_metrics(recipe, evaluation.protocol))
    results = evaluate_run(distiller, recipe, evaluation)
    if not job.group.is_main:
        return
    write_report(run)
    if job.as_json:
        sys.stdout.write(json.dumps(results, indent=1) + "\n")
    else:
        print_rows(results["rows"])
    _check(job, next(row for row in results["rows"] if row["model"] == "student"))


def _watch(run: Path, job: _Job, *, is_once: bool, interval: float) -> None:
    """Evaluate checkpoint after checkpoint; bounds apply to the last one."""
    from stepdistill.training.recipe import load_recipe
    from stepdistill.training.watch import read_lines, watch_run

    def report(step: int, results: RunResults) -> None:
        if job.group.is_main:
            values = ", ".join(f"{name} {number.value:.5g}" for name, number in results.metrics.items())
            console.print(f"step {step}: {values}", highlight=False, soft_wrap=True)

    recipe = load_recipe(run / "recipe.yaml")
    evaluation = _run_evaluation(run, recipe, job)
    lines = watch_run(recipe, evaluation, report, interval=interval, is_once=is_once)
    if job.group.is_main:
        console.print(f"done: {lines}", highlight=False, soft_wrap=True)
        _check(job, read_lines(lines.parent)[-1]["metrics"])


def _run_evaluation(run: Path, recipe: Recipe, job: _Job) -> RunEvaluation:
    """The evaluation of a run: the options given, or else its recipe's."""
    from stepdistill.evaluation.rows import RunEvaluation
    from stepdistill.training.evaluation import protocol_of

    validation, default = recipe.validation, protocol_of(recipe)
    protocol = job.asked.protocol_for(None if default is None else default.name)
    prompts = job.asked.load(protocol, validation.protocol_prompts)
    options = replace(job.options, out=run, reference=job.options.reference or validation.reference)
    metrics = job.metrics or list(validation.metrics) or None
    return RunEvaluation(protocol, prompts, metrics, options, job.group)


def _evaluate_pipeline(job: _Job, pipeline: str, *source: Any) -> None:
    from stepdistill.evaluation.sources import Source, default_protocol, open_source

    protocol = job.asked.protocol_for(default_protocol(pipeline))
    prompts = job.asked.load(protocol)
    _score(open_source(Source(pipeline, *source), job.group.device), protocol, prompts, job)


def _evaluate_images(images: Path | None, job: _Job, name: str | None, kind: str) -> None:
    """A folder of pictures; its prompts are loaded unless its manifest lists them or none are known."""
    from stepdistill.evaluation.document import ModelRecord
    from stepdistill.evaluation.picture_store import MANIFEST
    from stepdistill.evaluation.sources import Drawn

    if images is None or not images.is_dir():
        raise UserError(f"--images: there is no folder '{images}'")
    protocol = job.asked.protocol_for(None)
    drawn = Drawn(ModelRecord(name=name or images.name, source=str(images), kind=kind), folder=images)
    is_known = (images / MANIFEST).is_file() or protocol.prompts is None
    prompts = None if job.asked.prompts is None and is_known else job.asked.load(protocol)
    _score(drawn, protocol, prompts, job)


def _score(drawn: Drawn, protocol: Protocol, prompts: PromptSet | None, job: _Job) -> None:
    from stepdistill.evaluation.application import evaluate as run_protocol
    from stepdistill.evaluation.pages.comparison import comparison_table

    results = run_protocol(drawn, protocol, prompts, job.metrics, job.options, job.group)
    if not job.group.is_main:
        return
    if job.as_json:
        sys.stdout.write((job.options.out / "results.json").read_text(encoding="utf-8"))
    else:
        sys.stdout.write(comparison_table([results]))
    _check(job, results.cost.model_dump() | {key: number.value for key, number in results.metrics.items()})


def _check(job: _Job, values: Mapping[str, Any]) -> None:
    from stepdistill.evaluation.gates import check_bounds

    check_bounds(job.checks, {key: value for key, value in values.items() if isinstance(value, (int, float))})


def _named_value(text: str) -> tuple[str, Any]:
    """Parse `height=512`; values are YAML, so lists work too."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise UserError(f"--argument '{text}' is not NAME=VALUE")
    return name, yaml.safe_load(value)


def _progress(stage: str, done: int, total: int) -> None:
    if done == total or done % 10 == 0:
        sys.stderr.write(f"{stage}: block {done} of {total}\n")
