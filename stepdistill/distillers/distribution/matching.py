"""Parts of distribution matching (DMD, https://arxiv.org/abs/2311.18828) that its methods compose.

One iteration: run the student (`simulate`), renoise its samples, compare the teacher's and the fake score's estimates there
(`compare`), weight their difference and inject it as a gradient; fit the fake score to the same samples (`fit_fake_score`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.guidance import Guidance
from stepdistill.diffusion.prediction import conditional_target
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.rollout import Samples, backward_simulation
from stepdistill.diffusion.schedules.base import NoiseSchedule
from stepdistill.diffusion.times import ShiftedUniform
from stepdistill.distillers.base import Distiller
from stepdistill.distillers.batch import Batch
from stepdistill.distillers.turn import Logs, PerTime, two_time_scales
from stepdistill.losses.score import denoising_error
from stepdistill.typing import Latents, Times

MARGIN_ABOVE_S = 0.02
"""Least distance of a renoise time from the samples' own time s > 0: targets have unbounded variance as t falls to s."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Two estimates of x0 at renoised samples.

    Attributes:
        real: the teacher's, (B, *shape).
        fake: the fake score's, (B, *shape).
        t: the renoise times, (B,).
    """

    real: Latents
    fake: Latents
    t: Times


class DistributionMatching(Distiller):
    """A student, its fake score(s), and the laws of times at which scores are compared and fitted."""

    def setup(self) -> None:
        config = self.config
        self.turn_schedule = two_time_scales(config.student_every)
        self.times = ShiftedUniform(config.renoise_lo, config.renoise_hi, config.renoise_shift)
        self.critic_times = ShiftedUniform(shift=config.critic_shift)

    def simulate(self, batch: Batch, rng: RandomStream, exit_step: int, stop_at: float = 0.0) -> Samples:
        """Run the student as at inference, with the graph of the exit step only (DMD2, section 4.5)."""
        noise = rng.normal("noise", batch.shape)
        return backward_simulation(
            self.student, self.sampler(), noise, batch.cond, rng, exit_step=exit_step, stop_at=stop_at
        )

    def exit_step(self, step: int, rng: RandomStream) -> int:
        """The rollout step trained in this iteration, the same on every rank.

        Random with one fake score. With one per student step, each step in turn: a fake score is then fitted to its step
        right before that step's student update.
        """
        num_steps = self.config.num_steps
        if len(self.fake_scores) == 1:
            return rng.shared_integer("exit_step", num_steps)
        return -(-step // self.config.student_every) % num_steps

    def fake_score_of(self, samples: Samples) -> Denoiser:
        """The fake score of the samples' exit step: the steps are split evenly among the fake scores."""
        return self.fake_scores[samples.exit_step * len(self.fake_scores) // self.config.num_steps]

    @torch.no_grad()
    def compare(
        self,
        samples: Samples,
        batch: Batch,
        rng: RandomStream,
        guidance: Guidance | None = None,
        fake_guidance: Guidance | None = None,
    ) -> Scores:
        """Renoise samples and estimate x0 there with both networks: teacher (guided: two passes) and fake score (one pass)."""
        x_t, t, _ = renoise(
            self.teacher.schedule, samples, self.times, rng, t_name="renoise_t", eps_name="renoise_eps"
        )
        real = self.teacher(x_t, t, batch.cond, guidance=guidance or self.guidance(batch)).x0
        fake = self.fake_score_of(samples)(x_t, t, batch.cond, guidance=fake_guidance).x0
        return Scores(real, fake, t)

    def guidance(self, batch: Batch, scale: float | Tensor | None = None) -> Guidance:
        """The teacher's guidance, of the configured scale unless another is given."""
        chosen = self.config.guidance_scale if scale is None else scale
        return Guidance(chosen, batch.uncond, self.config.guidance_interval)

    def fit_fake_score(
        self,
        samples: Samples,
        cond: Conditioning,
        rng: RandomStream,
        weight: Callable[[Times], Tensor] = torch.ones_like,
    ) -> tuple[Tensor, Logs]:
        """The denoising loss of the samples' fake score (DMD eq. 6), weighted per time."""
        fake_score, space = self.fake_score_of(samples), self.config.critic_space
        schedule, prediction = fake_score.schedule, fake_score.prediction if space == "own" else space
        x_t, t, eps = renoise(schedule, samples, self.critic_times, rng, t_name="t", eps_name="eps")
        target = conditional_target(schedule, samples.x_s, eps, torch.full_like(t, samples.s), t, prediction)
        error = denoising_error(schedule, prediction, fake_score(x_t, t, cond), target)
        return (weight(t) * error).mean(), {"fake_score": PerTime(error.detach(), t)}


def renoise(
    schedule: NoiseSchedule, samples: Samples, law: ShiftedUniform, rng: RandomStream, *, t_name: str, eps_name: str
) -> tuple[Latents, Times, Latents]:
    """Draw x_t ~ q(x_t | x_s) at times of a law, restricted to those above s.

    Returns:
        x_t, t and the noise eps that was added.
    """
    x_s, s = samples.x_s, samples.s
    law = law.above(s + MARGIN_ABOVE_S) if s > 0 else law
    t, eps = law(rng.uniform(t_name)), rng.normal(eps_name, x_s.shape[1:]).to(x_s)
    return schedule.renoise(x_s, eps, torch.full_like(t, s), t), t, eps


def matching_curves(samples: Samples, scores: Scores, gradient: Latents) -> Logs:
    """Curves of a student turn: latent statistics, size of the gradient, distance of the scores, contrast."""
    x_s, x0 = samples.x_s.detach(), samples.x0.detach()
    return {
        "latent_mean": x_s.mean(),
        "latent_std": x_s.std(),
        "gradient_norm": gradient.norm(),
        "gap": PerTime((scores.fake - scores.real).abs().flatten(1).mean(1), scores.t),
        "stretch": PerTime(stretch(x0, scores.real - scores.fake), scores.t),
    }


def stretch(x0: Latents, step: Latents) -> Tensor:
    """<x0, step> / |x0|^2 per sample: the relative growth in contrast along a step, 0 on average where scores agree.

    >>> stretch(torch.ones(2, 3), torch.tensor([[0.1] * 3, [0.2, -0.1, -0.1]]))
    tensor([0.1000, 0.0000])
    """
    return (x0 * step).flatten(1).sum(1) / x0.flatten(1).square().sum(1).clamp_min(1e-12)
