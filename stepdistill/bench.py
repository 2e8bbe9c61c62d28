"""The method benchmark: train recipes at one budget and seed, and write a leaderboard."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from threading import Event
from typing import Any

from rich.console import Console

from stepdistill.errors import RunInterruptedError, UserError
from stepdistill.evaluation.document import RESULTS_NAME, ResultRow
from stepdistill.evaluation.pages.leaderboard import Entry, write_leaderboard
from stepdistill.training.interrupt import termination_passed_on
from stepdistill.training.recipe import Recipe, load_recipe

PACE_STEPS = 20
"""Iterations of the trial run that measures a recipe's pace."""
PACE_NAME = "pace.json"
OUTPUT_NAME = "output.log"
"""Output of a run when several run at once."""
STOPPED = (130, -signal.SIGINT, -signal.SIGTERM)
"""Exit codes of an interrupted run: 130 while it trains, the signal's while it loads or evaluates."""
console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class BenchBudget:
    """The budget of every recipe.

    Attributes:
        minutes: of training, evaluation not included.
        num_images: pictures per row of the leaderboard.
        seed: of all runs.
        iterations: of training, in place of minutes.
        num_samples: upper limit of prompts, images and teacher pairs prepared for training.
        own_steps_only: evaluate each student at `method.num_steps` alone, not at `validation.evaluated_steps`.
        with_coverage: measure coverage, with 512 more pictures per row.
        jobs: recipes that run at once, sharing the processor cores.
    """

    minutes: float = 20.0
    num_images: int = 2000
    seed: int = 0
    iterations: int | None = None
    num_samples: int | None = None
    own_steps_only: bool = False
    with_coverage: bool = True
    jobs: int = 1

    def __str__(self) -> str:
        trained = f"{self.minutes:g} minutes" if self.iterations is None else f"{self.iterations} iterations"
        return f"{trained} of training, seed {self.seed}" + (f", {self.jobs} at once" if self.jobs > 1 else "")


QUICK = BenchBudget(num_images=64, iterations=8, num_samples=256, own_steps_only=True, with_coverage=False, jobs=2)
"""Checks that everything runs; too small to judge a method."""


def budget_with(base: BenchBudget, **given: float | None) -> BenchBudget:
    """The budget with the given values in place of its own; None keeps its own.

    >>> str(budget_with(QUICK, minutes=None, seed=3)), str(budget_with(QUICK, minutes=2.0))
    ('8 iterations of training, seed 3, 2 at once', '2 minutes of training, seed 0, 2 at once')
    """
    if given.get("minutes") is not None:
        base = replace(base, iterations=None)
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def run_bench(recipes: Sequence[str], out: Path, budget: BenchBudget) -> list[str]:
    """Run the recipes without results, then write the leaderboard; returns the names of failed runs.

    Each recipe runs in its own process, which gives it a peak memory of its own. Another call resumes, in the middle of a run
    too. The recipes share one cache of embeddings and latents.

    Raises:
        UserError: a recipe cannot be read, or two have the same name.
        RunInterruptedError: a signal arrived; the leaderboard shows the runs finished by then.
    """
    resolved = {Path(recipe).stem: load_recipe(recipe) for recipe in recipes}
    if len(resolved) < len(recipes):
        raise UserError("two recipes have the same file name, which names the run; rename one")
    for name in resolved:
        read_pace(out / name, budget)  # reject runs of another budget before anything starts
    try:
        succeeded = run_all(resolved, recipes, out, budget)
    except RunInterruptedError:
        finished = {name: recipe for name, recipe in resolved.items() if (out / name / RESULTS_NAME).exists()}
        if finished:
            write_entries(finished, out, title=f"{budget}, interrupted after {len(finished)} of {len(resolved)}")
        raise
    failed = [name for name, went_well in zip(resolved, succeeded, strict=True) if not went_well]
    write_entries({n: recipe for n, recipe in resolved.items() if n not in failed}, out, title=str(budget))
    return failed


def write_entries(finished: Mapping[str, Recipe], out: Path, *, title: str) -> None:
    """Write the leaderboard of these runs."""
    entries = [read_entry(name, recipe, out / name) for name, recipe in finished.items()]
    write_leaderboard(entries, out, title=title)


def run_all(resolved: Mapping[str, Recipe], recipes: Sequence[str], out: Path, budget: BenchBudget) -> list[bool]:
    """Run the recipes, `budget.jobs` at a time; returns whether each succeeded.

    Raises:
        RunInterruptedError: a signal arrived; the runs in progress have written their checkpoints.
    """

    stopped = Event()

    def run(name: str, recipe: str) -> bool:
        if stopped.is_set():
            return False
        try:
            return run_one(recipe, resolved[name], out / name, budget)
        except BaseException:
            stopped.set()
            raise

    # Threads even for one job: a signal reaches the runs themselves, and this process waits for them.
    pool = ThreadPoolExecutor(budget.jobs)
    try:
        with termination_passed_on():
            return list(pool.map(run, resolved, recipes))
    except KeyboardInterrupt as interrupt:
        raise RunInterruptedError(f"{out} was interrupted; the same command resumes there") from interrupt
    finally:
        pool.shutdown(cancel_futures=True)


def run_one(recipe: str, resolved: Recipe, run_dir: Path, budget: BenchBudget) -> bool:
    """Run a recipe within the budget unless it has results; returns whether it succeeded."""
    if (run_dir / RESULTS_NAME).exists():
        return True
    shared = shared_overrides(resolved, budget, run_dir.parent)
    steps = steps_within(recipe, budget, run_dir, shared)
    if steps is None:
        return False
    return start_run(recipe, run_dir, [*final_overrides(budget, steps), *shared], jobs=budget.jobs)


def steps_within(recipe: str, budget: BenchBudget, run_dir: Path, shared: Sequence[str]) -> int | None:
    """Iterations within the budget, from a short trial run recorded in `pace.json`; None if that run fails."""
    file = run_dir / PACE_NAME
    if not file.exists() and budget.iterations is not None:
        run_dir.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(budget)) + "\n")
    if not file.exists():
        trial = run_dir / "pace"
        overrides = [
            f"train.max_train_steps={PACE_STEPS}", "train.resume_from_checkpoint=null", "validation.num_evaluated=0",
            "validation.num_scored=0", "validation.prompts=[]", f"validation.every={PACE_STEPS + 1}",
        ]  # fmt: skip
        if not start_run(recipe, trial, [*overrides, *shared], jobs=budget.jobs):
            return None
        cost = json.loads((trial / "cost.json").read_text())
        seconds = cost["train_seconds"] / PACE_STEPS
        file.write_text(json.dumps({"seconds_per_step": seconds, **asdict(budget)}) + "\n")
    pace = read_pace(run_dir, budget)
    if budget.iterations is not None:
        return budget.iterations
    return max(round(60 * budget.minutes / pace["seconds_per_step"]), 1)


def read_pace(run_dir: Path, budget: BenchBudget) -> dict[str, Any]:
    """Read a recipe's pace; empty if it has not run yet.

    Raises:
        UserError: the run was started with another budget.
    """
    file = run_dir / PACE_NAME
    if not file.exists():
        return {}
    pace = json.loads(file.read_text())
    begun = BenchBudget(*(pace.get(field.name, field.default) for field in fields(BenchBudget)))
    if begun != budget:
        raise UserError(
            f"{run_dir} was started with {begun} and {begun.num_images} images; give the same --minutes, --quick, --n, --seed "
            "and --jobs, or another --out"
        )
    return pace


def shared_overrides(recipe: Recipe, budget: BenchBudget, out: Path) -> list[str]:
    """Overrides of the trial run and the run itself: one cache for all recipes, and the budget's limit on data."""
    overrides = [] if recipe.data.cache_dir else [f"data.cache_dir={out / 'cache'}"]
    if budget.num_samples is None:
        return overrides
    pairs = min(recipe.data.pairs.num, budget.num_samples)
    bounds = {"num_prompts": budget.num_samples, "num_images": budget.num_samples, "pairs.num": pairs}
    return [*overrides, *(f"data.{key}={value}" for key, value in bounds.items()), "validation.num_scored=0"]


def final_overrides(budget: BenchBudget, steps: int) -> list[str]:
    """Overrides of every recipe."""
    fewer = ["validation.evaluated_steps=[]"] if budget.own_steps_only else []
    if not budget.with_coverage:
        fewer.append("validation.with_coverage=false")
    return [
        *fewer, f"train.max_train_steps={steps}", f"train.seed={budget.seed}", f"train.checkpointing_steps={-(-steps // 4)}",
        f"validation.every={-(-steps // 2)}", f"validation.num_evaluated={budget.num_images}",
    ]  # fmt: skip


def start_run(recipe: str, run_dir: Path, overrides: Sequence[str], *, jobs: int) -> bool:
    """Run `stepdistill distill` as a process; returns whether it succeeded.

    One of several jobs gets its share of the cores, and prints to `output.log`.

    Raises:
        RunInterruptedError: a signal stopped the run; its checkpoint is written.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "stepdistill", "distill", recipe, f"train.output_dir={run_dir}", *overrides]
    if jobs == 1:
        code = subprocess.run(command, check=False).returncode
    else:
        code = run_beside(command, run_dir / OUTPUT_NAME, num_threads=max((os.cpu_count() or 1) // jobs, 1))
    if code in STOPPED:
        raise RunInterruptedError(f"{run_dir} was interrupted; the same command resumes there")
    return code == 0


def run_beside(command: Sequence[str], output: Path, *, num_threads: int) -> int:
    """Run a command with its output in a file; returns its exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    begun = time.monotonic()
    console.print(f"{output.parent}: started")
    with output.open("w", encoding="utf-8") as stream:
        code = subprocess.run(
            command, check=False, env=environment, stdout=stream, stderr=subprocess.STDOUT
        ).returncode
    took = f"after {time.monotonic() - begun:.0f} s"
    endings = {0: f"done {took}", **dict.fromkeys(STOPPED, f"interrupted {took}")}
    console.print(f"{output.parent}: {endings.get(code, f'failed {took}, see {output}')}")
    return code


def read_entry(name: str, recipe: Recipe, run_dir: Path) -> Entry:
    """Read a finished run."""
    rows = [ResultRow.read(record) for record in _json(run_dir / RESULTS_NAME)["rows"]]
    return Entry(
        name=name,
        method=recipe.method["name"],
        teacher=recipe.model.pretrained_model_name_or_path,
        rows=tuple(rows),
        cost=_json(run_dir / "cost.json"),
        run_dir=str(run_dir),
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
