"""SANA-Sprint: One-Step Diffusion with Continuous-Time Consistency Distillation, Chen et al., 2025, https://arxiv.org/abs/2503.09641.

sCM, which ties the student to the teacher's trajectories, beside latent adversarial distillation (LADD, https://arxiv.org/abs/2403.12015),
which makes its single step sharp: heads on the frozen teacher's features judge the student's noised x0. Half of the adversarial
inputs are at the maximal time, where a single step starts. One student serves every number of steps.

Deviations. The released discriminator step writes the probability of the maximal time where the maximal time belongs; here it is the
maximal time in both turns. The critics learn on the student's samples of the same iteration, and the tangent's warm-up counts
student updates. Heads have our own shape. The scale is told to networks that have an input for it (method.embed_guidance).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from stepdistill.critics.gan import GANConfig, LatentGAN
from stepdistill.denoisers.base import Denoiser
from stepdistill.denoisers.roles import Roles
from stepdistill.diffusion.conditioning import Conditioning
from stepdistill.diffusion.rng import RandomStream
from stepdistill.diffusion.times import LogNormalSigma
from stepdistill.diffusion.trigflow import trig_x0
from stepdistill.distillers.base import Batch, Handoff, Losses, Requirements, Turn
from stepdistill.distillers.consistency.scm import SCM, SCMConfig
from stepdistill.errors import UserError
from stepdistill.typing import Latents, Times


class SprintGANConfig(GANConfig):
    """The adversarial part with the paper's settings."""

    student_weight: float = Field(default=0.5, gt=0.0, description="weight of the student's GAN loss")
    critic_weight: float = Field(default=0.5, gt=0.0, description="weight of the discriminator's loss")
    features: Literal["fake_score", "teacher"] = Field(
        default="teacher", description="network whose features the heads judge; there is only the teacher"
    )
    loss: Literal["non_saturating", "hinge"] = Field(default="hinge", description="the adversarial loss")


class SANASprintConfig(SCMConfig):
    """Options of SANA-Sprint."""

    time_mean: float = Field(default=0.9, description="mean of log(sigma / alpha) of the training times")
    time_std: float = Field(default=1.6, gt=0, description="standard deviation of log(sigma / alpha)")
    max_time_prob: float = Field(
        default=0.5, ge=0, le=1, description="part of the adversarial inputs that are at the maximal time"
    )
    critic_time_mean: float = Field(
        default=0.1, description="mean of log(sigma / alpha) at which samples are judged"
    )
    critic_time_std: float = Field(default=1.0, gt=0, description="its standard deviation")
    gan: SprintGANConfig = Field(default=SprintGANConfig(), description="the adversarial part")


class SANASprint(SCM):
    """Continuous-time consistency with latent adversarial distillation."""

    paper = "https://arxiv.org/abs/2503.09641"
    requires = Requirements(latents=True, critic=True)
    status = "verified"
    Config = SANASprintConfig
    config: SANASprintConfig

    def __init__(
        self,
        teacher: Denoiser,
        config: Any = None,
        *,
        roles: Roles | None = None,
        student: Denoiser | None = None,
    ) -> None:
        super().__init__(teacher, config, roles=roles, student=student)
        if self.config.gan.features != "teacher":
            raise UserError("SANA-Sprint has no fake score: set method.gan.features=teacher")
        times = LogNormalSigma(self.config.critic_time_mean, self.config.critic_time_std, self.schedule)
        self.gan = LatentGAN(teacher, self.config.gan, times)

    def student_step(self, batch: Batch) -> Losses:
        """Both parts on one call of the student; its output is cut off, as the teacher's features come in between."""
        self.train_only("student")
        rng = batch.rng.fork("student")
        x0, cond = batch.real()
        guidance = self.guidance(batch.uncond, rng)
        told = self.told(cond, guidance)
        x_t, t = self.noised(x0, rng)
        with torch.no_grad():
            teacher = self.teacher(x_t, t, cond, guidance=guidance)
        dF = self.derivative(x_t, teacher, told)
        x_gan, t_gan = self.adversarial_input(x0, rng)
        F = self.balanced_field(
            torch.cat([x_t, x_gan]), torch.cat([t, t_gan]), Conditioning.cat([told, told])
        )
        handoff = Handoff(F, self.student)
        F, F_gan = handoff.leaf.chunk(2)
        losses = self.tangent_losses(F, dF, x_t, teacher, batch.step)
        sample = trig_x0(F_gan, x_gan, t_gan, self.schedule)
        batch.samples = sample.detach()
        adversarial = {"gan_student": self.gan.student_loss(self.teacher, sample, cond, rng)}
        return Losses(losses.terms | adversarial, self.gan.weights(), losses.logs, handoff)

    def critic_step(self, batch: Batch) -> Losses:
        """The heads on real latents and on the student's x0 of this iteration."""
        self.train_only("critic")
        rng = batch.rng.fork("critic")
        x0, cond = batch.real()
        samples = batch.samples
        if samples is None:
            x_gan, t_gan = self.adversarial_input(x0, rng)
            told = self.told(cond, self.guidance(batch.uncond, rng))
            with torch.no_grad():
                samples = self.student(x_gan, t_gan, told).x0
        real, fake = self.gan.features(self.teacher, [x0.to(samples), samples], [cond, cond], rng)
        terms, logs = self.gan.critic_losses(real, fake)
        return Losses(terms, self.gan.weights(), {**logs})

    def adversarial_input(self, x0: Latents, rng: RandomStream) -> tuple[Latents, Times]:
        """Freshly noised data, some of it at the maximal time."""
        rng = rng.fork("adversarial")
        t = self.times(rng.uniform("t")).clamp(max=self.config.first_time)
        is_max = rng.uniform("is_max") < self.config.max_time_prob
        t = t.masked_fill(is_max, self.config.first_time)
        return self.schedule.add_noise(x0, rng.normal("eps", x0.shape[1:]).to(x0), t), t

    def turns(self, step: int) -> Sequence[Turn]:
        """Both, on the same samples."""
        return ("student", "critic")

    def networks(self) -> dict[str, nn.Module]:
        """Those of sCM and the heads."""
        return {**super().networks(), "heads": self.gan.heads}

    def players(self) -> dict[Turn, list[nn.Parameter]]:
        """Those of sCM; the heads are the critic."""
        return {**super().players(), "critic": list(self.gan.parameters())}
