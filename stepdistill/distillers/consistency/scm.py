"""sCM: Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models, Lu & Song, ICLR 2025, https://arxiv.org/abs/2410.11081.

The consistency function must not change along the guided teacher's ODE. Its derivative along that ODE, by forward-mode
differentiation, is normalised and injected into the student's output. Networks of every family are TrigFlow networks through
`trigflow.py`: the angle of equal SNR, the state of unit norm, the field in place of the prediction.

Deviations. Data are taken to have unit scale (sigma_data = 1), as latents have, so the law of times is that of log(sigma / alpha).
The tangent is divided by its rms, not its norm, so that the constant c means the same for every latent size. There is no fixed
weight of times beside the learned one, whose optimum cancels it. The time embedding is the teacher's; if it is steep (1000
positional frequencies), tangent "semi" keeps it out of forward mode.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.derivative import directional_derivative
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.times import LogNormalSigma
from stepdistill.diffusion.trigflow import field_gain, noise_direction, trig_field, trig_level, trig_state
from stepdistill.distillers.base import Distiller
from stepdistill.distillers.batch import Batch
from stepdistill.distillers.config import Requirements
from stepdistill.distillers.consistency.config import SCMConfig
from stepdistill.distillers.consistency.guided import balanced, teacher_guidance, with_guidance_scale
from stepdistill.distillers.consistency.log_variance import LogVariance
from stepdistill.distillers.turn import Losses, PerTime
from stepdistill.losses.consistency import consistency_tangent, normalised_tangent, tangent_loss
from stepdistill.typing import Latents, Times


class SCM(Distiller):
    """Continuous-time consistency on noised images."""

    paper = "https://arxiv.org/abs/2410.11081"
    requires = Requirements(latents=True)
    status = "verified"
    passes = 4.0
    is_flow_map = True
    Config = SCMConfig
    config: Any  # an SCMConfig, narrowed by SANA-Sprint and TBCM

    def setup(self) -> None:
        if self.config.embed_guidance:
            self.student.embed_guidance(self.config.guidance_scale)
        self.schedule = self.teacher.schedule
        self.times = LogNormalSigma(self.config.time_mean, self.config.time_std, self.schedule)
        self.log_variance: LogVariance | None = None
        if self.config.has_log_variance:
            self.log_variance = self.add_network("log_variance", LogVariance(), turn="student")

    def student_step(self, batch: Batch) -> Losses:
        """Inject the tangent along the guided teacher's ODE at noised images (algorithm 1)."""
        rng = self.begin("student", batch)
        x_t, teacher, cond = self.noised_with_teacher(batch, rng)
        dF = self.derivative(x_t, teacher, cond)
        F = self.balanced_field(x_t, teacher.t, cond)
        return self.tangent_losses(F, dF, x_t, teacher, batch.step)

    def noised_with_teacher(self, batch: Batch, rng: RandomStream) -> tuple[Latents, Denoised, Conditioning]:
        """Noised images, the guided teacher's estimates there, and the student's conditioning."""
        x0, cond = batch.real()
        guidance = teacher_guidance(self.config, batch.uncond, rng)
        x_t, t = self.noised(x0, rng)
        with torch.no_grad():
            teacher = self.teacher(x_t, t, cond, guidance=guidance)
        return x_t, teacher, with_guidance_scale(self.student, cond, guidance)

    def noised(self, x0: Latents, rng: RandomStream) -> tuple[Latents, Times]:
        """Noise images to times of the training law; return both."""
        t = self.times(rng.uniform("t")).clamp(max=self.config.first_time)
        return self.schedule.add_noise(x0, rng.normal("eps", x0.shape[1:]).to(x0), t), t

    def field(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        """The student's output F in TrigFlow's terms."""
        return trig_field(self.student(x_t, t, cond), self.schedule)

    def balanced_field(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        """F with its graph, for the loss."""
        gain = field_gain(self.student.prediction, self.schedule, t)
        return balanced(self.config, self.field(x_t, t, cond), gain)

    def derivative(self, x_t: Latents, teacher: Denoised, cond: Conditioning) -> Latents:
        """cos t sin t dF/dt of the student along the teacher's ODE."""
        direction = noise_direction(teacher, self.schedule)
        how, step = self.config.tangent, self.config.tangent_step
        return directional_derivative(partial(self.field, cond=cond), x_t, teacher.t, *direction, how=how, step=step)

    def tangent_losses(self, F: Latents, dF: Latents, x_t: Latents, teacher: Denoised, step: int) -> Losses:
        """Inject the normalised tangent into F; log the raw one, as the loss itself has no scale."""
        cos, sin = trig_level(self.schedule, teacher.t)
        x, F_teacher = trig_state(x_t, teacher.t, self.schedule), trig_field(teacher, self.schedule)
        # cos t df/dt with the warm-up factor r: g = -cos^2 (F - F_teacher) - r (cos sin x + dF), then g / (|g| + c)
        tangent = partial(consistency_tangent, x, F, F_teacher, dF, cos, sin)
        g = normalised_tangent(tangent(warmup=self.tangent_weight(step)), c=self.config.tangent_constant)
        log_variance = None if self.log_variance is None else self.log_variance(torch.atan2(sin, cos))
        raw = tangent().square().flatten(1).mean(1).sqrt()
        # exp(-w) / D |F - sg(F) - g|^2 + w, with w the learnt log-variance at this time
        loss = tangent_loss(F, g, log_variance)
        return Losses({"consistency": loss}, logs={"tangent": PerTime(raw, teacher.t)})

    def tangent_weight(self, step: int) -> float:
        """The warm-up factor r of the student's own derivative."""
        return min(1.0, step / self.config.tangent_warmup_steps) if self.config.tangent_warmup_steps else 1.0
