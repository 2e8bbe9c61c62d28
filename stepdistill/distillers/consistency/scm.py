"""sCM: Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models, Lu & Song, ICLR 2025, https://arxiv.org/abs/2410.11081.

The consistency function must not change along the guided teacher's ODE. Its derivative along that ODE, exact by forward-mode
differentiation, is normalised and injected into the student's output. Networks of every family are TrigFlow networks through
`trigflow.py`: the angle of equal SNR, the state of unit norm, the field in place of the prediction.

Deviations. Data are taken to have unit scale (sigma_data = 1), as latents have, so the law of times is that of log(sigma / alpha).
The tangent is divided by its rms, not its norm, so that the constant c means the same for every size of latent. There is no fixed
weight of times beside the learned one, whose optimum cancels it. The time embedding is the teacher's; where it is steep (1000
positional frequencies), tangent "semi" keeps it out of forward-mode.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import nn

from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.denoised import Denoised
from stepdistill.diffusion.derivative import Differentiation, directional_derivative
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.times import LogNormalSigma
from stepdistill.diffusion.trigflow import field_gain, noise_direction, trig_field, trig_level, trig_state
from stepdistill.distillers.base import Batch, Losses, PerTime, Requirements, Turn
from stepdistill.distillers.consistency.guided import GuidedConfig, GuidedDistiller
from stepdistill.distillers.consistency.log_variance import LogVariance
from stepdistill.losses.consistency import consistency_tangent, normalised_tangent, tangent_loss
from stepdistill.typing import Latents, Times


class SCMConfig(GuidedConfig):
    """Options of continuous-time consistency."""

    tangent: Differentiation = Field(
        default="jvp",
        description="derivative of the network along the ODE: exact (jvp), exact in x with a difference in t (semi), a "
        "difference along the teacher's direction (finite), or one towards the data only (backward), which damps what the "
        "others let grow",
    )
    tangent_step: float = Field(
        default=5e-4,
        gt=0,
        description="step of the differences, in units of log(sigma / alpha); with a steep time embedding as wide as ten "
        "training indices (0.03 to 0.1), or they measure what the teacher never learnt, its values between them",
    )
    tangent_warmup_steps: int = Field(
        default=1000, ge=0, description="iterations over which the student's own derivative comes in"
    )
    tangent_constant: float = Field(default=0.1, ge=0, description="c of the normalisation g / (rms(g) + c)")
    learn_variance: bool = Field(default=True, description="learn how much each time counts")
    time_mean: float = Field(default=-0.3, description="mean of log(sigma / alpha) of the training times")
    time_std: float = Field(default=1.4, gt=0, description="standard deviation of log(sigma / alpha)")


class SCM(GuidedDistiller):
    """Continuous-time consistency distillation on noised data."""

    paper = "https://arxiv.org/abs/2410.11081"
    requires = Requirements(latents=True)
    status = "verified"
    is_flow_map = True
    Config = SCMConfig

    def __init__(
        self,
        teacher: Denoiser,
        config: Any = None,
        *,
        roles: Roles | None = None,
        student: Denoiser | None = None,
    ) -> None:
        super().__init__(teacher, config, roles=roles, student=student)
        self.schedule = teacher.schedule
        self.times = LogNormalSigma(self.config.time_mean, self.config.time_std, self.schedule)
        self.log_variance = LogVariance() if self.config.learn_variance else None

    def student_step(self, batch: Batch) -> Losses:
        """The tangent of noised data along the guided teacher's ODE."""
        self.train_only("student")
        rng = batch.rng.fork("student")
        x0, cond = batch.real()
        guidance = self.guidance(batch.uncond, rng)
        x_t, t = self.noised(x0, rng)
        with torch.no_grad():
            teacher = self.teacher(x_t, t, cond, guidance=guidance)
        told = self.told(cond, guidance)
        dF = self.derivative(x_t, teacher, told)
        return self.tangent_losses(self.balanced_field(x_t, t, told), dF, x_t, teacher, batch.step)

    def noised(self, x0: Latents, rng: RandomStream) -> tuple[Latents, Times]:
        """Data noised to times of the training law."""
        t = self.times(rng.uniform("t")).clamp(max=self.config.first_time)
        return self.schedule.add_noise(x0, rng.normal("eps", x0.shape[1:]).to(x0), t), t

    def field(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        """The student's output F in TrigFlow's terms."""
        return trig_field(self.student(x_t, t, cond), self.schedule)

    def balanced_field(self, x_t: Latents, t: Times, cond: Conditioning) -> Latents:
        """F with its graph, for the loss."""
        gain = field_gain(self.student.prediction, self.schedule, t)
        return self.balanced(self.field(x_t, t, cond), gain)

    def derivative(self, x_t: Latents, teacher: Denoised, cond: Conditioning) -> Latents:
        """cos t sin t dF/dt of the student along the teacher's ODE."""
        direction = noise_direction(teacher, self.schedule)
        how, step = self.config.tangent, self.config.tangent_step
        return directional_derivative(
            partial(self.field, cond=cond), x_t, teacher.t, *direction, how=how, step=step
        )

    def tangent_losses(self, F: Latents, dF: Latents, x_t: Latents, teacher: Denoised, step: int) -> Losses:
        """Inject the normalised tangent into F; log the raw one, as the loss itself says nothing."""
        cos, sin = trig_level(self.schedule, teacher.t)
        x, F_teacher = trig_state(x_t, teacher.t, self.schedule), trig_field(teacher, self.schedule)
        tangent = partial(consistency_tangent, x, F, F_teacher, dF, cos, sin)
        g = normalised_tangent(tangent(warmup=self.tangent_weight(step)), c=self.config.tangent_constant)
        log_variance = None if self.log_variance is None else self.log_variance(torch.atan2(sin, cos))
        raw = tangent().square().flatten(1).mean(1).sqrt()
        return Losses(
            {"consistency": tangent_loss(F, g, log_variance)}, logs={"tangent": PerTime(raw, teacher.t)}
        )

    def tangent_weight(self, step: int) -> float:
        """The warm-up factor r of the student's own derivative."""
        return min(1.0, step / self.config.tangent_warmup_steps) if self.config.tangent_warmup_steps else 1.0

    def networks(self) -> dict[str, nn.Module]:
        """The student and the learned log-variance."""
        learned = {} if self.log_variance is None else {"log_variance": self.log_variance}
        return {"student": self.student, **learned}

    def players(self) -> dict[Turn, list[nn.Parameter]]:
        """Both learn in the student's turn."""
        learned = [] if self.log_variance is None else list(self.log_variance.parameters())
        return {"student": [*self.student.trainable_parameters(), *learned]}
