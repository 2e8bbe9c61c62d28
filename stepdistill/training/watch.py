"""Scores every checkpoint of a run as it appears: folders of pictures and numbers, a line each, and curves over the training step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stepdistill.denoisers.pipeline import PipelineDenoiser
from stepdistill.distillers.base import Distiller
from stepdistill.errors import UserError
from stepdistill.evaluation.benchmark import BenchmarkOptions, Drawn, run_benchmark
from stepdistill.evaluation.document import RunResults
from stepdistill.evaluation.pages.plots import training_figure
from stepdistill.evaluation.picture_store import write_text
from stepdistill.evaluation.processes import Crew
from stepdistill.evaluation.prompt_sets import PromptSet
from stepdistill.evaluation.protocols import Benchmark
from stepdistill.evaluation.sources import Source, describe
from stepdistill.training.checkpoint import load_checkpoint
from stepdistill.training.recipe import Recipe, load_recipe
from stepdistill.training.run import build_distiller, load_student

FOLDER, LINES, CURVES = "watch", "metrics.jsonl", "curves.svg"


@dataclass(frozen=True)
class WatchOptions:
    """What is watched, and how often.

    Attributes:
        run_dir: a folder that `stepdistill distill` is writing, or has written.
        protocol: what each checkpoint is measured under.
        prompts: of the protocol.
        metrics: names; None for the protocol's usual ones.
        benchmark: how; its `out` is replaced by `run_dir/watch/step_N`.
        interval: seconds between looks at the folder.
        is_once: score what is there and stop.
    """

    run_dir: Path
    protocol: Benchmark
    prompts: PromptSet
    metrics: Sequence[str] | None
    benchmark: BenchmarkOptions
    interval: float = 60.0
    is_once: bool = False


def watch_run(options: WatchOptions, report: Callable[[int, RunResults], None]) -> Path:
    """Score new checkpoints until the run's last one is scored; returns the file of lines.

    A checkpoint that is deleted before its turn is left out. The same command again goes on.

    Raises:
        UserError: the folder holds no run, or its checkpoints cannot be scored.
    """
    folder = options.run_dir / FOLDER
    recipe = load_recipe(options.run_dir / "recipe.yaml")
    crew, distiller = Crew.join(), None
    for step, checkpoint in new_checkpoints(options, recipe.train.max_train_steps):
        distiller = distiller or build_distiller(recipe)
        if not load_if_there(distiller, recipe, checkpoint):
            continue
        drawn = student_of(distiller, recipe, step)
        out = replace(options.benchmark, out=folder / f"step_{step}")
        results = run_benchmark(drawn, options.protocol, options.prompts, options.metrics, out, crew)
        if crew.is_first:
            append(folder, step, results)
        report(step, results)
        crew.wait()
    if options.is_once and not read_lines(folder):
        raise UserError(f"'{options.run_dir}' has no checkpoint yet; run without --once to wait for one")
    return folder / LINES


def new_checkpoints(options: WatchOptions, last: int) -> Iterator[tuple[int, Path]]:
    """Checkpoints that have no line yet, oldest first, as they come."""
    tried: set[int] = set()
    while True:
        tried |= {int(line["step"]) for line in read_lines(options.run_dir / FOLDER)}
        found = {
            int(path.name.removeprefix("step_")): path
            for path in (options.run_dir / "checkpoints").glob("step_*")
        }
        new = sorted(set(found) - tried)
        for step in new:
            tried.add(step)
            yield step, found[step]
        if options.is_once or last in tried:
            return
        if not new:
            time.sleep(options.interval)


def load_if_there(distiller: Distiller, recipe: Recipe, checkpoint: Path) -> bool:
    """Put a checkpoint's student into the distiller; False where the run has deleted the checkpoint meanwhile."""
    try:
        tensors, _ = load_checkpoint(checkpoint)
    except UserError:
        if checkpoint.is_dir():
            raise
        return False
    load_student(distiller, recipe, tensors)
    return True


def student_of(distiller: Distiller, recipe: Recipe, step: int) -> Drawn:
    """The student as a stock pipeline with its own call.

    Raises:
        UserError: it is no diffusers pipeline.
    """
    student = distiller.student
    if not isinstance(student, PipelineDenoiser):
        raise UserError("only students of diffusers pipelines can be watched")
    call = student.call_arguments(distiller.sampler())
    source = Source(recipe.model.pretrained_model_name_or_path, name=f"{recipe.method['name']}, step {step}")
    pipeline = distiller.pipeline()
    pipeline.to(Crew.join().device)
    generation, record = describe(pipeline, call, source)
    return Drawn(record, generation)


def append(folder: Path, step: int, results: RunResults) -> None:
    """Add a line, and draw the curves anew."""
    values = {name: number.value for name, number in results.metrics.items()}
    hashes = {name: number.protocol for name, number in results.metrics.items()}
    errors = {name: number.standard_error for name, number in results.metrics.items()}
    line = {"step": step, "metrics": values, "standard_errors": errors, "protocols": hashes}
    lines = sorted([*read_lines(folder), line], key=lambda each: each["step"])
    write_text(folder / LINES, "".join(json.dumps(each) + "\n" for each in lines))
    write_text(folder / CURVES, training_figure(lines))


def read_lines(folder: Path) -> list[dict]:
    """The lines so far."""
    path = folder / LINES
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]
