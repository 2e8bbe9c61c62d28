"""Stock samplers for a teacher at few steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

FLOW_SHIFTS: Sequence[float] = (1.0, 1.5, 2.0, 3.0, 5.0)


def stock_samplers(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Schedulers by name, all built from the pipeline's own scheduler configuration."""
    scheduler: Any = pipe.scheduler
    config = dict(scheduler.config)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return _flow_samplers(config)
    trailing: dict[str, Any] = {"timestep_spacing": "trailing"}
    solver: dict[str, Any] = {"algorithm_type": "dpmsolver++", "solver_order": 2}
    return {
        "Euler": EulerDiscreteScheduler.from_config(config, **trailing),
        "Euler linspace": EulerDiscreteScheduler.from_config(config, timestep_spacing="linspace"),
        "DDIM trailing": DDIMScheduler.from_config(config, **trailing),
        "DPM-Solver++": DPMSolverMultistepScheduler.from_config(config, **trailing, **solver),
        "DPM-Solver++ Karras": DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True, **solver),
    }


def _flow_samplers(config: dict[str, object]) -> dict[str, Any]:
    own = float(str(config.get("shift", 1.0)))
    flow: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    samplers: dict[str, Any] = {}
    for shift in sorted({own, *FLOW_SHIFTS}):
        samplers[f"Euler, shift {shift:g}"] = FlowMatchEulerDiscreteScheduler.from_config(config, shift=shift)
        samplers[f"DPM-Solver++, shift {shift:g}"] = DPMSolverMultistepScheduler(flow_shift=shift, **flow)
    return samplers
