"""The stock diffusers scheduler, and the call, that run a student exactly as it was trained.

| schedule | kind | scheduler |
|---|---|---|
| VP   | sde | LCMScheduler with original_inference_steps = num_steps: its boundary scalings vanish, what is left is x0, then noise |
| VP   | ode | DDIMScheduler, trailing; on other grids DPMSolverMultistepScheduler of order 1, which is DDIM |
| flow | sde | FlowMatchEulerDiscreteScheduler with stochastic_sampling |
| flow | ode | FlowMatchEulerDiscreteScheduler |

A flow pipeline called with bare `num_inference_steps` runs another grid than the one trained on, so the sigmas are
part of the call; they are the unshifted ones, because the scheduler applies its shift to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)

from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.diffusion.times import few_step_indices, shift_time
from stepdistill.errors import UserError


@dataclass(frozen=True)
class FewStep:
    """A scheduler and the keyword arguments of the pipeline call that go with it (plain JSON values)."""

    scheduler: Any
    arguments: dict[str, Any]


def vp_few_step(base: Any, sampler: StudentSampler) -> FewStep:
    """The VP scheduler of this sampler; the betas and the prediction type are those of `base`."""
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
        # DDIMScheduler takes no timesteps, and steps past its own grid where num_steps is no divisor.
        arguments["timesteps"] = indices
        order_one = {"solver_order": 1, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}
        scheduler = DPMSolverMultistepScheduler.from_config(
            base.config, **order_one, **_NO_RESPACING, **unclipped
        )
    return FewStep(scheduler, arguments)


def flow_few_step(base: Any, sampler: StudentSampler) -> FewStep:
    """The flow-matching scheduler of this sampler, with the shift of `base`."""
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
    sigmas = shift_time(times, 1 / shift).tolist()
    return FewStep(
        scheduler, {"num_inference_steps": sampler.num_steps, "sigmas": [round(s, 9) for s in sigmas]}
    )


def flow_shift(config: Any) -> float:
    """The static timestep shift in a flow scheduler's config; 1 where it has none."""
    return config.get("shift") or config.get("flow_shift") or 1.0


def training_indices(times: tuple[float, ...], count: int) -> list[int]:
    """Times as training indices; they must lie on the training grid, where stock VP schedulers live.

    >>> training_indices((1.0, 749 / 999), 1000)
    [999, 749]
    """
    indices = [t * (count - 1) for t in times]
    if any(abs(i - round(i)) > 1e-2 for i in indices):
        raise UserError(
            f"stock schedulers call a VP network at whole training indices only, got {[round(i, 2) for i in indices]}; "
            f"choose times that are multiples of 1/{count - 1}"
        )
    return [round(i) for i in indices]


_NO_RESPACING = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
