"""Run a recipe: teacher, distiller, training, export, evaluation, report."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stepdistill.data.source import TrainingData, prepare_data
from stepdistill.data.trajectories import Progress, teacher_pairs
from stepdistill.denoisers import Denoiser, load_teacher
from stepdistill.denoisers.pipeline import PipelineDenoiser
from stepdistill.distillers.base import Distiller
from stepdistill.errors import UserError
from stepdistill.evaluation.pages.report import write_report
from stepdistill.export import export
from stepdistill.metrics.scorers.rewards import load_reward
from stepdistill.training.checkpoint import latest_checkpoint, load_checkpoint
from stepdistill.training.device import training_device
from stepdistill.training.ema import EMA
from stepdistill.training.evaluation import evaluate_run, evaluation_at_the_end, picture_scorer
from stepdistill.training.recipe import Recipe, load_recipe
from stepdistill.training.trainer import Trainer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NUM_CARD_PROMPTS = 4


def distill(recipe: Recipe) -> Path:
    """Run a recipe, resuming from its latest checkpoint, and return the run folder.

    Raises:
        UserError: invalid input; the message names the fix.
        RunInterruptedError: a signal stopped the run after a checkpoint was written.
    """
    run_dir, evaluation = start_run_folder(recipe), evaluation_at_the_end(recipe)
    trainer = build_trainer(recipe)
    if evaluation is None and recipe.validation.num_evaluated and trainer.is_main:
        sys.stderr.write(
            "stepdistill: no evaluation at the end, since no protocol applies to "
            f"{recipe.model.pretrained_model_name_or_path}; set validation.protocol\n"
        )
    trainer.fit()
    if not trainer.is_main:
        return run_dir
    place_encoders(trainer.distiller.teacher, text=trainer.device, images=trainer.device)
    with trainer.student_average():
        results = None if evaluation is None else evaluate_run(trainer.distiller, recipe, evaluation)
        export_student(trainer.distiller, recipe, trainer.data.prompts, run_dir, results)
    write_report(run_dir)
    return run_dir


def build_distiller(recipe: Recipe) -> Distiller:
    """Create the teacher and the method of a recipe, and the reward if it names one."""
    reward = recipe.method.get("reward")
    return recipe.distiller_class(
        build_teacher(recipe),
        recipe.distiller_config,
        roles=recipe.roles,
        reward=None if reward is None else load_reward(reward),
    )


def build_teacher(recipe: Recipe) -> Denoiser:
    """Load the frozen teacher of a recipe."""
    model = recipe.model
    return load_teacher(
        model.pretrained_model_name_or_path, dtype=DTYPES[model.dtype], prompt_arguments=model.prompt_arguments
    )


def place_encoders(teacher: Denoiser, *, text: torch.device, images: torch.device) -> None:
    """Move a pipeline's text encoders and autoencoder to the devices they are needed on next."""
    if isinstance(teacher, PipelineDenoiser):
        teacher.place_encoders(text=text, images=images)


def build_data(recipe: Recipe, teacher: Denoiser, progress: Progress = iter) -> TrainingData:
    """Encode the prompts and images of a recipe, and compute its teacher pairs."""
    data = recipe.data
    images = data.images
    if images is None and recipe.distiller_class.requires.latents:
        raise UserError(f"method.name={recipe.method['name']} needs real images: set data.images")
    if data.pairs.num == 0 and recipe.distiller_class.requires.pairs:
        raise UserError(f"method.name={recipe.method['name']} needs pairs of the teacher: set data.pairs.num")
    prepared = prepare_data(
        teacher,
        model=f"{recipe.model.pretrained_model_name_or_path} {recipe.model.prompt_arguments or ''}".rstrip(),
        prompts=data.prompts,
        images=images,
        num_prompts=data.num_prompts,
        num_images=data.num_images,
        negative_prompt=data.negative_prompt,
        cache_dir=data.cache_dir,
        seed=recipe.train.seed,
    )
    if data.pairs.num == 0:
        return prepared
    device = training_device(recipe.train)
    teacher.to(device)
    prepared = prepared.to(device)
    pairs = teacher_pairs(
        teacher,
        prepared.cond,
        prepared.uncond,
        data.pairs,
        seed=recipe.train.seed,
        cache_dir=data.cache_dir,
        progress=progress,
    )
    return replace(prepared, pairs=pairs)


def precompute_pairs(recipe: Recipe, progress: Progress = iter) -> int:
    """Precompute the teacher pairs of a recipe and return their number.

    Resumes an interrupted call. Before a run of several processes it saves each of them the work.

    Raises:
        UserError: the recipe has no data.pairs or no data.cache_dir.
    """
    if recipe.data.pairs.num == 0:
        raise UserError("the recipe has no pairs; set data.pairs.num")
    if recipe.data.cache_dir is None:
        raise UserError("the recipe has no cache for pairs; set data.cache_dir")
    teacher, device = build_teacher(recipe), training_device(recipe.train)
    place_encoders(teacher, text=device, images=device)
    pairs = build_data(recipe, teacher, progress).pairs
    return 0 if pairs is None else len(pairs)


def build_trainer(recipe: Recipe) -> Trainer:
    """Create the trainer of a recipe."""
    distiller, device = build_distiller(recipe), training_device(recipe.train)
    if recipe.train.start_from is not None:
        load_student_of(Path(recipe.train.start_from), distiller, recipe)
    place_encoders(distiller.teacher, text=device, images=device)
    data = build_data(recipe, distiller.teacher)
    place_encoders(distiller.teacher, text=torch.device("cpu"), images=device)
    return Trainer(
        distiller,
        recipe.train,
        data,
        validation=recipe.validation,
        report_to=recipe.track.report_to,
        scorer=picture_scorer(recipe),
    )


def start_run_folder(recipe: Recipe) -> Path:
    """Create the run folder with the resolved recipe, which reproduces the run."""
    run_dir = Path(recipe.train.output_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        draft = run_dir / ".recipe.partial"
        draft.write_text(
            f"# The resolved recipe of this run. Again: stepdistill distill {run_dir}/recipe.yaml\n{recipe.dump()}"
        )
        os.replace(draft, run_dir / "recipe.yaml")
    except OSError as error:
        raise UserError(
            f"cannot write to '{run_dir}': {error.strerror or error}; set train.output_dir to a folder you may write to"
        ) from error
    return run_dir


def export_student(
    distiller: Distiller,
    recipe: Recipe,
    prompts: Sequence[str],
    run_dir: Path,
    results: Mapping[str, Any] | None = None,
) -> Path:
    """Export the student of a run through the reload gate."""
    folder = run_dir / "export"
    formats = tuple(recipe.export.formats) if recipe.roles.mode == "shared" else ("pipeline",)
    export(
        distiller,
        folder,
        formats=formats,
        name=recipe.export.name or run_dir.name,
        prompts=tuple(recipe.validation.prompts or prompts)[:NUM_CARD_PROMPTS],
        recipe=recipe.dump(),
        base_model=recipe.model.pretrained_model_name_or_path,
        results=results,
    )
    return folder


def restore(
    run_dir: Path, *, which: Literal["last", "best"] = "last", overrides: Sequence[str] = ()
) -> tuple[Distiller, Recipe]:
    """Load the distiller of a run folder with its averaged student.

    Args:
        run_dir: a run folder.
        which: the student at the last checkpoint, or the one of the lowest validation Frechet distance.
        overrides: overrides of the run's recipe, as on the command line.

    Raises:
        UserError: the folder holds no run, or no such checkpoint, or one of other networks than the recipe's.
    """
    recipe = load_recipe(run_dir / "recipe.yaml", overrides)
    distiller = build_distiller(recipe)
    load_student_of(run_dir, distiller, recipe, which=which)
    return distiller, recipe


def load_student_of(
    run_dir: Path, distiller: Distiller, recipe: Recipe, *, which: Literal["last", "best"] = "last"
) -> None:
    """Load the averaged student of a run folder into a distiller.

    Raises:
        UserError: the folder holds no such checkpoint, or one of other networks than the recipe's.
    """
    folder = latest_checkpoint(run_dir if which == "last" else run_dir / "best")
    if folder is None:
        raise UserError(
            f"'{run_dir}' holds no {which} checkpoint; run `stepdistill distill {run_dir}/recipe.yaml` first"
        )
    tensors, _ = load_checkpoint(folder)
    try:
        load_student(distiller, recipe, tensors, averaged=which == "last")
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{folder} does not fit the recipe ({error}): model, roles and experts have to be those it was trained with"
        ) from error


def load_student(
    distiller: Distiller, recipe: Recipe, tensors: Mapping[str, Mapping[str, Tensor]], *, averaged: bool = True
) -> None:
    """Load the student of a checkpoint into a distiller, by default its moving average."""
    for name, student in distiller.students().items():
        student.load_role_state_dict(dict(tensors[name]))
    if averaged:
        average = EMA(distiller.players()["student"], recipe.train.ema_decay)
        average.load_state_dict(dict(tensors["ema"]))
        average.write_to_parameters()
