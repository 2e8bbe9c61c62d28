"""The stock diffusers scheduler and call arguments that run a student exactly as trained.

| schedule | kind | scheduler |
|---|---|---|
| VP   | sde | LCMScheduler with original_inference_steps = num_steps; c_skip ~ 0 and c_out ~ 1, so it returns x0 plus noise |
| VP   | ode | DDIMScheduler with trailing spacing; on other grids DPMSolverMultistepScheduler of order 1, i.e. DDIM |
| flow | sde | FlowMatchEulerDiscreteScheduler with stochastic_sampling |
| flow | ode | FlowMatchEulerDiscreteScheduler |

Given only `num_inference_steps`, a flow pipeline runs a different grid than in training, so the call includes
`sigmas`. They are unshifted, since the scheduler applies its shift to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler

from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.diffusion.times import few_step_indices, shift_time
from stepdistill.errors import UserError


@dataclass(frozen=True)
class FewStep:
    """A scheduler and its keyword arguments for the pipeline call (JSON values)."""

    scheduler: Any
    arguments: dict[str, Any]


def vp_few_step(base: Any, sampler: StudentSampler) -> FewStep:
    """Return the VP scheduler of a sampler, with the betas and prediction type of `base`."""
    count, num_steps = base.config.num_train_timesteps, sampler.num_steps
    indices = training_indices(sampler.times, count)
    is_default = indices == few_step_indices(count, num_steps, sampler.kind)
    arguments: dict[str, Any] = {"num_inference_steps": num_steps}
    if not is_default:
        arguments["timesteps"] = indices
    unclipped = {"clip_sample": False, "thresholding": False}
    if sampler.kind == "sde":
        scheduler = LCMScheduler.from_config(base.config, original_inference_steps=num_steps, **unclipped)
    elif is_default and count % num_steps == 0:
        trailing = {"timestep_spacing": "trailing", "set_alpha_to_one": True}
        scheduler = DDIMScheduler.from_config(base.config, **trailing, **unclipped)
    else:
        # DDIMScheduler accepts no custom timesteps, and its last step overshoots unless num_steps divides count.
        arguments["timesteps"] = indices
        order_one = {"solver_order": 1, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}
        scheduler = DPMSolverMultistepScheduler.from_config(base.config, **order_one, **_NO_RESPACING, **unclipped)
    return FewStep(scheduler, arguments)


def flow_few_step(base: Any, sampler: StudentSampler) -> FewStep:
    """Return the flow-matching scheduler of a sampler, with the shift of `base`."""
    shift = flow_shift(base.config)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        base.config,
        shift=shift,
        stochastic_sampling=sampler.kind == "sde",
        use_dynamic_shifting=False,
        shift_terminal=None,
        invert_sigmas=False,
        **_NO_RESPACING,
    )
    times = torch.tensor(sampler.times, dtype=torch.float64)
    # Undo the shift; 9 digits keep the JSON short and are well below float32 resolution.
    sigmas = [round(s, 9) for s in shift_time(times, 1 / shift).tolist()]
    return FewStep(scheduler, {"num_inference_steps": sampler.num_steps, "sigmas": sigmas})


def flow_shift(config: Any) -> float:
    """Return the static timestep shift of a flow scheduler's config, by default 1."""
    return config.get("shift") or config.get("flow_shift") or 1.0


def training_indices(times: tuple[float, ...], count: int) -> list[int]:
    """Convert times to training indices.

    Raises:
        UserError: a time is off the training grid, where stock VP schedulers cannot call the network.

    >>> training_indices((1.0, 749 / 999), 1000)
    [999, 749]
    """
    indices = [t * (count - 1) for t in times]
    if any(abs(i - round(i)) > 1e-2 for i in indices):  # float32 times are off by up to 1e-4
        raise UserError(
            f"stock schedulers call a VP network at whole training indices only, got {[round(i, 2) for i in indices]}; "
            f"choose times that are multiples of 1/{count - 1}"
        )
    return [round(i) for i in indices]


_NO_RESPACING = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
