"""Consistency distillation on a grid: LCM, LCM-LoRA, phased consistency (PCM) and Hyper-SD's segments.

LCM: Latent Consistency Models, Luo et al., 2023, https://arxiv.org/abs/2310.04378 (LoRA: https://arxiv.org/abs/2311.05556).
PCM: Phased Consistency Models, Wang et al., NeurIPS 2024, https://arxiv.org/abs/2405.18407.
Hyper-SD: Trajectory Segmented Consistency Model, Ren et al., NeurIPS 2024, https://arxiv.org/abs/2404.13686.

The guided teacher takes one DDIM step between two neighbours of a coarse grid (LCM's skipping-step). The student's jumps from both
to the edge below them have to agree. With one segment, whose edge is the data, it is LCM; with several it is PCM; a list of them,
where each stage continues from the last one's student, is Hyper-SD.

Deviations. The consistency function is PCM's DDIM jump alpha_s x0 + sigma_s eps throughout, with an exact boundary (LCM's c_skip and
c_out are 0 and 1 up to 1e-5 on its own grid). The last solver step ends at clean data instead of the first training index, as in the
stock samplers. Grids are DDIM's trailing ones, so that every student time is on the grid. The guidance scale is the standard one (the
papers' w is one less). PCM's adversarial loss and Hyper-SD's rewards and score distillation are separate methods here.
"""

from __future__ import annotations

import torch

from stepdistill.denoisers.base import Denoiser
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.prediction import jump_gain
from stepdistill.diffusion.sampler import StudentSampler
from stepdistill.diffusion.schedules.base import per_sample
from stepdistill.diffusion.solver import ddim_step
from stepdistill.distillers.base import Distiller
from stepdistill.distillers.batch import Batch
from stepdistill.distillers.config import Requirements
from stepdistill.distillers.consistency.config import LCMConfig
from stepdistill.distillers.consistency.guided import balanced, teacher_guidance, with_guidance_scale
from stepdistill.distillers.target import create_target, update_target
from stepdistill.distillers.turn import Losses, PerTime
from stepdistill.errors import UserError
from stepdistill.losses.regression import pseudo_huber
from stepdistill.typing import Latents, Times


class LCM(Distiller):
    """Consistency between neighbours on the guided teacher's grid, in one segment or several."""

    paper = "https://arxiv.org/abs/2310.04378"
    requires = Requirements(latents=True)
    status = "verified"
    passes = 4.0
    Config = LCMConfig
    config: LCMConfig

    def setup(self) -> None:
        self.check_grid()
        if self.config.embed_guidance:
            self.student.embed_guidance(self.config.guidance_scale)
        self.grid = (*self.student_times(self.config.solver_steps, "ode"), 0.0)
        self.is_flow_map = self.config.segments[-1] == 1
        self.target = None
        if self.config.target == "ema":
            self.target = self.add_network("target", create_target(self.student, self.roles), turn=None)

    @property
    def credit(self) -> tuple[str, str]:
        """LCM for one segment, PCM for several, Hyper-SD for stages of several."""
        if self.config.segments == (1,):
            return "LCM", self.paper
        if len(self.config.segments) == 1:
            return "PCM", "https://arxiv.org/abs/2405.18407"
        return "Hyper-SD", "https://arxiv.org/abs/2404.13686"

    def student_step(self, batch: Batch) -> Losses:
        """Let both jumps of one pair of neighbours agree (LCM, algorithm 1)."""
        rng = self.begin("student", batch)
        x0, cond = batch.real()
        guidance = teacher_guidance(self.config, batch.uncond, rng)
        student_cond = with_guidance_scale(self.student, cond, guidance)
        t, s, edge = self.interval(rng.uniform("interval"), batch.step)
        schedule = self.teacher.schedule
        x_t = schedule.add_noise(x0, rng.normal("eps", batch.shape).to(x0), t)
        with torch.no_grad():
            # One solver step of the guided teacher, then the target's jump from there.
            x_s = ddim_step(self.teacher(x_t, t, cond, guidance=guidance), s, schedule)
            target = self.jump(self.target or self.student, x_s, s, edge, student_cond)
        # Last, so that the student's adapter is the active one when checkpointed blocks are recomputed.
        prediction = self.jump(self.student, x_t, t, edge, student_cond)
        gain = jump_gain(self.student.prediction, schedule, t, edge)
        # d(f(x_t, t), sg f(x_s, s)) with the pseudo-Huber distance
        loss = pseudo_huber(balanced(self.config, prediction, gain), target, c=self.config.huber_c)
        gap = (prediction.detach() - target).square().flatten(1).mean(1).sqrt()
        step = (x_s - x_t).square().flatten(1).mean(1).sqrt()
        return Losses({"consistency": loss}, logs={"gap": PerTime(gap, t), "solver_step": PerTime(step, t)})

    def interval(self, u: Times, step: int) -> tuple[Times, Times, Times]:
        """Per sample: a point of the grid, its neighbour below, and the lower edge of its segment."""
        grid = torch.tensor(self.grid, dtype=torch.float32, device=u.device)
        length = self.config.solver_steps // self.num_segments(step)
        j = (u * self.config.solver_steps).long().clamp(max=self.config.solver_steps - 1)
        return grid[j], grid[j + 1], grid[(j // length + 1) * length]

    def jump(self, network: Denoiser, x_t: Latents, t: Times, s: Times, cond: Conditioning) -> Latents:
        """The consistency function f(x_t, t -> s): a DDIM jump, and x_t itself where t <= s."""
        jumped = ddim_step(network(x_t, t, cond), s, self.student.schedule)
        return torch.where(per_sample(t <= s, jumped), x_t.to(jumped), jumped)

    def num_segments(self, step: int) -> int:
        """Segments of the trajectory in this iteration's stage."""
        stage = min(step // self.config.stage_steps, len(self.config.segments) - 1)
        return self.config.segments[stage]

    def after_student_update(self, step: int) -> None:
        if self.target is not None:
            update_target(self.target, self.student, self.config.target_decay)

    def sampler(self, num_steps: int | None = None) -> StudentSampler:
        """One segment: x0 plus fresh noise, at any divisor of the grid. Several: from edge to edge, deterministic."""
        stride = self.config.solver_steps // (num_steps or self.config.num_steps)
        return StudentSampler(self.grid[:-1:stride], self.config.sampler_kind)

    def check_grid(self) -> None:
        """Reject numbers of steps and segments that do not divide the grid."""
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
