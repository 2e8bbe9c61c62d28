"""Transition kernels: those of the stock schedulers, and exact log densities."""

from __future__ import annotations

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler
from torch.distributions import Normal

from stepdistill.diffusion.choices import Kernel
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.rollout import markov_rollout, sample
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.diffusion.schedules.base import NoiseSchedule
from stepdistill.diffusion.schedules.families import FlowSchedule, VPSchedule, schedule_from_scheduler
from stepdistill.diffusion.solver import ddim_step
from stepdistill.diffusion.transitions import Transition, log_ratio, transition
from stepdistill.testing import GaussianTeacher

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (2, 4, 3, 3)


def draws(count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)


def filled(t: float) -> torch.Tensor:
    return torch.full((SHAPE[0],), t, dtype=torch.float64)


def estimate(x0: torch.Tensor, eps: torch.Tensor, t: float) -> Denoised:
    return Denoised(x0, eps, filled(t))


def test_renoise_is_the_lcm_scheduler() -> None:
    scheduler = LCMScheduler(**BETAS, original_inference_steps=4, clip_sample=False)
    scheduler.set_timesteps(4)
    schedule = schedule_from_scheduler(scheduler)
    x0, eps = draws(2)
    t, s = (float(scheduler.timesteps[i]) / 999 for i in (1, 2))
    x_t = schedule.add_noise(x0, eps, filled(t))
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    stock = scheduler.step(eps, scheduler.timesteps[1], x_t, generator=torch.Generator().manual_seed(3)).prev_sample
    law = transition(estimate(x0, eps, t), filled(s), schedule, "renoise")
    torch.testing.assert_close(law.draw(noise), stock, rtol=0, atol=2e-5)


def test_ancestral_is_the_euler_ancestral_scheduler() -> None:
    scheduler = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    schedule = schedule_from_scheduler(scheduler)
    x0, eps = draws(2)
    t, s = (float(scheduler.timesteps[i]) / 999 for i in (1, 2))
    alpha_t, alpha_s = schedule.alpha(filled(t))[0], schedule.alpha(filled(s))[0]
    scheduler._init_step_index(scheduler.timesteps[1])
    scheduler.is_scale_input_called = True
    stock = scheduler.step(
        eps,
        scheduler.timesteps[1],
        schedule.add_noise(x0, eps, filled(t)) / alpha_t,  # the scheduler's state has unit signal
        generator=torch.Generator().manual_seed(3),
    ).prev_sample
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    law = transition(estimate(x0, eps, t), filled(s), schedule, "ancestral")
    torch.testing.assert_close(law.draw(noise), alpha_s * stock.double(), rtol=0, atol=2e-5)


def test_renoise_is_stochastic_flow_euler() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    x0, eps = draws(2, torch.float32)
    x_t = 0.25 * x0 + 0.75 * eps
    torch.manual_seed(3)
    stock = scheduler.step(eps - x0, scheduler.timesteps[1], x_t).prev_sample
    torch.manual_seed(3)
    noise = torch.randn_like(x_t)
    law = transition(estimate(x0, eps, 0.75), filled(0.5), FlowSchedule(), "renoise")
    torch.testing.assert_close(law.draw(noise).float(), stock, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", ["renoise", "ancestral"])
@pytest.mark.parametrize("schedule", [FlowSchedule(), VPSchedule(torch.linspace(0.999, 0.005, 100) ** 2)])
def test_kernels_keep_the_noise_level(kernel: Kernel, schedule: NoiseSchedule) -> None:
    """Given the true x0 and eps, the state at s has signal alpha_s and noise of std sigma_s."""
    t, s = filled(0.8), filled(0.3)
    one = torch.ones(SHAPE, dtype=torch.float64)
    law = transition(Denoised(one, 0 * one, t), s, schedule, kernel)
    alpha, sigma = schedule.level(s)
    torch.testing.assert_close(law.mean, alpha[0] * one)
    kept = transition(Denoised(0 * one, one, t), s, schedule, kernel).mean[0, 0, 0, 0]
    torch.testing.assert_close(kept**2 + law.std[0] ** 2, sigma[0] ** 2)
    ode = ddim_step(Denoised(0 * one, one, t), s, schedule)[0, 0, 0, 0]
    assert kept < ode  # some noise is fresh


@pytest.mark.parametrize("kernel", ["renoise", "ancestral"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_ratio_is_the_difference_of_exact_log_densities(kernel: Kernel, reduction: str) -> None:
    schedule = VPSchedule(torch.linspace(0.999, 0.005, 100) ** 2)
    x0, eps, other_x0, noise = draws(4)
    laws = [transition(Denoised(each, eps, filled(0.8)), filled(0.3), schedule, kernel) for each in (x0, other_x0)]
    x_s = laws[0].draw(noise)
    densities = [Normal(law.mean, law.std[:, None, None, None]).log_prob(x_s).flatten(1).sum(1) for law in laws]
    exact = (densities[0] - densities[1]) / (1 if reduction == "sum" else x0[0].numel())
    torch.testing.assert_close(log_ratio(x_s, *laws, reduction=reduction), exact, rtol=1e-10, atol=1e-12)


def test_a_gradient_of_the_ratio_is_that_of_the_log_density() -> None:
    mean, x_s = torch.zeros(1, 4, requires_grad=True), torch.full((1, 4), 0.3)
    reference = Transition(torch.zeros(1, 4), torch.full((1,), 0.5))
    log_ratio(x_s, Transition(mean, reference.std), reference, reduction="mean").sum().backward()
    assert mean.grad is not None
    torch.testing.assert_close(mean.grad, (x_s - 0.0) / (4 * 0.5**2))


def test_a_kept_rollout_is_the_sampler() -> None:
    teacher = GaussianTeacher(torch.full((3,), 1.0), 0.5)
    cond: Conditioning = teacher.encode(["x"] * 5)
    rng, sampler = RandomStream(0, 0, tuple(range(5))), StudentSampler((1.0, 0.7, 0.3), "sde")
    noise = rng.normal("noise", (3,))
    states, x0 = markov_rollout(teacher, sampler.times, noise, cond, rng, "renoise")
    assert len(states) == 3
    assert torch.equal(states[0], noise)
    torch.testing.assert_close(x0, sample(teacher, sampler, noise, cond, rng))
