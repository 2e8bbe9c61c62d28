"""TBCM: Image-Free Timestep Distillation via Continuous-Time Consistency with Trajectory-Sampled Pairs, Tang et al., 2025, https://arxiv.org/abs/2511.20410.

sCM without images: its points are states of the guided teacher's own trajectory from pure noise, which are also the student's inputs
at inference, and the teacher's estimates there are kept, so that it is never called twice. The discrete form pairs successive states
instead of differentiating: no forward mode, no learned weight.

Deviations. The trajectory's times are jittered once per iteration, for all samples. Its steps hold x0 and eps, which is the paper's
rotation in every schedule. The first point is left out only where it is pure noise and has no tangent (flow); a VP network starts with
a little signal and has to learn that start. Dropping trajectories that end in black images is left out.
"""

from __future__ import annotations

import torch

from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.prediction import jump_gain
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.solver import Trajectory, teacher_trajectory
from stepdistill.distillers.batch import Batch
from stepdistill.distillers.config import Requirements
from stepdistill.distillers.consistency.config import TBCMConfig
from stepdistill.distillers.consistency.guided import balanced, teacher_guidance, with_guidance_scale
from stepdistill.distillers.consistency.scm import SCM
from stepdistill.distillers.turn import Losses, PerTime
from stepdistill.losses.regression import pseudo_huber
from stepdistill.typing import Latents

CALM_STEPS, CALM_WEIGHT = 2000, 0.75
"""The paper's calm-down: the derivative's factor r falls from 1 to this over so many iterations."""


class TBCM(SCM):
    """Consistency on the teacher's own trajectories, from prompts alone."""

    paper = "https://arxiv.org/abs/2511.20410"
    requires = Requirements()
    status = "verified"
    passes = 62.0
    Config = TBCMConfig
    config: TBCMConfig

    def setup(self) -> None:
        super().setup()
        is_pure_noise = self.schedule.alpha(torch.ones(1)).item() == 0
        self.first = 1 if is_pure_noise else 0

    def student_step(self, batch: Batch) -> Losses:
        """Train on all points of one trajectory per prompt."""
        rng = self.begin("student", batch)
        guidance = teacher_guidance(self.config, batch.uncond, rng)
        student_cond = with_guidance_scale(self.student, batch.cond, guidance)
        noise = rng.normal("noise", batch.shape)
        route = teacher_trajectory(self.teacher, noise, batch.cond, self.route(rng), guidance)
        if self.config.form == "discrete":
            return self.discrete_losses(route, student_cond)
        x_t, teacher, cond = joined(route, student_cond, self.first)
        dF = self.derivative(x_t, teacher, cond)
        F = self.balanced_field(x_t, teacher.t, cond)
        return self.tangent_losses(F, dF, x_t, teacher, batch.step)

    def route(self, rng: RandomStream) -> list[float]:
        """The trajectory's times: noise, then one uniform draw between each two neighbours of the reference grid."""
        grid = self.student_times(self.config.route_points, "ode")
        draws = [rng.shared_uniform(f"route_{i}") for i in range(1, len(grid))]
        return [grid[0], *(lo + (hi - lo) * u for hi, lo, u in zip(grid, grid[1:], draws, strict=False))]

    def discrete_losses(self, route: Trajectory, cond: Conditioning) -> Losses:
        """The student's x0 at each state against its own at the next; the last target is the trajectory's end."""
        x_t, teacher, cond = joined(route, cond, 0)
        n = len(route.x0)
        with torch.no_grad():
            later = self.student(x_t[n:], teacher.t[n:], cond[n:]).x0
            target = torch.cat([later, route.x0.to(later)])
        x0 = self.student(x_t, teacher.t, cond).x0
        gap = (x0.detach() - target).square().flatten(1).mean(1).sqrt()
        gain = jump_gain(self.student.prediction, self.schedule, teacher.t, torch.zeros_like(teacher.t))
        loss = pseudo_huber(balanced(self.config, x0, gain), target, c=self.config.huber_c)
        return Losses({"consistency": loss}, logs={"gap": PerTime(gap, teacher.t)})

    def tangent_weight(self, step: int) -> float:
        """sCM's warm-up, and late in training the calm-down."""
        weight, after = super().tangent_weight(step), self.config.calm_after
        if after is None:
            return weight
        part = min(1.0, max(0.0, (step - after) / CALM_STEPS))
        return weight * (1 - part * (1 - CALM_WEIGHT))


def joined(route: Trajectory, cond: Conditioning, first: int) -> tuple[Latents, Denoised, Conditioning]:
    """States, teacher estimates and conditioning of all points from `first` on, as one batch."""
    estimates = route.estimates[first:]
    x0, eps = torch.cat([out.x0 for out in estimates]), torch.cat([out.eps for out in estimates])
    t = torch.cat([out.t for out in estimates])
    x_t = torch.cat(route.states[first:-1])
    return x_t, Denoised(x0, eps, t), Conditioning.cat([cond] * len(estimates))
