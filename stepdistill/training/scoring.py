"""The embedded problem's measures, while a run goes on and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stepdistill.data.emoji import EmojiWorld
from stepdistill.denoisers.pipeline import PipelineDenoiser
from stepdistill.distillers.base import Distiller
from stepdistill.errors import UserError
from stepdistill.evaluation.embedded.emoji import answers_of, load_evaluator
from stepdistill.evaluation.embedded.evaluator import measured_in_batches
from stepdistill.evaluation.embedded.measurements import caption_scores
from stepdistill.evaluation.embedded.runner import RunOptions, evaluate
from stepdistill.evaluation.embedded.samplers import teacher_comparison
from stepdistill.evaluation.generation import Generation
from stepdistill.evaluation.pages.tables import write_results
from stepdistill.evaluation.protocols import EMOJI, Protocol
from stepdistill.metrics.distances import frechet_distance_of_features
from stepdistill.training.device import chosen_precision, training_device
from stepdistill.training.recipe import Recipe
from stepdistill.typing import Images


class EmojiScorer:
    """Frechet distance to real scenes and prompt accuracy of a few hundred images: fast enough for every validation."""

    def __init__(self) -> None:
        self.world = EmojiWorld()
        self.evaluator = load_evaluator(EMOJI, world=self.world, with_floor=False)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Mapping[str, float]:
        """`frechet_distance` and the caption scores of images for emoji captions."""
        measured = measured_in_batches(self.evaluator, images, prompts)
        answers = [answers_of(self.world.answers(prompt)) for prompt in prompts]
        distance = frechet_distance_of_features(measured.features, self.evaluator.reference.features)
        colours = self.evaluator.judge.background_colours
        return {"frechet_distance": distance, **caption_scores(measured, answers, colours)}


def evaluate_run(
    distiller: Distiller, recipe: Recipe, run_dir: Path, *, protocol: Protocol = EMOJI
) -> dict[str, Any]:
    """Measure teacher and student on the embedded captions, write `results.json`, and return it.

    Raises:
        UserError: the run's model is not a diffusers pipeline.
    """
    teacher, student = distiller.teacher, distiller.student
    if not (isinstance(teacher, PipelineDenoiser) and isinstance(student, PipelineDenoiser)):
        raise UserError("only students of diffusers pipelines can be evaluated")
    evaluator = load_evaluator(protocol.with_images(recipe.validation.num_evaluated))
    is_half = chosen_precision(recipe.train.mixed_precision, training_device(recipe.train)) == "bf16"
    options = RunOptions(
        dtype=torch.bfloat16 if is_half else torch.float32, with_coverage=recipe.validation.with_coverage
    )
    scale = recipe.validation.teacher_guidance_scale
    # A copy without adapters: the teacher's own network runs under whichever role was active last.
    stock = teacher.pipeline(distiller.sampler())
    stock.scheduler = teacher.pipe.scheduler
    rows = teacher_comparison(
        stock,
        student_generations(distiller, student, recipe),
        guidance_scale=distiller.config.guidance_scale if scale is None else scale,
        steps=recipe.validation.teacher_steps,
        arguments=teacher.prompt_arguments,
        evaluator=evaluator,
        options=options,
    )
    results = evaluate(rows, evaluator=evaluator, options=options)
    write_results(results, run_dir)
    return results.to_json()


def student_generations(distiller: Distiller, student: PipelineDenoiser, recipe: Recipe) -> list[Generation]:
    """The student at each number of steps that the recipe wants measured, on one pipeline.

    Raises:
        UserError: the method has no grid of so many steps.
    """
    pipe, generations = distiller.pipeline(), []
    for num_steps in recipe.validation.evaluated_steps or [distiller.config.num_steps]:
        sampler = distiller.sampler(num_steps)
        if sampler.num_steps != num_steps:
            raise UserError(
                f"validation.evaluated_steps: this student has no grid of {num_steps} steps, the nearest has {sampler.num_steps}"
            )
        call = student.call_arguments(sampler)
        generations.append(
            Generation(
                pipe,
                "student",
                method=recipe.method["name"],
                steps=call.pop("num_inference_steps"),
                guidance_scale=call.pop("guidance_scale"),
                arguments=call,
                scheduler=student.few_step(sampler).scheduler,
            )
        )
    return generations
