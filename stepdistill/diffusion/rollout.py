"""Rollouts of the student from noise to a sample: the same code in training and at inference.

The student's grid is a `StudentSampler`: descending times and a kind, which sets the step to the next time s:

- `sde`: x_s = alpha_s x0 + sigma_s z with fresh noise z, as in `LCMScheduler` and
  `FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)`;
- `ode`: x_s = alpha_s x0 + sigma_s eps with the predicted noise, as in `DDIMScheduler` and
  `FlowMatchEulerDiscreteScheduler`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from stepdistill.diffusion.choices import Kernel
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.denoised import Denoised, DenoisingNetwork
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.diffusion.transitions import transition
from stepdistill.typing import Latents, Times


class NoiseSource(Protocol):
    """Source of standard normal noise: `RandomStream` in training, a seeded generator elsewhere."""

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Draw standard normal noise of shape (B, *shape)."""
        ...


@dataclass(frozen=True, eq=False)
class Samples:
    """Student samples and the step at which they left the rollout.

    Attributes:
        x_s: the samples, i.e. the state at time `s`, (B, *shape); carries the graph of the exit step.
        s: stop time of the rollout; at 0 (data) `x_s` is `x0`.
        x0: the student's prediction at the exit step; carries the same graph.
        x_t: the input of the exit step.
        t: the time of the exit step.
        exit_step: index into the sampler's times.
    """

    x_s: Latents
    s: float
    x0: Latents
    x_t: Latents
    t: float
    exit_step: int

    def detach(self) -> Samples:
        """Detach the samples from the graph."""
        return replace(self, x_s=self.x_s.detach(), x0=self.x0.detach())

    def first(self, n: int) -> Samples:
        """Return the first n samples of the batch."""
        return replace(self, x_s=self.x_s[:n], x0=self.x0[:n], x_t=self.x_t[:n])


def one_step(student: DenoisingNetwork, noise: Latents, cond: Conditioning, t: float = 1.0) -> Latents:
    """Return the student's x0 from unit-variance noise in one network call."""
    return student.at(t)(noise * student.schedule.prior_std, _filled(t, noise), cond).x0


def backward_simulation(
    student: DenoisingNetwork,
    sampler: StudentSampler,
    noise: Latents,
    cond: Conditioning,
    rng: NoiseSource,
    *,
    exit_step: int,
    stop_at: float = 0.0,
) -> Samples:
    """Run the student as at inference up to `exit_step`, keeping the graph of the last call only.

    Backward simulation of DMD2 (https://arxiv.org/abs/2405.14867, section 4.5): the training input of step k
    then follows the distribution of its inference input.

    Args:
        noise: standard normal, (B, *shape); scaled to the schedule's prior as stock samplers do.
        rng: fresh noise of the `sde` steps.
        exit_step: index into the sampler's times at which the rollout ends.
        stop_at: time to which the last prediction is renoised (`x_s`); 0 keeps x0.

    Raises:
        ValueError: `exit_step` is not an index of the sampler's times.
    """
    if not 0 <= exit_step < len(sampler.times):
        raise ValueError(f"exit_step {exit_step} is outside 0..{len(sampler.times) - 1}")
    with torch.no_grad():
        x_t = noise * student.schedule.prior_std
        for i in range(exit_step):
            out = student.at(sampler.times[i])(x_t, _filled(sampler.times[i], x_t), cond)
            x_t = next_state(student, out, sampler, sampler.times[i + 1], f"rollout_{i + 1}", rng)
    t = sampler.times[exit_step]
    out = student.at(t)(x_t, _filled(t, x_t), cond)
    x_s = out.x0 if stop_at == 0 else next_state(student, out, sampler, stop_at, "stop", rng)
    return Samples(x_s=x_s, s=stop_at, x0=out.x0, x_t=x_t, t=t, exit_step=exit_step)


@torch.no_grad()
def sample(
    student: DenoisingNetwork, sampler: StudentSampler, noise: Latents, cond: Conditioning, rng: NoiseSource
) -> Latents:
    """Run the student's inference loop and return x0."""
    return backward_simulation(student, sampler, noise, cond, rng, exit_step=len(sampler.times) - 1).x0


@torch.no_grad()
def markov_rollout(
    student: DenoisingNetwork,
    times: Sequence[float],
    noise: Latents,
    cond: Conditioning,
    rng: NoiseSource,
    kernel: Kernel,
) -> tuple[list[Latents], Latents]:
    """Return the network's input at each time and the x0 of the last call.

    With the kernel "renoise" this is `sample` with all states kept.
    """
    x_t, states = noise * student.schedule.prior_std, []
    for i, t in enumerate(times):
        states.append(x_t)
        out = student.at(t)(x_t, _filled(t, x_t), cond)
        if i + 1 == len(times):
            return states, out.x0
        law = transition(out, _filled(times[i + 1], x_t), student.schedule, kernel)
        x_t = law.draw(rng.normal(f"rollout_{i + 1}", out.x0.shape[1:]).to(out.x0))
    raise ValueError("a rollout needs at least one time")


def next_state(
    student: DenoisingNetwork, out: Denoised, sampler: StudentSampler, s: float, purpose: str, rng: NoiseSource
) -> Latents:
    """Step from a prediction to the state at time s; `purpose` names the draw of fresh noise."""
    eps = out.eps
    if sampler.kind == "sde":
        eps = rng.normal(purpose, out.x0.shape[1:]).to(out.x0)
    return student.schedule.add_noise(out.x0, eps, _filled(s, out.x0))


def _filled(t: float, like: Tensor) -> Times:
    return torch.full((like.shape[0],), t, device=like.device, dtype=torch.float32)
