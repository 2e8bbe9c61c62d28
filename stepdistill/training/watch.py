"""Evaluate every checkpoint of a run as it appears: a folder and a line per checkpoint, and curves over training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from stepdistill.distillers.base import Distiller
from stepdistill.errors import UserError
from stepdistill.evaluation.application import evaluate
from stepdistill.evaluation.document import RunResults
from stepdistill.evaluation.pages.plots import training_figure
from stepdistill.evaluation.picture_store import write_text
from stepdistill.evaluation.rows import RunEvaluation
from stepdistill.evaluation.sources import Drawn, Source, describe
from stepdistill.training.checkpoint import load_checkpoint
from stepdistill.training.evaluation import pipeline_student
from stepdistill.training.recipe import Recipe
from stepdistill.training.run import build_distiller, load_student

FOLDER, LINES, CURVES = "watch", "metrics.jsonl", "curves.svg"


def watch_run(
    recipe: Recipe,
    evaluation: RunEvaluation,
    report: Callable[[int, RunResults], None],
    *,
    interval: float = 60.0,
    is_once: bool = False,
) -> Path:
    """Evaluate new checkpoints up to the run's last one; returns the file of lines.

    Checkpoints the run deletes first are skipped. Another call resumes.

    Args:
        recipe: of the run.
        evaluation: how; its `out` is the run folder.
        report: called with each step and its results.
        interval: seconds between polls.
        is_once: evaluate the existing checkpoints and stop.

    Raises:
        UserError: there is no checkpoint, or it cannot be evaluated.
    """
    run_dir, group, distiller = evaluation.options.out, evaluation.group, None
    folder = run_dir / FOLDER
    for step, checkpoint in new_checkpoints(run_dir, None if is_once else recipe.train.max_train_steps, interval):
        distiller = distiller or build_distiller(recipe)
        if not load_if_there(distiller, recipe, checkpoint):
            continue
        drawn = student_at(distiller, recipe, step, group.device)
        out = replace(evaluation.options, out=folder / f"step_{step}")
        results = evaluate(drawn, evaluation.protocol, evaluation.prompts, evaluation.metrics, out, group)
        if group.is_main:
            append(folder, step, results)
        report(step, results)
        group.barrier()
    if is_once and not read_lines(folder):
        raise UserError(f"'{run_dir}' has no checkpoint yet; drop --once to wait for one")
    return folder / LINES


def new_checkpoints(run_dir: Path, last: int | None, interval: float) -> Iterator[tuple[int, Path]]:
    """Checkpoints without a line, oldest first, as they appear, up to step `last`; None: those that exist now."""
    tried: set[int] = set()
    while True:
        tried |= {int(line["step"]) for line in read_lines(run_dir / FOLDER)}
        found = {int(path.name.removeprefix("step_")): path for path in (run_dir / "checkpoints").glob("step_*")}
        new = sorted(set(found) - tried)
        for step in new:
            tried.add(step)
            yield step, found[step]
        if last is None or last in tried:
            return
        if not new:
            time.sleep(interval)


def load_if_there(distiller: Distiller, recipe: Recipe, checkpoint: Path) -> bool:
    """Load a checkpoint's student into the distiller; False if the run has deleted the checkpoint."""
    try:
        tensors, _ = load_checkpoint(checkpoint)
    except UserError:
        if checkpoint.is_dir():
            raise
        return False
    load_student(distiller, recipe, tensors)
    return True


def student_at(distiller: Distiller, recipe: Recipe, step: int, device: torch.device) -> Drawn:
    """The student as a stock pipeline with its own call.

    Raises:
        UserError: it is not a diffusers pipeline.
    """
    student, pipeline = pipeline_student(distiller), distiller.pipeline()
    pipeline.to(device)
    source = Source(recipe.model.pretrained_model_name_or_path, name=f"{recipe.method['name']}, step {step}")
    return describe(pipeline, student.call_arguments(distiller.sampler()), source)


def append(folder: Path, step: int, results: RunResults) -> None:
    """Add a line and redraw the curves."""
    values = {name: number.value for name, number in results.metrics.items()}
    hashes = {name: number.protocol for name, number in results.metrics.items()}
    errors = {name: number.standard_error for name, number in results.metrics.items()}
    line = {"step": step, "metrics": values, "standard_errors": errors, "protocols": hashes}
    lines = sorted([*read_lines(folder), line], key=lambda each: each["step"])
    write_text(folder / LINES, "".join(json.dumps(each) + "\n" for each in lines))
    write_text(folder / CURVES, training_figure(lines))


def read_lines(folder: Path) -> list[dict]:
    """The lines written so far."""
    path = folder / LINES
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]
