"""Measure a run under the protocol of its recipe: a few pictures during training, every row at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stepdistill.denoisers.pipeline import PipelineDenoiser
from stepdistill.diffusion.sampler import steps_in_words
from stepdistill.distillers.base import Distiller
from stepdistill.errors import UserError
from stepdistill.evaluation.application import EvaluationOptions
from stepdistill.evaluation.catalogue import metric_named
from stepdistill.evaluation.columns import Columns
from stepdistill.evaluation.drawing import Assignment
from stepdistill.evaluation.embedded.extractors import EmojiExtractor
from stepdistill.evaluation.generation import batches, pictures_at_once
from stepdistill.evaluation.picture_store import PictureRecord
from stepdistill.evaluation.processes import ProcessGroup
from stepdistill.evaluation.prompt_sets import PromptSet, load_prompt_set
from stepdistill.evaluation.protocols import Protocol, protocol_named
from stepdistill.evaluation.references import scene_reference
from stepdistill.evaluation.rows import RunEvaluation, Teacher
from stepdistill.evaluation.sources import Drawn, Source, default_protocol, describe
from stepdistill.evaluation.timing import RUN_COST
from stepdistill.metrics.preprocess import to_pictures
from stepdistill.training.device import chosen_precision, training_device
from stepdistill.training.recipe import Recipe
from stepdistill.typing import Images


class PictureScorer:
    """Scores pictures of emoji captions during training: the emoji protocol's metrics on a few hundred pictures."""

    metrics = ("frechet_distance", "clip", "prompt_accuracy", "background_error", "background_imbalance")

    def __init__(self, protocol: Protocol) -> None:
        self.extractor = EmojiExtractor()
        self.reference = scene_reference(self.extractor, protocol.num_prompts)

    def __call__(self, images: Images, prompts: Sequence[str]) -> Mapping[str, float]:
        """Numbers by name; `clip_score` for the CLIP score."""
        assignment = Assignment(PromptSet.of(prompts))
        records = [
            PictureRecord(**assignment.record(index), file="", bytes=0, digest="") for index in range(len(prompts))
        ]
        pictures = to_pictures(images)
        with torch.no_grad():
            parts = [self.extractor(pictures[rows], records[rows]) for rows in batches(len(records), 250)]
        columns = Columns(
            {name: torch.cat([part[name] for part in parts]) for name in parts[0]},
            torch.arange(len(records)),
            (None,) * len(records),
        )
        found: dict[str, float] = {}
        for name in self.metrics:
            for key, reduced in metric_named(name).reduce(columns, name, self.reference).items():
                found["clip_score" if key == "clip" else key] = reduced.whole.value
        return found


def protocol_of(recipe: Recipe) -> Protocol | None:
    """The protocol of a recipe: `validation.protocol`, or the emoji protocol for embedded teachers; None if neither applies.

    Raises:
        UserError: there is no such protocol.
    """
    name = recipe.validation.protocol or default_protocol(recipe.model.pretrained_model_name_or_path)
    return None if name is None else protocol_named(name)


def picture_scorer(recipe: Recipe) -> PictureScorer | None:
    """The scorer of the validations; None if the recipe scores no pictures.

    Raises:
        UserError: the recipe's protocol is not the emoji protocol.
    """
    if not recipe.validation.num_scored:
        return None
    protocol = protocol_of(recipe)
    if protocol is None or not protocol.is_embedded:
        raise UserError(
            "validation.num_scored scores emoji captions, and this model has another protocol; set validation.num_scored=0"
        )
    return PictureScorer(protocol)


def evaluation_at_the_end(recipe: Recipe) -> RunEvaluation | None:
    """The evaluation at the end of a run; None if the recipe asks for none, or no protocol applies to its model.

    Raises:
        UserError: the protocol or its prompts cannot be found.
    """
    validation, protocol = recipe.validation, protocol_of(recipe)
    if not validation.num_evaluated or protocol is None:
        return None
    prompts = load_prompt_set(protocol, validation.protocol_prompts, limit=validation.num_evaluated)
    out = Path(recipe.train.output_dir)
    options = EvaluationOptions(out, reference=validation.reference, cost=RUN_COST)
    return RunEvaluation(protocol, prompts, run_metrics(recipe, protocol), options, ProcessGroup())


def run_metrics(recipe: Recipe, protocol: Protocol) -> list[str] | None:
    """The metrics of a run: the recipe's, or the protocol's with the coverage of captions if it defines that."""
    validation = recipe.validation
    if validation.metrics:
        return list(validation.metrics)
    has_coverage = validation.with_coverage and protocol.variant("caption_coverage") is not None
    return [*protocol.metrics, "caption_coverage"] if has_coverage else None


def evaluate_run(distiller: Distiller, recipe: Recipe, evaluation: RunEvaluation) -> dict[str, Any]:
    """Evaluate students, teacher and floor, write `results.json`, and return it.

    Raises:
        UserError: the run's model is not a diffusers pipeline, or the protocol cannot be measured on it.
    """
    teacher, device = distiller.teacher, training_device(recipe.train)
    if not isinstance(teacher, PipelineDenoiser):
        raise UserError("only students of diffusers pipelines can be evaluated")
    is_half = chosen_precision(recipe.train.mixed_precision, device) == "bf16"
    autocast = torch.bfloat16 if is_half else torch.float32
    scale = recipe.validation.teacher_guidance_scale
    # A copy without adapters: the teacher's own network runs under whichever role was active last.
    stock = teacher.pipeline(distiller.sampler())
    stock.scheduler = teacher.pipe.scheduler
    stock.to(device)
    full = Teacher(
        stock,
        recipe.model.pretrained_model_name_or_path,
        recipe.validation.teacher_steps,
        distiller.config.guidance_scale if scale is None else scale,
        teacher.prompt_arguments,
        autocast,
    )
    batch_size = evaluation.options.batch_size or pictures_at_once(*teacher.image_size())
    sized = replace(evaluation, options=replace(evaluation.options, batch_size=batch_size))
    return sized.run(full, student_rows(distiller, recipe, autocast=autocast))


def student_rows(distiller: Distiller, recipe: Recipe, *, autocast: torch.dtype = torch.float32) -> list[Drawn]:
    """The student at each number of steps the recipe evaluates, on one pipeline.

    Raises:
        UserError: the method has no grid with this number of steps.
    """
    student, pipe = pipeline_student(distiller), distiller.pipeline()
    pipe.to(training_device(recipe.train))
    rows = []
    for num_steps in recipe.validation.evaluated_steps or [distiller.config.num_steps]:
        sampler = distiller.sampler(num_steps)
        if sampler.num_steps != num_steps:
            raise UserError(
                f"validation.evaluated_steps: this student has no grid of {num_steps} steps; the nearest has {sampler.num_steps}"
            )
        source = Source(
            recipe.model.pretrained_model_name_or_path,
            name=f"student {steps_in_words(num_steps)}",
            method=recipe.method["name"],
        )
        scheduler, call = student.few_step(sampler).scheduler, student.call_arguments(sampler)
        rows.append(describe(pipe, call, source, scheduler=scheduler, autocast=autocast))
    return rows


def pipeline_student(distiller: Distiller) -> PipelineDenoiser:
    """The student, if it is a diffusers pipeline.

    Raises:
        UserError: it is not.
    """
    if not isinstance(distiller.student, PipelineDenoiser):
        raise UserError("only students of diffusers pipelines can be evaluated")
    return distiller.student
