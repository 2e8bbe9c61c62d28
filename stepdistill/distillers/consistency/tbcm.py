"""TBCM: Image-Free Timestep Distillation via Continuous-Time Consistency with Trajectory-Sampled Pairs, Tang et al., 2025, https://arxiv.org/abs/2511.20410.

sCM without images: the points are states of the guided teacher's own trajectory from pure noise, which are also what the student
meets at inference, and the teacher's estimates there are kept, so that it is never called twice. The discrete form pairs
successive states instead of differentiating: no forward-mode, no learned weight.

Deviations. The trajectory's times are jittered once per iteration, for all samples. Its steps hold x0 and eps, which is the
paper's rotation in every schedule. The first point is left out only where it is pure noise and has no tangent (flow); a VP
network starts at a little signal, and has to learn that start. Dropping trajectories that end in black images is left out.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field

from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.prediction import jump_gain
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.solver import Trajectory, teacher_trajectory
from stepdistill.distillers.base import Batch, Losses, PerTime, Requirements
from stepdistill.distillers.consistency.scm import SCM, SCMConfig
from stepdistill.losses.regression import pseudo_huber
from stepdistill.typing import Latents


class TBCMConfig(SCMConfig):
    """Options of trajectory-backward consistency."""

    form: Literal["continuous", "discrete"] = Field(
        default="continuous",
        description="tangents at the states (the paper), or agreement of successive states",
    )
    route_points: int = Field(
        default=16, ge=2, description="teacher calls per trajectory, each a training point"
    )
    calm_after: int | None = Field(
        default=None,
        ge=0,
        description="iteration after which the student's own derivative is damped; null: never",
    )
    calm_steps: int = Field(default=2000, ge=1, description="iterations over which it is damped")
    calm_weight: float = Field(default=0.75, ge=0, le=1, description="what it is damped to")
    huber_c: float = Field(
        default=1e-3,
        ge=0.0,
        description="of the discrete form: where the loss turns from quadratic to linear",
    )


class TBCM(SCM):
    """Consistency on the teacher's own trajectories, from prompts alone."""

    paper = "https://arxiv.org/abs/2511.20410"
    requires = Requirements()
    status = "verified"
    Config = TBCMConfig
    config: TBCMConfig

    def __init__(
        self,
        teacher: Denoiser,
        config: Any = None,
        *,
        roles: Roles | None = None,
        student: Denoiser | None = None,
    ) -> None:
        super().__init__(teacher, config, roles=roles, student=student)
        if self.config.form == "discrete":
            self.log_variance = None
        is_pure_noise = self.schedule.alpha(torch.ones(1)).item() == 0
        self.first = 1 if is_pure_noise else 0

    def student_step(self, batch: Batch) -> Losses:
        """One trajectory per prompt; all its points are one batch."""
        self.train_only("student")
        rng = batch.rng.fork("student")
        guidance = self.guidance(batch.uncond, rng)
        told, noise = self.told(batch.cond, guidance), rng.normal("noise", batch.shape)
        route = teacher_trajectory(self.teacher, noise, batch.cond, self.route(rng), guidance)
        if self.config.form == "discrete":
            return self.discrete_losses(route, told)
        x_t, teacher, cond = joined(route, told, self.first)
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
        x_t, teacher, told = joined(route, cond, 0)
        n = len(route.x0)
        with torch.no_grad():
            later = self.student(x_t[n:], teacher.t[n:], told[n:]).x0
            target = torch.cat([later, route.x0.to(later)])
        x0 = self.student(x_t, teacher.t, told).x0
        gap = (x0.detach() - target).square().flatten(1).mean(1).sqrt()
        gain = jump_gain(self.student.prediction, self.schedule, teacher.t, torch.zeros_like(teacher.t))
        loss = pseudo_huber(self.balanced(x0, gain), target, c=self.config.huber_c)
        return Losses({"consistency": loss}, logs={"gap": PerTime(gap, teacher.t)})

    def tangent_weight(self, step: int) -> float:
        """The warm-up of sCM, and late in training a damping that calms the student down."""
        weight, after = super().tangent_weight(step), self.config.calm_after
        if after is None:
            return weight
        part = min(1.0, max(0.0, (step - after) / self.config.calm_steps))
        return weight * (1 - part * (1 - self.config.calm_weight))


def joined(route: Trajectory, cond: Conditioning, first: int) -> tuple[Latents, Denoised, Conditioning]:
    """States, the teacher's estimates there and the conditioning of all points from `first` on, as one batch."""
    estimates = route.estimates[first:]
    x0, eps = torch.cat([out.x0 for out in estimates]), torch.cat([out.eps for out in estimates])
    t = torch.cat([out.t for out in estimates])
    x_t = torch.cat(route.states[first:-1])
    return x_t, Denoised(x0, eps, t), Conditioning.cat([cond] * len(estimates))
