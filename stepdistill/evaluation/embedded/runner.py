"""From generations to rows: draw the pictures, measure them, compare them with real ones and with the teacher's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from stepdistill.evaluation.embedded.emoji import load_evaluator
from stepdistill.evaluation.embedded.evaluator import Evaluator
from stepdistill.evaluation.embedded.measurements import Measurements, Results, Row
from stepdistill.evaluation.embedded.store import MeasurementStore
from stepdistill.evaluation.generation import (
    Generation,
    batches,
    counted_evaluations,
    generate,
    latency,
    prompt_seed,
)
from stepdistill.evaluation.protocols import EMOJI, Protocol
from stepdistill.metrics.distances import frechet_distance_of_features

Progress = Callable[[str, int, int], None]
"""Called with a generation's name, the pictures made and the pictures wanted."""


@dataclass(frozen=True)
class RunOptions:
    """How pictures are made; none of it changes what is measured but `dtype`, which each row states."""

    batch_size: int = 100
    dtype: torch.dtype = torch.float32
    """Autocast type. float32 is the reference; bfloat16 is faster where the processor has it."""
    with_coverage: bool = True
    latency_repeats: int = 3
    """Timed calls at batch 1; 0 leaves the latency out."""
    store: MeasurementStore | None = None
    """Where cached generations are kept; the default store if None."""
    progress: Progress | None = None


def evaluate(
    generations: Mapping[str, Generation],
    protocol: Protocol = EMOJI,
    *,
    evaluator: Evaluator | None = None,
    options: RunOptions | None = None,
) -> Results:
    """Measure each generation under one protocol, on the same captions and the same noise.

    Distances to the teacher are to the pictures of the first generation whose `model` is "teacher" with the most steps.
    A floor row, real pictures against real pictures, comes last.
    """
    evaluator = evaluator or load_evaluator(protocol)
    options = options or RunOptions()
    draws = Draws.main(evaluator)
    measured = {
        name: measure_generation(name, each, draws, evaluator, options) for name, each in generations.items()
    }
    teacher = teacher_name(generations)
    rows = [
        _row(
            name,
            each,
            measured[name],
            None if teacher in (None, name) else measured[teacher],
            evaluator,
            options,
        )
        for name, each in generations.items()
    ]
    if evaluator.floor is not None:
        rows.append(evaluator.floor_row())
    pictures = {name: each.pictures for name, each in measured.items()}
    num_pictures = max((len(each) for each in pictures.values()), default=0)
    return Results(evaluator.protocol.to_json(), rows, pictures, evaluator.prompts.captions[:num_pictures])


def teacher_name(generations: Mapping[str, Generation]) -> str | None:
    """The generation that stands for the teacher: the one with the most steps."""
    teachers = [name for name, each in generations.items() if each.model == "teacher"]
    return max(teachers, key=lambda name: generations[name].steps or 0, default=None)


@dataclass(frozen=True)
class Draws:
    """What is drawn of a generation: captions and seeds."""

    captions: list[str]
    seeds: list[int]
    part: str
    """Tells the sets of one protocol apart in the store."""

    @classmethod
    def main(cls, evaluator: Evaluator) -> Draws:
        """One picture per caption."""
        captions = evaluator.prompts.captions
        seeds = [prompt_seed(evaluator.protocol.seed, index) for index in range(len(captions))]
        return cls(captions, seeds, "main")

    @classmethod
    def variety(cls, evaluator: Evaluator) -> Draws:
        """`coverage_seeds` pictures for each of the coverage captions."""
        prompts, numbers = evaluator.coverage_prompts()
        repeats = evaluator.protocol.coverage_seeds
        pairs = [(number, sample) for number in numbers for sample in range(1, repeats + 1)]
        seeds = [prompt_seed(evaluator.protocol.seed, *pair) for pair in pairs]
        return cls(prompts.repeated(repeats).captions, seeds, "variety")


def measure_generation(
    name: str, generation: Generation, draws: Draws, evaluator: Evaluator, options: RunOptions
) -> Measurements:
    """Draw and measure, or find in the store what an earlier run measured."""
    if not generation.is_cached:
        return _draw(name, generation, draws, evaluator, options)
    store = options.store or MeasurementStore.default()
    start = "\n".join(draws.captions[:8])
    tag = f"{evaluator.protocol.hash}/{evaluator.features.name}/{draws.part}/{start}"
    key = generation.cache_key(options.dtype, tag)
    found = store.find(key, len(draws.captions))
    if found is None:
        found = _draw(name, generation, draws, evaluator, options)
        store.add(key, found)
    return found


def _draw(
    name: str, generation: Generation, draws: Draws, evaluator: Evaluator, options: RunOptions
) -> Measurements:
    parts, seconds, total = [], 0.0, len(draws.captions)
    with counted_evaluations(generation.pipeline) as rows:
        for batch in batches(total, options.batch_size):
            start = time.perf_counter()
            images = generate(generation, draws.captions[batch], draws.seeds[batch], dtype=options.dtype)
            seconds += time.perf_counter() - start
            parts.append(evaluator.measure(images, draws.captions[batch]))
            if options.progress is not None:
                options.progress(name, batch.stop, total)
    return replace(Measurements.cat(parts), nfe=sum(rows) / total if rows else None, seconds=seconds / total)


def _row(
    name: str,
    generation: Generation,
    measured: Measurements,
    teacher: Measurements | None,
    evaluator: Evaluator,
    options: RunOptions,
) -> Row:
    coverage = None
    if options.with_coverage and evaluator.coverage_prompts()[1]:
        coverage = evaluator.coverage(
            measure_generation(name, generation, Draws.variety(evaluator), evaluator, options)
        )
    to_teacher = (
        None if teacher is None else frechet_distance_of_features(measured.features, teacher.features)
    )
    first = evaluator.prompts.captions[0]
    timed = options.latency_repeats > 0
    pipe = generation.pipeline
    return Row(
        model=generation.model,
        name=name,
        method=generation.method,
        steps=generation.steps,
        nfe=measured.nfe,
        frechet_distance_to_teacher=to_teacher,
        coverage=coverage,
        guidance_scale=generation.guidance_scale,
        latency_s=latency(generation, first, dtype=options.dtype, repeats=options.latency_repeats)
        if timed
        else None,
        n=len(measured),
        sampler=generation.sampler_name,
        images_per_s=None if measured.seconds is None else 1 / measured.seconds,
        dtype=str(options.dtype).removeprefix("torch."),
        device=None if pipe is None else str(pipe.device),
        sampler_search=generation.search,
        **evaluator.scores(measured),
    )
