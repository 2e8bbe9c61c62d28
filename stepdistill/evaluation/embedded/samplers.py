"""The stock samplers a teacher is given a fair chance with at few steps, and the choice of the best one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from stepdistill.denoisers.pipeline import NO_ARGUMENTS
from stepdistill.diffusion.sampler import steps_in_words
from stepdistill.evaluation.embedded.evaluator import Evaluator
from stepdistill.evaluation.embedded.runner import Draws, RunOptions, measure_generation
from stepdistill.evaluation.generation import Generation
from stepdistill.metrics.distances import frechet_distance_of_features

FLOW_SHIFTS = (1.0, 1.5, 2.0, 3.0, 5.0)


def stock_samplers(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Candidates by name, all made from the pipeline's own scheduler configuration."""
    config = dict(pipe.scheduler.config)
    if isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler):
        return _flow_samplers(config)
    trailing: dict[str, Any] = {"timestep_spacing": "trailing"}
    solver: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2}
    return {
        "Euler": EulerDiscreteScheduler.from_config(config, **trailing),
        "Euler linspace": EulerDiscreteScheduler.from_config(config, timestep_spacing="linspace"),
        "DDIM trailing": DDIMScheduler.from_config(config, **trailing),
        "DPM-Solver++": DPMSolverMultistepScheduler.from_config(config, **trailing, **solver),
        "DPM-Solver++ Karras": DPMSolverMultistepScheduler.from_config(
            config, use_karras_sigmas=True, **solver
        ),
    }


def _flow_samplers(config: dict[str, object]) -> dict[str, Any]:
    own = float(str(config.get("shift", 1.0)))
    flow: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    samplers: dict[str, Any] = {}
    for shift in sorted({own, *FLOW_SHIFTS}):
        samplers[f"Euler, shift {shift:g}"] = FlowMatchEulerDiscreteScheduler.from_config(config, shift=shift)
        samplers[f"DPM-Solver++, shift {shift:g}"] = DPMSolverMultistepScheduler(flow_shift=shift, **flow)
    return samplers


def best_stock_sampler(
    pipe: DiffusionPipeline,
    *,
    steps: int,
    guidance_scales: tuple[float, ...],
    evaluator: Evaluator,
    options: RunOptions,
    subset: int = 250,
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> Generation:
    """The teacher at `steps` with the stock sampler (and guidance scale) of the lowest Frechet distance on a subset."""
    small = replace(evaluator, prompts=evaluator.prompts.first(min(subset, len(evaluator.prompts))))
    draws = Draws.main(small)
    tried: dict[str, tuple[float, Generation]] = {}
    for name, scheduler in stock_samplers(pipe).items():
        for scale in guidance_scales:
            each = Generation(
                pipe,
                "teacher",
                steps=steps,
                guidance_scale=scale,
                scheduler=scheduler,
                sampler=name,
                arguments=arguments,
                is_cached=True,
            )
            label = name if len(guidance_scales) == 1 else f"{name}, guidance {scale:g}"
            measured = measure_generation(label, each, draws, small, options)
            tried[label] = (
                frechet_distance_of_features(measured.features, evaluator.reference.features),
                each,
            )
    best = min(tried, key=lambda label: tried[label][0])
    return replace(
        tried[best][1], search={label: round(distance, 4) for label, (distance, _) in tried.items()}
    )


def teacher_comparison(
    teacher: DiffusionPipeline,
    students: Sequence[Generation],
    *,
    guidance_scale: float,
    steps: int = 50,
    few_step_guidance: tuple[float, ...] | None = None,
    evaluator: Evaluator,
    options: RunOptions,
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> dict[str, Generation]:
    """The rows of every comparison: teacher at full steps, teacher at each student's steps at its best, students."""
    full = Generation(
        teacher, "teacher", steps=steps, guidance_scale=guidance_scale, arguments=arguments, is_cached=True
    )
    rows = {f"teacher {steps_in_words(steps)}": full}
    own: dict[str, Generation] = {}
    for student in students:
        if student.steps is None:
            raise ValueError("the student's generation must say its number of steps")
        words = steps_in_words(student.steps)
        own[f"student {words}"] = student
        rows[f"teacher {words}"] = best_stock_sampler(
            teacher,
            steps=student.steps,
            guidance_scales=few_step_guidance or (guidance_scale,),
            evaluator=evaluator,
            options=options,
            arguments=arguments,
        )
    return rows | own


def guidance_sweep(
    teacher: DiffusionPipeline, scales: Sequence[float], *, steps: int = 50
) -> dict[str, Generation]:
    """The teacher at several guidance scales: the row of the lowest Frechet distance is the teacher at its best."""
    return {
        f"teacher {steps} steps, guidance {scale:g}": Generation(
            teacher, "teacher", steps=steps, guidance_scale=scale, is_cached=True
        )
        for scale in scales
    }
