"""Phased DMD: few-step distillation by distribution matching in sub-intervals of noise, Fan et al., 2025, https://arxiv.org/abs/2510.27684.

The student's steps are split into phases. Each phase has one expert, which carries the law of the phase's first state to that of
the state at its end, s. The rollout stops there; scores are compared at times above s; and as the fake score sees x_s instead of
data, its target is that of the sub-interval (`conditional_target`). With one phase it is DMD2 without the GAN.

Deviations:
- the gradient has DMD's normaliser on the student's x0 behind x_s, as in other implementations of the paper;
- the fake score's error has weight min(1, c g^2 / sigma_t^2), with g the noise between s and t: it bounds the target's variance,
  which grows without limit as t falls to s, and equals 1 for s = 0;
- each phase keeps its own fake score, initialised from the teacher, where the paper initialises one anew per phase;
- phases may alternate (`phase_iterations: null`) instead of following each other.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.rollout import Samples
from stepdistill.diffusion.schedules.base import NoiseSchedule
from stepdistill.distillers.base import numbered
from stepdistill.distillers.batch import Batch
from stepdistill.distillers.config import Requirements
from stepdistill.distillers.distribution.config import PhasedDMDConfig
from stepdistill.distillers.distribution.matching import DistributionMatching, matching_curves
from stepdistill.distillers.turn import Handoff, Losses
from stepdistill.errors import UserError
from stepdistill.losses.score import dm_gradient, surrogate_loss
from stepdistill.typing import Times

MAX_CRITIC_WEIGHT = 10.0
"""c, the bound of the weighted target's variance in units of the noise: the paper's clamp(1 / g^2, 0, 10)."""


class PhasedDMD(DistributionMatching):
    """Match the teacher's distribution in phases of the noise, one expert each."""

    paper = "https://arxiv.org/abs/2510.27684"
    requires = Requirements(critic=True)
    status = "verified"
    passes = 4.1
    Config = PhasedDMDConfig
    config: PhasedDMDConfig

    def setup(self) -> None:
        super().setup()
        num_phases, num_steps = self.config.num_phases, self.config.num_steps
        if num_steps % num_phases:
            raise UserError(
                f"method.num_steps={num_steps} does not split into num_phases={num_phases}; make it a multiple"
            )
        self.phase_length = num_steps // num_phases
        self.experts = [
            self.student, *(self.teacher.role("student", self.roles) for _ in range(num_phases - 1))
        ]  # fmt: skip
        boundaries = self.sampler().times[self.phase_length :: self.phase_length]
        self.ends = (*boundaries, 0.0)  # s of each phase
        for boundary, (expert, successor) in zip(boundaries, pairwise(self.experts), strict=True):
            expert.successor = (boundary, successor)

    def student_step(self, batch: Batch) -> Losses:
        """Follow the score difference at x_t ~ q(x_t | x_s), t > s."""
        rng = self.begin("student", batch)
        samples = self.run_to_phase_end(batch, rng)
        handoff = Handoff(samples.x_s, self.student.at(samples.t))
        scores = self.compare(samples, batch, rng)
        gradient = dm_gradient(samples.x0, scores.real, scores.fake)
        terms = {"dm": surrogate_loss(handoff.leaf, gradient)}
        return Losses(terms, {}, matching_curves(samples, scores, gradient), handoff, samples.detach())

    def critic_step(self, batch: Batch, samples: Samples | None = None) -> Losses:
        """Fit the phase's fake score with the sub-interval target."""
        rng = self.begin("critic", batch)
        if samples is None:
            with torch.no_grad():
                samples = self.run_to_phase_end(batch, rng)
        weight = partial(subinterval_weight, self.teacher.schedule, samples.s)
        loss, logs = self.fit_fake_score(samples, batch.cond, rng, weight)
        return Losses({"fake_score": loss}, logs=logs)

    def run_to_phase_end(self, batch: Batch, rng: RandomStream) -> Samples:
        """x_s at the end of this iteration's phase, with the graph of one random step of the phase."""
        phase = self.phase_at(batch.step)
        exit_step = phase * self.phase_length + rng.shared_integer("exit_step", self.phase_length)
        return self.simulate(batch, rng, exit_step, stop_at=self.ends[phase])

    def phase_at(self, step: int) -> int:
        """The phase trained in an iteration."""
        count, iterations = self.config.num_phases, self.config.phase_iterations
        if iterations is None:
            return step // self.config.student_every % count
        return min(step // iterations, count - 1)

    def students(self) -> dict[str, Denoiser]:
        return numbered("student", self.experts)


def subinterval_weight(schedule: NoiseSchedule, s: float, t: Times) -> Tensor:
    """min(1, c g^2 / sigma_t^2): the sub-interval target's noise is sigma_t / g times that of a denoising target.

    >>> from stepdistill.diffusion.schedules.families import FlowSchedule
    >>> subinterval_weight(FlowSchedule(), 0.5, torch.tensor([0.51, 0.9]))
    tensor([0.7689, 1.0000])
    """
    g = schedule.transition(torch.full_like(t, s), t)[1]
    return (MAX_CRITIC_WEIGHT * (g / schedule.sigma(t)) ** 2).clamp(max=1.0)
