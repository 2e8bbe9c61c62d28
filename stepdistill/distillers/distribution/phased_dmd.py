"""Phased DMD: few-step distillation by distribution matching in sub-intervals of noise, Fan et al., 2025, https://arxiv.org/abs/2510.27684.

The student's steps are split into phases, and each phase has an expert of its own, which carries the law of its first state to that
of the state at the phase's edge, s. The rollout stops there, at a random exit step of the phase; scores are compared at times above
s; and since the fake score sees x_s instead of data, its target is the one for the sub-interval (`conditional_target`). With one
phase it is DMD2 without the GAN. Deviations:
- the gradient's weight is DMD's normaliser on the student's x0 behind x_s, as in other implementations of the paper;
- the fake score's error weighs min(1, c g^2 / sigma_t^2), g the noise between s and t: it bounds the target's variance, which grows
  without limit as t falls to s, and is 1 where s = 0; times also keep a margin above s;
- each phase keeps a fake score of its own, which starts as the teacher, where the paper starts one anew;
- phases may take turns (`phase_iterations` null) instead of following each other.
The file is a little longer than others as it also says how several experts are one student.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field

from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.prediction import Prediction, conditional_target
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.rollout import backward_simulation
from stepdistill.diffusion.times import ShiftedUniform
from stepdistill.distillers.base import Batch
from stepdistill.distillers.distribution.matching import (
    DistributionMatching,
    DistributionMatchingConfig,
    numbered,
)
from stepdistill.errors import UserError
from stepdistill.typing import Latents, Times


class PhasedDMDConfig(DistributionMatchingConfig):
    """Options of Phased DMD."""

    rollout: Literal["sde", "ode"] = Field(
        default="ode",
        description="the student's steps: x0 then the implied noise (ode, the paper's), or fresh noise (sde)",
    )
    num_phases: int = Field(default=2, ge=1, description="experts; each has as many of the student's steps")
    phase_iterations: int | None = Field(
        default=None, ge=1, description="iterations of each phase, one after the other; null: in turns"
    )
    edge_margin: float = Field(
        default=0.02, gt=0.0, description="how far above a phase's edge times begin, in t"
    )
    critic_weight_max: float = Field(
        default=10.0, gt=0.0, description="c: bound of the weighted target's variance, in units of the noise"
    )

    @property
    def num_experts(self) -> int:
        """One for each phase."""
        return self.num_phases


class PhasedDMD(DistributionMatching[PhasedDMDConfig]):
    """Distribution matching in phases, one expert each."""

    paper = "https://arxiv.org/abs/2510.27684"
    status = "verified"
    Config = PhasedDMDConfig

    def __init__(
        self,
        teacher: Denoiser,
        config: PhasedDMDConfig | None = None,
        *,
        roles: Roles | None = None,
        student: Denoiser | None = None,
        fake_score: Denoiser | None = None,
    ) -> None:
        super().__init__(teacher, config, roles=roles, student=student, fake_score=fake_score)
        count, num_steps = self.config.num_phases, self.config.num_steps
        if num_steps % count:
            raise UserError(
                f"{num_steps} steps do not split into {count} phases; make method.num_steps a multiple of num_phases"
            )
        self.experts = [self.student, *(teacher.role("student", self.roles) for _ in range(count - 1))]
        self.phase_length = num_steps // count
        inner = self.sampler().times[self.phase_length :: self.phase_length]
        self.edges = (*inner, 0.0)  # where each phase ends
        for edge, (expert, successor) in zip(inner, pairwise(self.experts), strict=True):
            expert.successor = (edge, successor)

    def sample_student(self, batch: Batch, rng: RandomStream) -> Latents:
        """x_s at the edge of the phase at turn, with the graph of one random step of that phase."""
        phase = self.phase_at(batch.step)
        exit_step = phase * self.phase_length + rng.shared_integer("exit_step", self.phase_length)
        rollout = backward_simulation(
            self.student,
            self.sampler(),
            rng.normal("noise", batch.shape),
            batch.cond,
            rng,
            exit_step=exit_step,
            stop_at=self.edges[phase],
        )
        batch.estimates = rollout.x0.detach()
        return rollout.x_s

    def renoise(self, x0: Latents, rng: RandomStream) -> tuple[Latents, Times]:
        """Carry x_s on to a time between s and pure noise, x_t ~ q(x_t | x_s)."""
        s = self.edges[self.phase_at(rng.step)]
        t = self.within_phase(self.times, s)(rng.uniform("renoise_t"))
        eps = rng.normal("renoise_eps", x0.shape[1:]).to(x0)
        return self.teacher.schedule.renoise(x0, eps, torch.full_like(t, s), t), t

    def denoising_task(
        self, x0: Latents, prediction: Prediction, rng: RandomStream
    ) -> tuple[Latents, Times, Latents]:
        """x_t from x_s, and the target whose mean is the prediction of the law of x_s carried on to t."""
        schedule, s = self.fake_score.schedule, self.edges[self.phase_at(rng.step)]
        t = self.within_phase(self.critic_times, s)(rng.uniform("t"))
        eps, since = rng.normal("eps", x0.shape[1:]).to(x0), torch.full_like(t, s)
        target = conditional_target(schedule, x0, eps, since, t, prediction)
        return schedule.renoise(x0, eps, since, t), t, target

    def critic_weight(self, t: Times, step: int) -> Times:
        """min(1, c g^2 / sigma_t^2): the target's noise is sigma_t / g times as large as that of a denoising target."""
        s = self.edges[self.phase_at(step)]
        if s == 0:
            return torch.ones_like(t)
        schedule = self.fake_score.schedule
        ratio = schedule.transition(torch.full_like(t, s), t)[1] / schedule.sigma(t)
        return (self.config.critic_weight_max * ratio**2).clamp(max=1.0)

    def phase_at(self, step: int) -> int:
        """The phase that an iteration trains."""
        count, iterations = self.config.num_phases, self.config.phase_iterations
        if iterations is None:
            return step // self.config.student_every % count
        return min(step // iterations, count - 1)

    def within_phase(self, law: ShiftedUniform, s: float) -> ShiftedUniform:
        """A law of times on what lies above a phase's edge."""
        return law.above(s + self.config.edge_margin) if s > 0 else law

    def student_at(self, step: int) -> Denoiser:
        """The expert of the phase at turn."""
        return self.experts[self.phase_at(step)]

    def fake_score_at(self, step: int) -> Denoiser:
        """The fake score of the phase at turn."""
        return self.fake_scores[self.phase_at(step)]

    def students(self) -> dict[str, Denoiser]:
        """The experts, first to last."""
        return numbered("student", self.experts)
