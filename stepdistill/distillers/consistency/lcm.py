"""Consistency distillation on a grid: LCM, LCM-LoRA, phased consistency (PCM) and Hyper-SD's segments.

LCM: Latent Consistency Models, Luo et al., 2023, https://arxiv.org/abs/2310.04378 (LoRA: https://arxiv.org/abs/2311.05556).
PCM: Phased Consistency Models, Wang et al., NeurIPS 2024, https://arxiv.org/abs/2405.18407.
Hyper-SD: Trajectory Segmented Consistency Model, Ren et al., NeurIPS 2024, https://arxiv.org/abs/2404.13686.

The guided teacher takes one DDIM step between two neighbours of a coarse grid (LCM's skipping-step). The student's jumps from
both ends to the edge below them have to agree. One segment is LCM, whose jump ends at the data; several are PCM; a list of
them, each stage going on with the student of the one before, is Hyper-SD.

Deviations. The consistency function is the DDIM jump alpha_s x0 + sigma_s eps of PCM throughout, with the boundary exact by
definition (LCM's c_skip and c_out are 0 and 1 up to 1e-5 on its own grid). The last solver step ends at
clean data instead of the first training index, as the stock samplers do. Grids are DDIM's trailing ones, so that every student
time is on the grid. The guidance scale is the standard one (the papers' w is one less). PCM's adversarial loss and Hyper-SD's
rewards and score distillation are left out: they are methods of their own here.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.prediction import jump_gain
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.diffusion.schedules.base import per_sample
from stepdistill.diffusion.solver import ddim_step
from stepdistill.distillers.base import Batch, Losses, PerTime, Publication, Requirements
from stepdistill.distillers.consistency.guided import GuidedConfig, GuidedDistiller
from stepdistill.distillers.target import follow, target_of
from stepdistill.errors import UserError
from stepdistill.losses.regression import pseudo_huber
from stepdistill.typing import Latents, Times


class LCMConfig(GuidedConfig):
    """Options of consistency distillation on a grid."""

    solver_steps: int = Field(
        default=40,
        ge=1,
        description="points of the teacher's grid, a multiple of num_steps and of the segments; LCM has 50 (skip 20)",
    )
    segments: tuple[int, ...] = Field(
        default=(1,),
        min_length=1,
        description="segments of the trajectory in each stage: [1] is LCM, [4] is PCM, [8, 4, 2, 1] is Hyper-SD",
    )
    stage_steps: int = Field(default=1000, ge=1, description="iterations of every stage but the last")
    target: Literal["online", "ema"] = Field(
        default="online",
        description="network behind the targets: the student itself (LCM-LoRA, PCM) or its average (LCM)",
    )
    target_decay: float = Field(default=0.95, ge=0.0, lt=1.0, description="decay of that average")
    huber_c: float = Field(default=1e-3, ge=0.0, description="where the loss turns from quadratic to linear")

    @property
    def num_targets(self) -> int:
        """The average behind the targets, where it is not the student itself."""
        return 1 if self.target == "ema" else 0


class LCM(GuidedDistiller):
    """Consistency between neighbours on the guided teacher's grid, within one or several segments."""

    paper = "https://arxiv.org/abs/2310.04378"
    requires = Requirements(latents=True)
    status = "verified"
    Config = LCMConfig
    config: LCMConfig

    def __init__(
        self,
        teacher: Denoiser,
        config: Any = None,
        *,
        roles: Roles | None = None,
        student: Denoiser | None = None,
    ) -> None:
        super().__init__(teacher, config, roles=roles, student=student)
        self._check_grid()
        self.grid = (*self.student_times(self.config.solver_steps, "ode"), 0.0)
        self.is_flow_map = self.config.segments[-1] == 1
        self.target = target_of(self.student, self.roles) if self.config.target == "ema" else None

    @property
    def publication(self) -> Publication:
        """LCM has one segment, PCM several, Hyper-SD several in turn."""
        if self.config.segments == (1,):
            return super().publication
        if len(self.config.segments) == 1:
            return Publication("PCM", "https://arxiv.org/abs/2405.18407")
        return Publication("Hyper-SD", "https://arxiv.org/abs/2404.13686")

    def student_step(self, batch: Batch) -> Losses:
        """One pair of neighbours per sample: both jumps to the edge below have to agree (LCM's algorithm 1)."""
        self.train_only("student")
        rng = batch.rng.fork("student")
        x0, cond = batch.real()
        guidance = self.guidance(batch.uncond, rng)
        told = self.told(cond, guidance)
        t, s, edge = self.interval(rng.uniform("interval"), batch.step)
        schedule = self.teacher.schedule
        x_t = schedule.add_noise(x0, rng.normal("eps", batch.shape).to(x0), t)
        with torch.no_grad():
            x_s = ddim_step(self.teacher(x_t, t, cond, guidance=guidance), s, schedule)
            target = self.jump(self.target or self.student, x_s, s, edge, told)
        # The student's graph comes last, so that its adapter is the active one when blocks are recomputed.
        prediction = self.jump(self.student, x_t, t, edge, told)
        prediction = self.balanced(prediction, jump_gain(self.student.prediction, schedule, t, edge))
        loss = pseudo_huber(prediction, target, c=self.config.huber_c)
        gap = (prediction.detach() - target).square().flatten(1).mean(1).sqrt()
        step = (x_s - x_t).square().flatten(1).mean(1).sqrt()
        return Losses({"consistency": loss}, logs={"gap": PerTime(gap, t), "solver_step": PerTime(step, t)})

    def interval(self, u: Times, step: int) -> tuple[Times, Times, Times]:
        """A point of the grid, its neighbour below and the edge of its segment, per sample."""
        grid = torch.tensor(self.grid, dtype=torch.float32, device=u.device)
        length = self.config.solver_steps // self.num_segments(step)
        j = (u * self.config.solver_steps).long().clamp(max=self.config.solver_steps - 1)
        return grid[j], grid[j + 1], grid[(j // length + 1) * length]

    def jump(self, network: Denoiser, x_t: Latents, t: Times, s: Times, cond: Conditioning) -> Latents:
        """The consistency function G(x_t, t -> s): a DDIM jump, and x_t itself where s is already reached."""
        jumped = ddim_step(network(x_t, t, cond), s, self.student.schedule)
        return torch.where(per_sample(t <= s, jumped), x_t.to(jumped), jumped)

    def num_segments(self, step: int) -> int:
        """Segments of the trajectory in this iteration's stage."""
        stage = min(step // self.config.stage_steps, len(self.config.segments) - 1)
        return self.config.segments[stage]

    def after_student_update(self, step: int) -> None:
        """Let the target's average follow."""
        if self.target is not None:
            follow(self.target, self.student, self.config.target_decay)

    def networks(self) -> dict[str, nn.Module]:
        """The student and, where there is one, its average."""
        return {"student": self.student, **({} if self.target is None else {"target": self.target})}

    def sampler(self, num_steps: int | None = None) -> StudentSampler:
        """LCM: x0, then fresh noise, at any part of the grid. Several segments: from edge to edge, deterministic."""
        stride = self.config.solver_steps // (num_steps or self.config.num_steps)
        kind = "sde" if self.config.segments[-1] == 1 else "ode"
        return StudentSampler(self.grid[:-1:stride], kind)

    def _check_grid(self) -> None:
        config = self.config
        if any(config.solver_steps % part for part in (config.num_steps, *config.segments)):
            raise UserError(
                f"method.solver_steps={config.solver_steps} has to be a multiple of num_steps={config.num_steps} and of "
                f"every entry of segments={list(config.segments)}"
            )
        last = config.segments[-1]
        if last not in (1, config.num_steps):
            raise UserError(
                f"{last} segments are sampled in {last} steps: set method.num_steps={last}, or end segments with 1"
            )
